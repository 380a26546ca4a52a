"""Laws of ``rarefed-client``."""

import io
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client import cli
from client.config import SiteConfig
from common import errors
from common.chained_log import ChainedLog
from common.enrolment import Kit
from common.study import Study
from server.certificates import new_authority
from server.config import ServerConfig, init_folder
from server.enrolment import invite
from server.rotation import rotate_authority

STUDY = """
name = "study"
rounds = 2
[backbone]
name = "test_resnet"
weights = "none"
image_size = 32
[tasks.ct]
modality = "CT"
classes = ["normal", "gaucher"]
positive = "gaucher"
[tasks.mr]
modality = "MR"
classes = ["none", "mild", "severe"]
"""

MakeHospital = Callable[..., SiteConfig]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(STUDY, encoding="utf-8")
    return file


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs the command line: exit code, standard output, standard error."""
    monkeypatch.delenv("RAREFED_DEBUG", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rarefed-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return run


def folder_of(config: SiteConfig) -> Path:
    return config.state.parent


def test_a_check_prints_a_table(make_hospital: MakeHospital, study: Path, command: Command) -> None:
    """Each task has a row of patients (images) by split, and of rows left out; then findings."""
    config = make_hospital(tasks=("ct", "mr"))
    (folder_of(config) / "mr/images/scan_0_0.png").write_bytes(b"no image")
    code, out, _ = command("check", folder_of(config), "--study", study)
    assert code == 0
    table, findings = out.split("findings")
    rows = {line.split()[1]: line for line in table.splitlines() if "│" in line}
    assert "4 (8)" in rows["ct"]
    assert rows["ct"].count("2 (4)") == 2
    assert rows["ct"].rstrip("│ ").endswith("0")
    assert "4 (7)" in rows["mr"]
    assert rows["mr"].rstrip("│ ").endswith("1")
    assert str(config.state / "site.log") in out.replace("\n", "")
    assert "unreadable" in findings
    assert "The site can take part." in findings
    for name in ("check.html", "check-report.json"):
        assert (config.state / name).stat().st_mode & 0o777 == 0o600


def test_a_check_prints_json(make_hospital: MakeHospital, study: Path, command: Command) -> None:
    """With ``--json`` standard output is one JSON object: the declaration and the findings."""
    config = make_hospital()
    code, out, _ = command("check", folder_of(config) / "site.toml", "--study", study, "--json")
    assert code == 0
    found = json.loads(out)
    counts = {"patients": 2, "images": 4}
    assert found["tasks"] == {
        "ct": {"train": {"patients": 4, "images": 8}, "validation": counts, "test": counts}
    }
    assert found["unreadable"] == {"ct": 0}
    assert found["patients"] == 4
    assert (found["joins"], found["findings"]) == (True, {"ct": []})
    assert found == json.loads((config.state / "check-report.json").read_text())


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_manifest(folder: Path) -> None:
    shutil.rmtree(folder / "ct")


def no_rows(folder: Path) -> None:
    (folder / "ct/labels.csv").write_text("path,label,patient_id\n", encoding="utf-8")


def no_training(folder: Path) -> None:
    table = folder / "ct/labels.csv"
    table.write_text(table.read_text().replace(",train", ",test"))


def foreign_label(folder: Path) -> None:
    table = folder / "ct/labels.csv"
    table.write_text(table.read_text().replace(",gaucher,", ",unsure,"))


def divided_patient(folder: Path) -> None:
    table = folder / "ct/labels.csv"
    table.write_text(table.read_text().replace(",test", ",train", 1))


def no_images(folder: Path) -> None:
    shutil.rmtree(folder / "ct/images")


def wrong_settings(folder: Path) -> None:
    file = folder / "site.toml"
    file.write_text(file.read_text().replace("threads", "thread"))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (no_folder, errors.MissingFolderError),
        (no_manifest, errors.MissingFolderError),
        (no_rows, errors.EmptyManifestError),
        (no_training, errors.EmptyManifestError),
        (foreign_label, errors.LabelError),
        (divided_patient, errors.SplitError),
        (no_images, errors.ImageError),
        (wrong_settings, errors.DataError),
    ],
)
def test_each_fault_has_its_exit_code(
    damage: Callable[[Path], None],
    error: type[errors.RarefedError],
    make_hospital: MakeHospital,
    study: Path,
    command: Command,
) -> None:
    """The process ends with the error's code and says what is wrong with a remedy.

    Only a check that has read the images prints what it found.
    """
    folder = folder_of(make_hospital())
    damage(folder)
    code, out, err = command("check", folder, "--study", study, "--json")
    assert code == error.exit_code
    assert error.__name__ in err
    assert "Remedy:" in err
    assert "Traceback" not in err
    assert "PATIENT" not in err
    assert bool(out) == (damage in (no_images, no_training))
    if out:
        assert (json.loads(out)["joins"], json.loads(out)["refusal"]) == (False, error.code)


def test_the_page_goes_where_it_is_wanted(
    make_hospital: MakeHospital, study: Path, command: Command, tmp_path: Path
) -> None:
    """``--html`` names the page's place; one that cannot be written ends with 40."""
    folder = folder_of(make_hospital())
    page = tmp_path / "pages" / "mine.html"
    code, out, _ = command("check", folder, "--study", study, "--html", page, "--workers", 1)
    assert (code, page.read_text().startswith("<!DOCTYPE html>")) == (0, True)
    assert "mine.html" in out.replace("\n", "")
    assert not (folder / "state" / "check.html").exists()
    folder.joinpath("file").touch()
    wrong = folder / "file" / "page.html"
    assert command("check", folder, "--study", study, "--html", wrong)[0] == 40


