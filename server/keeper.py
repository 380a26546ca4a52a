"""The keeper: gives every study that is to run a Flower run, and a new one when that has ended.

Flower resumes nothing: when its ServerApp or SuperLink dies, the run is over. The study is not;
its next run goes on from the checkpoint. How a run stands, Flower's own status says.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import NotRunningError
from common.files import write_atomic
from server import flower
from server.bundle import build_bundle
from server.config import ServerConfig
from server.studies import ENDED, Control, StudyFolder, study_ids

STUDY_ID = "study-id"
"""Key of the run's configuration that names the study's folder."""
LOOK_SECONDS = 2.0
MAX_FAILURES = 10
"""Runs in a row without a new round after which a study has failed."""
LOOKS_MISSED = 2
"""Looks in a row at which a ServerApp must be missing to count as dead."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0
"""Seconds before a new run; doubled with each failure in a row."""

log = logging.getLogger("rarefed.keeper")


@dataclass
class Keeper:
    """Looks after the studies of one coordinator; call ``tick`` again and again."""

    config: ServerConfig
    bundle: Callable[[], bytes] = build_bundle
    _look_at: float = 0.0
    _due: dict[str, float] = field(default_factory=dict)
    """When the next run of a study may begin, by the monotonic clock."""
    _ended: set[int] = field(default_factory=set)
    """Runs that Flower has called finished; it never takes that back."""
    _missed: dict[int, int] = field(default_factory=dict)
    """How many looks in a row a run's ServerApp was not there."""

    def tick(self) -> None:
        """Look after every study, at most every two seconds."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for study_id in study_ids(self.config):
            try:
                self._tend(StudyFolder(self.config, study_id))
            except NotRunningError:
                return  # SuperLink is on its way; nothing can be said of any run
            except Exception:
                # One damaged folder or refused run must not end the others' supervision.
                log.exception("study %s cannot be looked after", study_id)

    def _tend(self, folder: StudyFolder) -> None:
        control, progress = folder.control(), folder.progress()
        run_id = control.run_ids[-1] if control.run_ids else None
        if control.wanted == "stop":
            self._stop(folder, run_id)
        elif progress.state not in ENDED:
            if run_id is None or self._has_ended(folder, run_id):
                # Flower's word that a run is over is some seconds ahead of its ServerApp's end.
                if not folder.is_being_run():
                    self._go_on(folder, control)
            elif progress.state in ("enrolling", "running"):
                self._look_for_server_app(folder, run_id)

    def _look_for_server_app(self, folder: StudyFolder, run_id: int) -> None:
        """End a run whose ServerApp is dead: by itself, Flower waits a minute for a heartbeat.

        While the study's state says that it is at work, its ServerApp holds the study's lock.
        """
        missed = 0 if folder.is_being_run() else self._missed.get(run_id, 0) + 1
        self._missed[run_id] = missed
        if missed >= LOOKS_MISSED:
            log.warning("study %s: the ServerApp of run %d is gone", folder.study_id, run_id)
            flower.stop_run(self.config, run_id)

    def _stop(self, folder: StudyFolder, run_id: int | None) -> None:
        if run_id is not None and not self._has_ended(folder, run_id):
            flower.stop_run(self.config, run_id)
        elif folder.progress().state not in ENDED and not folder.is_being_run():
            folder.change_state("stopped")

    def _has_ended(self, folder: StudyFolder, run_id: int) -> bool:
        if run_id not in self._ended:
            status = flower.run_status(self.config, run_id)
            if not status.ended:
                return False
            log.info("run %d has ended: %s %s", run_id, status.sub_status, status.details)
            self._save_log(folder, run_id)
            self._ended.add(run_id)
        return True

    def _save_log(self, folder: StudyFolder, run_id: int) -> None:
        """Keep what the ServerApp logged where a person looks for it."""
        text = "".join(flower.run_log(self.config, run_id))
        if text:
            write_atomic(folder.path / "logs" / f"run-{run_id}.log", text.encode(), mode=0o600)

    def _go_on(self, folder: StudyFolder, control: Control) -> None:
        """Submit a run, once the wait after the failures of before is over."""
        now = time.monotonic()
        if control.run_ids:
            failures = folder.note_failure(control.run_ids[-1])
            if failures >= MAX_FAILURES:
                why = (
                    f"{failures} runs ended without finishing a round; see {folder.path / 'logs'}."
                )
                folder.change_state("failed", why)
                return
            wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT) if failures else 0.0
            if now < self._due.setdefault(folder.study_id, now + wait):
                return
        self._due.pop(folder.study_id, None)
        self._submit(folder)

    def _submit(self, folder: StudyFolder) -> None:
        # A run that was submitted just before this process was killed may not stand in the
        # study's folder yet: two at a time must never be.
        active = flower.active_runs(self.config, STUDY_ID)
        run_id = next((run for run, study in active.items() if study == folder.study_id), None)
        if run_id is None:
            folder.change_state("waiting")
            run_id = flower.start_run(self.config, self.bundle(), {STUDY_ID: folder.study_id})
        folder.note_run(run_id)
        log.info("study %s: run %d submitted", folder.study_id, run_id)
