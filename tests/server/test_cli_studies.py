"""Laws of the commands about studies where no daemon runs; with one: ``test_daemon.py``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.chained_log import Head
from common.errors import (
    MissingFolderError,
    NotRunningError,
    OutputError,
    RarefedError,
    StudyError,
    WeightsError,
)
from common.study import Study
from server.cli import app
from server.config import ServerConfig, init_folder
from server.history import RoundRecord, append
from server.studies import StudyFolder, create

STUDY = """
name = "retina"
rounds = 2
[backbone]
name = "resnet18"
weights = "{weights}"
[tasks.grade]
modality = "fundus"
classes = ["none", "some"]
"""


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return init_folder(tmp_path / "c", "trial", "127.0.0.1:21001", superlink_port=21002)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(STUDY.format(weights="none"))
    return file


@pytest.fixture
def folder(config: ServerConfig, study_file: Path) -> StudyFolder:
    return create(config, Study.load(study_file))


def call(config: ServerConfig, *words: object) -> str:
    """Run a command and return its standard output; its error is raised."""
    words = (*words, "--folder", config.folder)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("words", [["run", "STUDY"], ["resume", "retina"]])
def test_a_study_needs_the_daemon(
    config: ServerConfig, folder: StudyFolder, study_file: Path, words: list[str]
) -> None:
    """Without a daemon a study is neither run nor resumed, and what to start is said."""
    folder.write_progress("paused", 1, 2)
    words = [str(study_file) if word == "STUDY" else word for word in words]
    with pytest.raises(NotRunningError, match="rarefed-server start"):
        call(config, *words)
    assert folder.progress().state == "paused"


def test_a_wrong_study_is_refused_before_all(config: ServerConfig, tmp_path: Path) -> None:
    """A study that is not valid, or whose weights are missing, makes no folder."""
    bad, lost = tmp_path / "bad.toml", tmp_path / "lost.toml"
    bad.write_text("name = 1")
    lost.write_text(STUDY.format(weights="missing.safetensors"))
    for file, error in ((bad, StudyError), (lost, WeightsError), (tmp_path / "no", StudyError)):
        with pytest.raises(error):
            call(config, "run", file)
    assert not list(config.studies.iterdir())


def test_a_stop_without_a_daemon_is_kept_for_it(config: ServerConfig, folder: StudyFolder) -> None:
    """What is stopped while no daemon runs is not started by the next one."""
    assert "as soon as the coordinator runs" in call(config, "stop", "retina")
    assert folder.control().wanted == "stop"
    found = json.loads(call(config, "stop", folder.study_id, "--json"))
    assert (found["study"], found["state"]) == (folder.study_id, "waiting")


def test_the_status_without_a_daemon(config: ServerConfig, folder: StudyFolder) -> None:
    """Without a daemon the status still shows the studies; who is there, nobody knows."""
    found = json.loads(call(config, "status", "--json"))
    assert not found["running"]
    assert found["sites"] is None
    assert found["studies"][folder.study_id]["wanted"] == "run"
    shown = call(config, "status")
    assert "is not running" in shown
    assert "waiting" in shown


def test_the_heads_of_the_audit_logs(config: ServerConfig, folder: StudyFolder) -> None:
    """Of each site the last head and its round; what did not follow also stands in the status."""
    assert json.loads(call(config, "heads", "retina", "--json"))["audit_heads"] == {}
    for number, head in ((1, Head(7, "ab" * 32)), (2, Head(3, "cd" * 32))):
        record = RoundRecord(number, number - 1, trained=True)
        record.audit_heads = {"b": head._asdict()}
        if number == 1:
            record.audit_heads["a"] = Head(5, "ef" * 32)._asdict()
        else:
            record.audit_faults = {"b": "its audit log went back"}
        append(folder.path, record)
    fault = {"round": 2, "site": "b", "why": "its audit log went back"}
    assert json.loads(call(config, "heads", "retina", "--json")) == {
        "study": folder.study_id,
        "audit_heads": {
            "a": {"entries": 5, "head": "ef" * 32, "round": 1},
            "b": {"entries": 3, "head": "cd" * 32, "round": 2},
        },
        "audit_faults": [fault],
    }
    shown = call(config, "heads", "retina").splitlines()
    assert shown[:2] == [f"a: {'ef' * 32} 5 (round 1)", f"b: {'cd' * 32} 3 (round 2)"]
    assert json.loads(call(config, "status", "--json"))["studies"][folder.study_id][
        "audit_faults"
    ] == [fault]
    for found in (shown[2], call(config, "status").splitlines()[-1]):
        assert found == f"{folder.study_id}, round 2: b: its audit log went back."


def test_the_status_tells_the_last_auroc(config: ServerConfig, folder: StudyFolder) -> None:
    """Each task's AUROC on test patients stands there with its interval and its worst site."""
    record = RoundRecord(2, 1, trained=False)
    pooled = {"auroc": 0.8125, "n_patients": 64}
    per_site = {"north": {"auroc": 0.74}, "south": {"auroc": 0.86}}
    intervals = {"pooled": {"auroc": [0.701, 0.92]}}
    test = {"pooled": pooled, "per_site": per_site, "intervals": intervals}
    record.tasks = {"grade": {"test": test}}
    append(folder.path, record)
    found = json.loads(call(config, "status", "--json"))["studies"][folder.study_id]
    assert found["test_aurocs"]["grade"]["interval"] == [0.701, 0.92]
    words = ("grade", "64", "0.812", "0.920", "0.740 to 0.860", "north")
    assert all(word in call(config, "status") for word in words)


def test_a_damaged_history_does_not_hide_the_status(
    config: ServerConfig, folder: StudyFolder
) -> None:
    """The status says so and shows the rest; the command for the heads says what is wrong."""
    (folder.path / "history.jsonl").write_text("{}\n")
    found = json.loads(call(config, "status", "--json"))["studies"][folder.study_id]
    assert (found["audit_faults"], found["state"]) == (None, "waiting")
    assert "history cannot be read" in call(config, "status")
    with pytest.raises(OutputError, match="damaged"):
        call(config, "heads", "retina")


@pytest.mark.parametrize("command", ["resume", "stop", "heads", "export"])
def test_an_unknown_study_is_refused(
    config: ServerConfig, folder: StudyFolder, command: str
) -> None:
    """A study that the coordinator does not have is refused, with the names of those it has."""
    words = [command, "other", *(["out"] if command == "export" else [])]
    with pytest.raises(StudyError, match=folder.study_id):
        call(config, *words)


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    """Every command says that there is no coordinator where there is none."""
    commands = (
        ["start"],
        ["run", "x"],
        ["resume", "x"],
        ["stop", "x"],
        ["status"],
        ["heads", "x"],
        ["export", "x", "y"],
    )
    for words in commands:
        result = CliRunner().invoke(app, [*words, "--folder", str(tmp_path)])
        assert isinstance(result.exception, MissingFolderError | StudyError)
        assert isinstance(result.exception, RarefedError)


def test_the_command_line_waits_for_nothing_heavy() -> None:
    """For help, or to look at studies, the command line imports neither torch nor Flower."""
    script = (
        "import sys, server.cli, server.studies, server.follow, server.export\n"
        "print([name for name in ('torch', 'flwr', 'timm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"