def test_an_accepted_finding_is_logged(
    make_hospital: MakeHospital, study: Path, command: Command
) -> None:
    """What site.toml accepts does not stop the site, and stands in its log with the rows."""
    config = make_hospital(max_unreadable=0)
    (folder_of(config) / "ct/images/scan_0_0.png").write_bytes(b"no image")
    assert command("check", folder_of(config), "--study", study)[0] == 26
    with (folder_of(config) / "site.toml").open("a") as file:
        file.write('\naccept = ["unreadable"]\n')  # the last table is that of the task
    assert command("check", folder_of(config), "--study", study)[0] == 0
    assert "accepted: unreadable, 1 rows" in (config.state / "site.log").read_text()


def test_the_exit_codes_are_those_of_the_documents() -> None:
    """Scripts of hospitals rely on these numbers."""
    assert errors.MissingFolderError.exit_code == 21
    assert errors.EmptyManifestError.exit_code == 22
    assert errors.LabelError.exit_code == 24
    assert errors.SplitError.exit_code == 25
    assert errors.ImageError.exit_code == 26
    assert errors.TaskWithoutSiteError.exit_code == 31


def test_a_task_that_the_site_lacks_is_told(
    make_hospital: MakeHospital, study: Path, command: Command
) -> None:
    """A site with none of the study's tasks ends with 31, and with what to add to its file."""
    study.write_text(STUDY.replace("tasks.ct", "tasks.liver").replace("tasks.mr", "tasks.brain"))
    code, _, err = command("check", folder_of(make_hospital()), "--study", study)
    assert code == 31
    assert "liver, brain" in err
    assert "[data.TASK]" in err


@pytest.mark.parametrize(("text", "code"), [(None, 10), ("rounds = 'many'", 10)])
def test_a_wrong_study_is_told(
    text: str | None, code: int, make_hospital: MakeHospital, study: Path, command: Command
) -> None:
    """A missing or impossible study file ends with 10, an unknown backbone with 11."""
    folder = folder_of(make_hospital())
    study.write_text(STUDY.replace("test_resnet", "test_resnett"))
    assert command("check", folder, "--study", study)[0] == 11
    if text is None:
        study.unlink()
    else:
        study.write_text(text)
    assert command("check", folder, "--study", study)[0] == code


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check"],
        ["check", "folder"],
        ["chek"],
        ["join"],
        ["approve", "folder"],
        ["approve", "folder", "study.toml", "--list"],
        ["start", "folder", "--vault-user", "anna"],
        ["start", "folder", "--vault-user", "anna", "--courier-user", "anna"],
    ],
)
def test_wrong_usage_is_two(arguments: list[str], command: Command) -> None:
    """A missing argument or option, or an unknown command, ends with 2."""
    assert command(*arguments)[0] == 2


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["check"], 2)])
def test_the_process_ends_with_the_code(arguments: list[str], code: int) -> None:
    """As a process of its own, too, and with help on standard output, faults on the other."""
    program = "from client.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(cli.__file__).parent.parent,
    )
    assert done.returncode == code
    assert ("Usage" in done.stdout) == (code == 0)
    assert ("Usage" in done.stderr) == (code == 2)


