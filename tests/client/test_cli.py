"""Laws of ``rarefed-client``."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client import cli
from client.config import SiteConfig
from common import errors

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
    monkeypatch.setenv("COLUMNS", "200")
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
    """Each task has a row of patients (images) by split, and of unreadable images."""
    config = make_hospital(tasks=("ct", "mr"))
    (folder_of(config) / "mr/images/scan_0_0.png").write_bytes(b"no image")
    code, out, _ = command("check", folder_of(config), "--study", study)
    assert code == 0
    rows = {line.split()[1]: line for line in out.splitlines() if "│" in line}
    assert "4 (8)" in rows["ct"]
    assert rows["ct"].count("2 (4)") == 2
    assert rows["ct"].rstrip("│ ").endswith("0")
    assert "4 (7)" in rows["mr"]
    assert rows["mr"].rstrip("│ ").endswith("1")
    assert str(config.state / "site.log") in out.replace("\n", "")


def test_a_check_prints_json(make_hospital: MakeHospital, study: Path, command: Command) -> None:
    """With ``--json`` standard output is one JSON object, the declaration, and nothing else."""
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
    """The process ends with the error's code, says what is wrong with a remedy, and prints none."""
    folder = folder_of(make_hospital())
    damage(folder)
    code, out, err = command("check", folder, "--study", study, "--json")
    assert code == error.exit_code
    assert error.__name__ in err
    assert "Remedy:" in err
    assert "Traceback" not in err
    assert "PATIENT" not in err
    assert out == ""


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


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "folder"], ["chek"]])
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
