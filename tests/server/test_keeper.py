"""Laws of the keeper, held before a real SuperLink: one run at a time for each study that wants it.

No SuperExec runs here, so a run stays pending until the test ends it.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.processes import supervise
from common.study import Study
from server import flower, keeper
from server.config import ServerConfig, init_folder
from server.flower_services import flower_services
from server.keeper import STUDY_ID, Keeper
from server.staging import locked
from server.studies import ENDED, StudyFolder, create
from simulations.deployment import free_port

Bundle = Callable[[], bytes]
STUDY = Study.parse(
    {
        "name": "tiny",
        "rounds": 3,
        "backbone": {"name": "resnet18", "weights": "none"},
        "tasks": {"grade": {"modality": "fundus", "classes": ["none", "some"]}},
    }
)


@pytest.fixture
def bundle(tiny_bundle: bytes) -> Bundle:
    return lambda: tiny_bundle


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    folder = tmp_path_factory.mktemp("keeper") / "coordinator"
    address = f"127.0.0.1:{free_port()}"
    config = init_folder(folder, "trial", address, superlink_port=free_port())
    stop = threading.Event()
    options = {"status_file": config.processes_file, "stop": stop}
    superlink = flower_services(config)[0]
    thread = threading.Thread(target=supervise, args=([superlink],), kwargs=options)
    thread.start()
    until = time.monotonic() + 30
    while not flower.is_up(config) and time.monotonic() < until:
        time.sleep(0.1)
    try:
        yield config
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def config(coordinator: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerConfig]:
    """The coordinator without studies and without runs; its keeper looks at every tick."""
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "FIRST_WAIT", 0.0)
    yield coordinator
    for run_id in flower.active_runs(coordinator, STUDY_ID):
        flower.stop_run(coordinator, run_id)
    coordinator.studies.rename(coordinator.studies.with_name(f"old-{time.monotonic_ns()}"))
    coordinator.studies.mkdir(mode=0o700)


def runs_of(config: ServerConfig, folder: StudyFolder) -> list[int]:
    """Return the runs of a study that are not over, as Flower sees it."""
    active = flower.active_runs(config, STUDY_ID)
    return [run_id for run_id, study in active.items() if study == folder.study_id]


def tick(keeper: Keeper, times: int = 1) -> None:
    for _ in range(times):
        keeper.tick()


def test_a_study_has_one_run_at_a_time(config: ServerConfig, bundle: Bundle) -> None:
    """A study that is wanted gets a run, and no second one while that is not over."""
    folder = create(config, STUDY)
    tick(Keeper(config, bundle), times=3)
    (run_id,) = runs_of(config, folder)
    assert folder.control().run_ids == (run_id,)
    tick(Keeper(config, bundle), times=2)  # nor from another daemon, later
    assert runs_of(config, folder) == [run_id]


def test_a_run_that_ended_is_followed_by_another(config: ServerConfig, bundle: Bundle) -> None:
    """When Flower says that the run is over and the study is not, a new run is submitted."""
    folder = create(config, STUDY)
    one = Keeper(config, bundle)
    tick(one)
    (first,) = runs_of(config, folder)
    folder.write_progress("running", 1, 3)
    flower.stop_run(config, first)
    tick(one)
    (second,) = runs_of(config, folder)
    assert second != first
    assert folder.control().run_ids == (first, second)
    assert folder.progress().state == "waiting"
    assert folder.progress().round == 1


def test_a_new_run_waits_longer_after_each_failure(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """Before a new run there is a wait, doubled with each failure in a row."""
    monkeypatch.setattr(keeper, "FIRST_WAIT", 0.3)
    folder = create(config, STUDY)
    one = Keeper(config, bundle)
    tick(one)
    for wait in (0.3, 0.6):
        flower.stop_run(config, runs_of(config, folder)[0])
        began = time.monotonic()
        while not runs_of(config, folder):
            tick(one)
        assert time.monotonic() - began >= wait


@pytest.mark.parametrize("state", ENDED)
def test_what_has_ended_is_left(config: ServerConfig, state: str, bundle: Bundle) -> None:
    """A study that is paused, finished, stopped or failed gets no run, until it is wanted again."""
    folder = create(config, STUDY)
    folder.write_progress(state, 1, 3)  # type: ignore[arg-type]
    one = Keeper(config, bundle)
    tick(one, times=2)
    assert runs_of(config, folder) == []
    folder.want("run")
    tick(one)
    assert len(runs_of(config, folder)) == (0 if state == "finished" else 1)


def test_a_stop_ends_the_run_and_the_study(config: ServerConfig, bundle: Bundle) -> None:
    """What is not wanted any more is stopped in Flower, then called stopped; it can be resumed."""
    folder = create(config, STUDY)
    one = Keeper(config, bundle)
    tick(one)
    folder.want("stop")
    tick(one, times=2)
    assert runs_of(config, folder) == []
    assert folder.progress().state == "stopped"
    tick(one)
    assert runs_of(config, folder) == []
    folder.want("run")
    tick(one)
    assert len(runs_of(config, folder)) == 1


def test_a_study_that_only_fails_has_failed(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """After so many runs without a new round the study has failed; a round starts a new count."""
    monkeypatch.setattr(keeper, "MAX_FAILURES", 3)
    folder = create(config, STUDY)
    one = Keeper(config, bundle)
    for ends in range(5):
        tick(one)
        if ends == 2:
            folder.write_progress("running", 1, 3)
        flower.stop_run(config, runs_of(config, folder)[0])
    tick(one)
    assert folder.progress().state == "failed"
    assert "3 runs" in folder.progress().why
    assert runs_of(config, folder) == []


def test_a_run_that_was_not_noted_is_taken_over(config: ServerConfig, bundle: Bundle) -> None:
    """A run that was submitted just before the daemon was killed becomes the study's run."""
    folder = create(config, STUDY)
    run_id = flower.start_run(config, bundle(), {STUDY_ID: folder.study_id})
    tick(Keeper(config, bundle))
    assert runs_of(config, folder) == [run_id]
    assert folder.control().run_ids == (run_id,)


