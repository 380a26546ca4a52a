"""Laws of following a study: it ends when the study does, and says how."""

import dataclasses
import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import FederationError, NotRunningError, QuorumError, RarefedError
from common.study import Study
from server import daemon_lock, follow, history
from server.config import ServerConfig, init_folder
from server.history import RoundRecord
from server.studies import StudyFolder, create


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return init_folder(tmp_path / "c", "trial", "127.0.0.1:21001")


@pytest.fixture
def folder(config: ServerConfig) -> StudyFolder:
    study = Study.parse(
        {
            "name": "retina",
            "rounds": 2,
            "backbone": {"name": "resnet18", "weights": "none"},
            "tasks": {"grade": {"modality": "fundus", "classes": ["none", "some"]}},
        }
    )
    return create(config, study)


def test_a_figure_stands_with_its_interval() -> None:
    """Where there is an interval it is told, and where there is none nothing is."""
    assert follow.with_interval(0.8, None) == "0.800"
    assert follow.with_interval(0.8, [0.75, 0.8504]) == "0.800 [0.750, 0.850]"


def record(number: int) -> RoundRecord:
    found = RoundRecord(number, number - 1, trained=number <= 2, combined=number <= 2)
    found.asked, found.answered, found.silent = ["east", "north"], ["north"], ["east"]
    found.tasks = {"grade": {"validation": {"pooled": {"auroc": 0.5}}}}
    found.seconds = {"total": 3.0}
    return found


def text_of(config: ServerConfig, folder: StudyFolder) -> str:
    out = io.StringIO()
    follow.follow(config, folder, Console(file=out, width=200))
    return out.getvalue()


def test_every_round_is_a_line_until_the_end(
    config: ServerConfig, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds that come in while a study is followed are shown once each, then its end."""
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)

    def study() -> None:
        time.sleep(1.0)  # rounds that were there before it began are not shown
        for number in (1, 2, 3):
            history.append(folder.path, record(number))
            folder.write_progress("running", min(number, 2), 2, sites=["north"])
            time.sleep(0.05)
        folder.change_state("finished")

    with daemon_lock.hold(config):
        thread = threading.Thread(target=study)
        thread.start()
        shown = text_of(config, folder)
        thread.join()
    lines = [line for line in shown.splitlines() if "AUROC" in line]
    assert lines == [
        "round 1: 1 of 2 sites; silent: east; grade AUROC 0.500 (validation); 3 s",
        "round 2: 1 of 2 sites; silent: east; grade AUROC 0.500 (validation); 3 s",
        "final measurement: 1 of 2 sites; silent: east; grade AUROC 0.500 (validation); 3 s",
    ]


def test_a_best_model_is_named() -> None:
    """The measurement of an earlier round's model says whose it is."""
    found = dataclasses.asdict(record(3))
    assert follow.described(found).startswith("final measurement: 1 of 2 sites")
    found |= {"round": 4, "model_round": 1}
    assert follow.described(found).startswith(
        "final measurement (the model of round 1, the best): 1 of 2 sites"
    )


def test_a_half_written_line_is_not_read(config: ServerConfig, folder: StudyFolder) -> None:
    """A line of the history that is just being written waits for its end."""
    (folder.path / "history.jsonl").write_text('{"round": 1, "tra')
    folder.change_state("finished")
    assert "round 1" not in text_of(config, folder)


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("paused", QuorumError, "is paused after round 1: too few"),
        ("failed", FederationError, "has failed after round 1: too few"),
        ("stopped", FederationError, "was stopped after round 1"),
    ],
)
def test_an_end_before_time_is_an_error(
    config: ServerConfig, folder: StudyFolder, state: str, error: type[RarefedError], says: str
) -> None:
    """A study that is paused, failed or stopped ends the following with an error and a remedy."""
    folder.write_progress(state, 1, 2, why="too few")  # type: ignore[arg-type]
    with pytest.raises(error, match=says) as caught:
        text_of(config, folder)
    assert f"rarefed-server resume {folder.study_id}" in caught.value.remedy


def test_without_a_daemon_the_following_ends(
    config: ServerConfig, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the daemon is away for long, nobody waits for ever."""
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(follow, "DAEMON_SECONDS", 0.1)
    with pytest.raises(NotRunningError, match="the study waits"):
        text_of(config, folder)
