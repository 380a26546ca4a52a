"""The studies of a coordinator: one folder each, with what is wanted and how far it has come.

Three parties meet here through small files: the commands write what is wanted, the keeper
(``server/keeper.py``) starts and stops Flower runs accordingly, and the ServerApp of such a run
writes how far it has come. The study's folder is what goes on; a Flower run is one attempt.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

import tomli_w

from common.errors import OutputError, StudyError
from common.file_lock import locked
from common.files import write_atomic, write_json
from common.study import Study
from server.config import ServerConfig

State = Literal["waiting", "enrolling", "running", "paused", "finished", "stopped", "failed"]
"""``waiting`` for a Flower run, ``enrolling`` sites, ``running`` rounds; ``paused`` for want of
sites until a person resumes it; ``finished``; ``stopped`` by a person; ``failed`` for good."""
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("paused", "finished", "stopped", "failed")
"""States that a study leaves only when a person says so."""

DIGEST_DIGITS = 8
RUNS_KEPT = 100


@dataclass(frozen=True)
class Progress:
    """How far a study has come."""

    state: State = "waiting"
    round: int = 0
    """Rounds that are done."""
    rounds: int = 0
    """Rounds that the study has."""
    sites: tuple[str, ...] = ()
    """Sites that answered in the last round."""
    why: str = ""
    """Why it is paused, has failed or stopped early, for the person at the coordinator."""
    at: str = ""
    """When this was written, UTC."""


@dataclass(frozen=True)
class Control:
    """What is wanted of a study, and the Flower runs that tried."""

    wanted: Literal["run", "stop"] = "run"
    run_ids: tuple[int, ...] = ()
    """Flower's run ids, the newest last."""
    failures: int = 0
    """Runs in a row that ended without finishing a round."""
    round: int = 0
    """Rounds that were done when the newest run began."""
    judged: int = 0
    """The last run whose failure was counted."""


