"""Laws of a study's folder: made once, meets its file exactly, and no word in it gets lost."""

import threading
import tomllib
from pathlib import Path

import pytest

from common.errors import StudyError
from common.study import Study
from server import studies
from server.config import ServerConfig, init_folder
from server.staging import locked
from server.studies import ENDED, STATES, StudyFolder, create

STUDY = """
name = "retina"
rounds = 3
seed = 7

[backbone]
name = "resnet18"
weights = "start.safetensors"
mean = [0.5, 0.25, 1e-5]
std = [0.5, 0.25, 0.125]

[tasks.grade]
modality = "fundus"
classes = ["none", "mild \\"quoted\\"", "sévère \\u007F\\n"]

[tasks.haemorrhage]
modality = "CT"
classes = ["no", "yes"]
positive = "yes"
window = [40.0, 80.0]

[federation]
strategy = "fedavgm"
options = { server_momentum = 0.5 }
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return init_folder(tmp_path_factory.mktemp("c") / "coordinator", "trial", "127.0.0.1:21001")


def study_of(folder: Path, **changes: object) -> Study:
    file = folder / "study.toml"
    file.write_text(STUDY)
    return Study.load(file).model_copy(update=changes)


@pytest.fixture
def folder(config: ServerConfig, tmp_path: Path) -> StudyFolder:
    """A new study for each test: the name is the test's folder's."""
    name = tmp_path.name.replace("test_", "").lower()[:50]
    return create(config, study_of(tmp_path, name=name))


def test_the_written_study_is_the_agreed_one(config: ServerConfig, tmp_path: Path) -> None:
    """The folder's study file gives back the same study; a path of weights has become absolute."""
    study = study_of(tmp_path)
    made = create(config, study)
    written = Study.load(made.study_file)
    assert written.digest() == study.digest()
    assert written.tasks == study.tasks
    assert written.backbone.weights_file == tmp_path / "start.safetensors"
    assert tomllib.loads(made.study_file.read_text())["seed"] == 7


def test_a_study_has_one_folder(config: ServerConfig, folder: StudyFolder) -> None:
    """The same study finds its folder again with what it holds; a changed one gets its own."""
    folder.write_progress("running", round=2, rounds=3, sites=["north"])
    study = Study.load(folder.study_file)
    again = create(config, study)
    assert again.path == folder.path
    assert again.progress().round == 2
    other = create(config, study.model_copy(update={"seed": 8}))
    assert other.path != folder.path
    assert other.progress() == studies.Progress(rounds=3, at=other.progress().at)


def test_a_study_counts_once_it_is_prepared(tmp_path: Path) -> None:
    """What is prepared is there before the daemon can see the study; where it fails, no folder."""
    config = init_folder(tmp_path / "coordinator", "trial", "127.0.0.1:21001")
    study = study_of(tmp_path)
    seen = []

    def fail(path: Path) -> None:
        path.joinpath("part").touch()
        seen.append(studies.study_ids(config))
        raise StudyError("no")

    with pytest.raises(StudyError, match="no"):
        create(config, study, prepare=fail)
    assert seen == [[]]
    assert not list(config.studies.iterdir())
    found = create(config, study, prepare=lambda path: path.joinpath("done").touch())
    assert (found.path / "done").exists()


def test_progress_comes_back_as_written(folder: StudyFolder) -> None:
    """What is written of the progress is read again, with the time; another state keeps it."""
    for state in STATES:
        folder.write_progress(state, round=1, rounds=3, why="why", sites=["north", "south"])
        assert folder.progress().state == state
    folder.change_state("paused", "too few")
    found = folder.progress()
    assert (found.state, found.round, found.rounds) == ("paused", 1, 3)
    assert (found.sites, found.why) == (("north", "south"), "too few")
    assert found.at.endswith("+00:00")


def test_a_person_wakes_what_has_ended(folder: StudyFolder) -> None:
    """Wanted again, a paused, stopped or failed study waits for a run; a finished one stays so."""
    for state in ENDED:
        folder.write_progress(state, round=1, rounds=3)
        folder.want("stop")
        assert folder.progress().state == state
        folder.want("run")
        assert folder.progress().state == ("finished" if state == "finished" else "waiting")
        assert folder.progress().round == 1


def test_failures_count_until_a_round_is_done(folder: StudyFolder) -> None:
    """Runs that end early are counted once each, anew after a round and when a person resumes."""
    counts = []
    for number, rounds_done in enumerate([0, 0, 1, 1], start=1):
        folder.note_run(number)
        folder.write_progress("running", round=rounds_done, rounds=3)
        counts.append(folder.note_failure(number))
        assert folder.note_failure(number) == counts[-1]
    assert counts == [1, 2, 1, 2]
    assert folder.control().run_ids == (1, 2, 3, 4)
    folder.want("run")
    assert folder.control().failures == 0


def test_no_word_is_lost_between_two_writers(folder: StudyFolder) -> None:
    """Writers at the same time lose none of each other's changes."""

    def write(first: int) -> None:
        for number in range(first, first + 20):
            folder.note_run(number)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.control().run_ids) == [*range(20), *range(100, 120)]


def test_a_study_is_found_by_the_start_of_its_id(config: ServerConfig, folder: StudyFolder) -> None:
    """An id or an unmistakable beginning of one names a study; anything else is refused."""
    assert StudyFolder.find(config, folder.study_id).path == folder.path
    assert StudyFolder.find(config, folder.study_id[:-3]).path == folder.path
    with pytest.raises(StudyError, match="no study"):
        StudyFolder.find(config, "nothing-like-it")
    create(config, Study.load(folder.study_file).model_copy(update={"seed": 9}))
    with pytest.raises(StudyError, match="several"):
        StudyFolder.find(config, folder.study_id[:-8])


@pytest.mark.parametrize("name", ["", ".", "..", "../studies", "/etc", "missing", "a/../b"])
def test_a_study_id_leads_nowhere_else(config: ServerConfig, name: str) -> None:
    """An id that is no folder among the studies is refused, whatever path it spells."""
    with pytest.raises(StudyError):
        StudyFolder(config, name)


def test_a_studys_files_are_the_owners(folder: StudyFolder) -> None:
    """Folder and files are closed to other users."""
    folder.note_run(1)
    folder.write_progress("running", round=1, rounds=3)
    for path in (folder.path, *folder.path.iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_a_study_at_work_can_be_told(folder: StudyFolder) -> None:
    """A study is being run exactly while somebody holds its lock."""
    assert not folder.is_being_run()
    with locked(folder.run_lock):
        assert folder.is_being_run()
    assert not folder.is_being_run()
