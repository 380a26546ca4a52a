"""Laws of a deployed federation as a whole: it ends where the simulation ends, whatever dies."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import OutputError
from common.study import Study
from server.studies import toml_text
from simulations import namespaces, rehearsal
from simulations.kills import ALL_KILLS, KILLS, MOMENTS, PROCESSES, Kill

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def rehearse(out: Path, kills: tuple[Kill, ...], *, separate: bool = False) -> dict[str, Any]:
    console = Console(file=(out.parent / "console.txt").open("w", encoding="utf-8"))
    found = rehearsal.run(out, images=None, kills=kills, separate=separate, console=console)
    result: dict[str, Any] = found["rehearsal"]
    return result


def test_every_process_is_killed_at_every_moment() -> None:
    """The short list has each kind of process once, the long one each at each moment."""
    assert [(kill.who, kill.process) for kill in KILLS] == list(PROCESSES)
    assert len(set(ALL_KILLS)) == len(PROCESSES) * len(MOMENTS)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a short name: the path of a socket within may have 107 bytes."""
    return tmp_path_factory.mktemp("r")


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    """A rehearsal begins in an empty folder, or not at all."""
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(OutputError, match="not empty"):
        rehearse(tmp_path, ())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_study_of_a_rehearsal_is_a_study(tmp_path: Path) -> None:
    """What is written for the commands reads back as the study that is then simulated."""
    tasks = {"brain": {"modality": "MR", "classes": ["no", "yes"]}}
    study = rehearsal.study_of(tasks, rounds=3, epochs=2)
    (tmp_path / "study.toml").write_text(toml_text(study), encoding="utf-8")
    assert Study.load(tmp_path / "study.toml").digest() == study.digest()
    assert (study.rounds, study.training.local_epochs, list(study.tasks)) == (3, 2, ["brain"])


@pytest.mark.slow
@needs_nginx
def test_a_deployed_study_ends_as_its_simulation(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and figures are the simulation's to the last bit, though processes were killed."""
    monkeypatch.chdir(short)
    kills = (Kill("coordinator", "serverapp"), Kill("site", "vault"), Kill("site", "clientapp"))
    found = rehearse(Path("rehearsal"), kills)
    assert found["same_model"]
    assert found["same_figures"]
    assert [entry["process"] for entry in found["kills"]] == ["serverapp", "vault", "clientapp"]


@pytest.mark.slow
@needs_nginx
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_bad_line_changes_nothing(short: Path) -> None:
    """With one hospital behind 4 Mbit/s and 1 % loss, the model is still the simulation's."""
    if not namespaces.available():
        pytest.skip("this machine allows no network namespaces, or lacks ip, tc or nft")
    found = rehearse(short / "rehearsal", (), separate=True)
    assert found["namespaces"]
    assert found["same_model"]
    assert found["same_figures"]