def test_a_study_is_approved_after_it_was_told(
    make_hospital: MakeHospital, study: Path, command: Command
) -> None:
    """The terms go to standard error and with ``--json`` to standard output, with the digest."""
    folder, digest = folder_of(make_hospital()), Study.load(study).digest()
    code, out, err = command("approve", folder, study, "--yes", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["digest"], found["approved"]) == (digest, True)
    assert "no differential privacy" in found["privacy"]
    assert "no differential privacy" in err
    listed = json.loads(command("approve", folder, "--list", "--json")[1])["approved"]
    assert [(entry["study"], entry["digest"]) for entry in listed] == [("study", digest)]


def test_nothing_is_approved_without_an_answer(
    make_hospital: MakeHospital, study: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can be asked, ``--yes`` is needed; wrong usage ends with 2."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    folder = folder_of(make_hospital())
    code, _, err = command("approve", folder, study)
    assert code == 2
    assert "--yes" in err
    assert json.loads(command("approve", folder, "--list", "--json")[1])["approved"] == []


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_the_answer_on_a_terminal_counts(
    answer: str, code: int, make_hospital: MakeHospital, study: Path
) -> None:
    """On a terminal the engineer is asked, and a no changes nothing."""
    folder = folder_of(make_hospital())
    here, there = pty.openpty()
    program = "from client.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "approve", str(folder), str(study)],
        stdin=there,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(cli.__file__).parent.parent,
    )
    os.write(here, answer.encode() + b"\n")
    assert process.wait(60) == code
    assert (folder / "state/approvals.json").exists() == (answer == "y")
    os.close(here)
    os.close(there)


def test_an_approval_is_taken_back(
    make_hospital: MakeHospital, study: Path, command: Command
) -> None:
    """The beginning of a digest is enough; one that fits none, or several, changes nothing."""
    folder, digest = folder_of(make_hospital()), Study.load(study).digest()
    command("approve", folder, study, "--yes")
    other = study.with_name("other.toml")
    other.write_text(STUDY.replace("rounds = 2", "rounds = 3"), encoding="utf-8")
    command("approve", folder, other, "--yes")
    assert command("approve", folder, "--revoke", "xyz")[0] == errors.NotApprovedError.exit_code
    code, out, _ = command("approve", folder, "--revoke", digest[:12], "--json")
    assert code == 0
    assert json.loads(out)["digest"] == digest
    left = json.loads(command("approve", folder, "--list", "--json")[1])["approved"]
    assert [entry["digest"] for entry in left] == [Study.load(other).digest()]


def test_a_pause_is_set_and_lifted(make_hospital: MakeHospital, command: Command) -> None:
    """``pause`` and ``pause --off`` may each be repeated, and ``status`` shows which holds."""
    folder = folder_of(make_hospital())
    for words, paused in ((["pause"], True), (["pause", "--off"], False)):
        for _ in range(2):
            code, out, _ = command(words[0], folder, *words[1:], "--json")
            assert code == 0
            assert json.loads(out)["paused"] == paused
        assert json.loads(command("status", folder, "--json")[1])["paused"] == paused


def test_the_status_prints_a_table(make_joined: MakeHospital, command: Command) -> None:
    """Coordinator, socket, pause and approvals each have a row."""
    folder = folder_of(make_joined())
    code, out, _ = command("status", folder)
    assert code == 0
    for row in ("coordinator", "demo", "socket", "absent", "paused", "approved", "nothing"):
        assert row in out
    assert "disputed" not in out
    ChainedLog(folder / "state/audit.jsonl").append({"event": "disputed"})
    assert "disputed" in command("status", folder)[1]