class StudyFolder:
    """The folder of one study.

    Args:
        config: The coordinator.
        study_id: Name of the folder among the coordinator's studies.

    Raises:
        StudyError: The coordinator has no such study.
    """

    def __init__(self, config: ServerConfig, study_id: str) -> None:
        self.study_id = study_id
        self.path = config.studies / study_id
        # The id comes from a command line or a run's configuration: one name, and no way out.
        if Path(study_id).name != study_id or not self.study_file.is_file():
            raise _unknown(config, study_id)

    @property
    def study_file(self) -> Path:
        """The study, with an absolute path of its weights."""
        return self.path / "study.toml"

    @property
    def progress_file(self) -> Path:
        """How far the study has come."""
        return self.path / "progress.json"

    @property
    def control_file(self) -> Path:
        """What is wanted of the study."""
        return self.path / "control.json"

    @property
    def run_lock(self) -> Path:
        """Held by the ServerApp that is at work on the study."""
        return self.path / ".run.lock"

    def progress(self) -> Progress:
        """Return how far the study has come."""
        values = _read(self.progress_file)
        return Progress(**{**values, "sites": tuple(values.get("sites", ()))})

    def write_progress(
        self,
        state: State,
        round: int,  # noqa: A002 - the word of the field
        rounds: int,
        why: str = "",
        sites: Sequence[str] = (),
    ) -> None:
        """Write down how far the study has come.

        Args:
            state: What it is doing.
            round: Rounds that are done.
            rounds: Rounds that the study has.
            why: Why it is paused or failed.
            sites: Sites that answered in the last round.
        """
        progress = Progress(state, round, rounds, tuple(sites), why, _now())
        write_json(self.progress_file, asdict(progress), mode=0o600)

    def change_state(self, state: State, why: str = "") -> None:
        """Write another state and keep the rest of the progress."""
        done = self.progress()
        self.write_progress(state, done.round, done.rounds, why, done.sites)

    def control(self) -> Control:
        """Return what is wanted."""
        values = _read(self.control_file)
        return Control(**{**values, "run_ids": tuple(values.get("run_ids", ()))})

    def want(self, wanted: Literal["run", "stop"]) -> None:
        """Say what is wanted; to run again also forgets the failures of before."""
        with self._changing() as control:
            self._write(replace(control, wanted=wanted, failures=0))
        if wanted == "run" and self.progress().state in ("paused", "stopped", "failed"):
            self.change_state("waiting")

    def note_run(self, run_id: int) -> None:
        """Note that a Flower run of this study has been submitted."""
        with self._changing() as control:
            run_ids = (*control.run_ids, run_id)[-RUNS_KEPT:]
            self._write(replace(control, run_ids=run_ids, round=self.progress().round))

    def note_failure(self, run_id: int) -> int:
        """Count a run that ended too early, once; return how many did without a new round."""
        with self._changing() as control:
            if control.judged == run_id:
                return control.failures
            came_on = self.progress().round > control.round
            failures = 1 if came_on else control.failures + 1
            self._write(replace(control, failures=failures, judged=run_id))
        return failures

    def is_being_run(self) -> bool:
        """Say whether a ServerApp holds the study's lock, as it does while it is at work."""
        handle = os.open(self.run_lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @contextmanager
    def _changing(self) -> Iterator[Control]:
        """Lock the control file against other processes, which change it too."""
        with locked(self.path / ".control.lock"):
            yield self.control()

    def _write(self, control: Control) -> None:
        write_json(self.control_file, asdict(control), mode=0o600)

    @classmethod
    def find(cls, config: ServerConfig, name: str) -> Self:
        """Return the study of this id, or the only one whose id begins so.

        Raises:
            StudyError: None does, or several do.
        """
        found = [i for i in study_ids(config) if i == name] or [
            i for i in study_ids(config) if i.startswith(name)
        ]
        if len(found) != 1:
            raise _unknown(config, name, found)
        return cls(config, found[0])


def create(
    config: ServerConfig, study: Study, prepare: Callable[[Path], None] | None = None
) -> StudyFolder:
    """Return the folder of a study; it is made when the coordinator sees the study first.

    Args:
        config: The coordinator.
        study: From ``Study.load``. Another study with the same digest is the same study.
        prepare: Called with the folder before it counts as a study, whose rounds the daemon
            would begin; when it fails, no folder stays.

    Raises:
        OutputError: The folder cannot be written.
    """
    study_id = f"{study.name}-{study.digest()[:DIGEST_DIGITS]}"
    folder = config.studies / study_id
    file = folder / "study.toml"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            # Before the study file: a folder without one counts as none.
            _prepare(folder, prepare)
            first = Progress(rounds=study.rounds, at=_now())
            write_json(folder / "control.json", asdict(Control()), mode=0o600)
            write_json(folder / "progress.json", asdict(first), mode=0o600)
            write_atomic(file, toml_text(study.with_files(Path.absolute)).encode(), mode=0o600)
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder}: {error.strerror}.",
            remedy="Free space, or run the command as the coordinator's own user.",
        ) from error
    return StudyFolder(config, study_id)


def _prepare(folder: Path, prepare: Callable[[Path], None] | None) -> None:
    if prepare is not None:
        try:
            prepare(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def study_ids(config: ServerConfig) -> list[str]:
    """Return the ids of all studies that the coordinator has, in order."""
    return sorted(path.parent.name for path in config.studies.glob("*/study.toml"))


def toml_text(study: Study) -> str:
    """Write a study as TOML."""
    return tomli_w.dumps(study.model_dump(mode="json", exclude_none=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return values


def _unknown(config: ServerConfig, name: str, found: Sequence[str] = ()) -> StudyError:
    known = ", ".join(found or study_ids(config)) or "none"
    several = "several studies whose ids begin with" if found else "no study"
    return StudyError(
        f"The coordinator in {config.folder} has {several} {name!r}.",
        remedy=f"Give the id of one of these: {known}. A new study begins with its file: "
        "rarefed-server run study.toml",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