def test_a_server_app_may_take_its_time_to_end(config: ServerConfig, bundle: Bundle) -> None:
    """While an ended run's ServerApp is still at work, there is neither a new run nor an end."""
    folder = create(config, STUDY)
    one = Keeper(config, bundle)
    tick(one)
    with locked(folder.run_lock):
        flower.stop_run(config, runs_of(config, folder)[0])
        tick(one, times=3)
        assert runs_of(config, folder) == []
        folder.want("stop")
        tick(one, times=3)
        assert folder.progress().state == "waiting"
    tick(one)
    assert folder.progress().state == "stopped"


def test_a_dead_server_app_is_noticed(config: ServerConfig, bundle: Bundle) -> None:
    """A run whose ServerApp says that it is at work and holds no lock is ended and replaced."""
    folder = create(config, STUDY)
    one = Keeper(config, bundle)
    tick(one)
    (run_id,) = runs_of(config, folder)
    folder.write_progress("running", 1, 3)
    with locked(folder.run_lock):
        tick(one, times=5)
        assert runs_of(config, folder) == [run_id]
    tick(one)
    assert runs_of(config, folder) == [run_id]  # it may just be about to write its end
    tick(one, times=2)
    (replaced,) = runs_of(config, folder)
    assert replaced != run_id


def test_a_damaged_folder_harms_no_other(config: ServerConfig, bundle: Bundle) -> None:
    """A study whose files are damaged is passed over, and the next one gets its run."""
    damaged = create(config, STUDY.model_copy(update={"name": "a-damaged-one"}))
    damaged.progress_file.write_text("{")
    folder = create(config, STUDY)
    tick(Keeper(config, bundle))
    assert len(runs_of(config, folder)) == 1


def test_without_superlink_nothing_is_judged(tmp_path: Path, bundle: Bundle) -> None:
    """While SuperLink does not answer, no failure is counted and no state changes."""
    alone = init_folder(tmp_path / "c", "trial", "127.0.0.1:21001", superlink_port=free_port())
    folder = create(alone, STUDY)
    before = folder.control_file.read_text(), folder.progress_file.read_text()
    tick(Keeper(alone, bundle), times=3)
    assert (folder.control_file.read_text(), folder.progress_file.read_text()) == before
    assert json.loads(before[0])["run_ids"] == []