def test_a_red_line_ends_the_doctor_with_its_code(
    make_hospital: MakeHospital, command: Command
) -> None:
    """Each line is printed, also as JSON, and the red ones stand in the error."""
    folder = folder_of(make_hospital())
    code, out, err = command("doctor", folder, "--json")
    assert code == errors.DoctorError.exit_code
    lines = {line["name"]: line for line in json.loads(out)}
    assert set(lines["disk"]) == {"name", "ok", "message", "remedy"}
    assert not lines["enrolment"]["ok"]
    assert "enrolment" in err
    code, out, _ = command("doctor", folder)
    assert code == errors.DoctorError.exit_code
    assert "RED" in out


@pytest.fixture
def kit(tmp_path: Path) -> tuple[Path, str]:
    """A kit for site-a, and its fingerprint."""
    coordinator = init_folder(tmp_path / "coordinator", "trial", "localhost:22997")
    invite(coordinator, "site-a")
    file = coordinator.kit_file("site-a")
    return file, Kit.load(file).fingerprint


def test_a_hospital_joins_and_leaves(
    kit: tuple[Path, str], make_hospital: MakeHospital, command: Command
) -> None:
    """The request for the coordinator is named; after leaving, the key is gone."""
    folder = folder_of(make_hospital())
    code, out, _ = command("join", kit[0], "--site", folder, "--fingerprint", kit[1], "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["site"], found["coordinator"]) == ("site-a", "trial")
    assert Path(found["request"]).is_file()
    assert json.loads(command("status", folder, "--json")[1])["coordinator"] == {
        "name": "trial",
        "address": "localhost:22997",
    }
    code, out, _ = command("leave", folder, "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {"site": "site-a", "left": "trial"}
    assert not (folder / "courier/node.key").exists()


def test_a_fingerprint_is_always_compared(
    kit: tuple[Path, str],
    make_hospital: MakeHospital,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a terminal it must be given, and another than the kit's ends the joining."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    folder = folder_of(make_hospital())
    assert command("join", kit[0], "--site", folder)[0] == 2
    other = kit[1][:-4] + ("0000" if kit[1][-4:] != "0000" else "1111")
    code = command("join", kit[0], "--site", folder, "--fingerprint", other)[0]
    assert code == errors.KitError.exit_code
    assert not (folder / "courier").exists()


def test_who_runs_does_not_leave(make_joined: MakeHospital, command: Command) -> None:
    """While the vault answers, the hospital cannot leave."""
    config = make_joined()
    config.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(config.socket))
        listener.listen()
        code, _, err = command("leave", folder_of(config), "--yes")
    assert code == errors.ServiceError.exit_code
    assert "still running" in err
    assert (config.state / "coordinator.json").exists()


def test_a_new_authority_is_taken_over(
    kit: tuple[Path, str], make_hospital: MakeHospital, command: Command, tmp_path: Path
) -> None:
    """What the old authority vouches for is trusted, and a stranger's bundle is not."""
    folder = folder_of(make_hospital())
    command("join", kit[0], "--site", folder, "--fingerprint", kit[1])
    coordinator = ServerConfig.load(tmp_path / "coordinator")
    rotate_authority(coordinator)
    code, out, _ = command("renew", folder, coordinator.folder / "renewal.pem", "--json")
    assert code == 0
    assert json.loads(out)["fingerprint"] != kit[1]
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(new_authority("foe").certificate_pem)
    assert command("renew", folder, foreign)[0] == errors.KitError.exit_code
    assert command("renew", folder, tmp_path / "none")[0] == errors.KitError.exit_code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be in another user's folder")
def test_root_leaves_nothing_in_a_folder_of_the_vault(
    make_hospital: MakeHospital, study: Path, command: Command
) -> None:
    """Where the state folder is another user's, root is told to work as that user."""
    config = make_hospital()
    config.state.mkdir(mode=0o700, exist_ok=True)
    before = sorted(config.state.iterdir())
    os.chown(config.state, 65534, 65534)
    code, out, error = command("check", folder_of(config), "--study", study)
    assert (code, out) == (errors.DataError.exit_code, "")
    assert "sudo -u nobody" in error
    assert sorted(config.state.iterdir()) == before
