"""The site's ledger: every training stands in it before it begins, for ever.

A line says what a training costs the privacy of whom: noise, share drawn, steps, and the cohort of
patients (``client/cohorts.py``). It is written and synced before any noise is drawn, so that a kill
can lose work and never budget; what was spent is composed from the lines each time. Lines are
chained (``common/chained_log.py``) and outlive rounds, restarts and studies.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.cohorts import among, largest_fit, load_cohort, save_cohort, worst_epsilon
from client.config import Limits
from client.ledger_entries import (
    SLACK,
    Entered,
    Left,
    Spending,
    Training,
    check_epsilon,
    check_number,
    check_turn,
    delta_of,
    parts_of,
    privacy_of,
    training_of,
)
from client.plan import Begun, Plan
from common.chained_log import ChainedLog
from common.errors import ChainError, DataError
from common.file_lock import locked
from common.study import Study

LEDGER_FILE = "ledger.jsonl"
LOCK_FILE = "ledger.lock"
LOCK_SECONDS = 20.0
"""How long a process waits for another that is entering a training: it composes meanwhile."""
_MOST_ROUNDS = 100_000


class Ledger:
    """The ledger in a site's state folder; several processes may use it.

    Args:
        state: The site's state folder.

    Raises:
        ChainError: The ledger is damaged.
        OSError: It cannot be read.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._log = ChainedLog(state / LEDGER_FILE)
        self._log.repair()  # a line torn by a crash: its training never began
        self._log.entries()

    def trainings(self, study_digest: str) -> set[str]:
        """Return the digests of the orders that were trained for a study.

        Raises:
            ChainError: The ledger is damaged.
        """
        return {found.order for found in self._entered() if found.study == study_digest}

    def enter(
        self,
        study: Study,
        number: int,
        order_digest: str,
        patients: Mapping[str, AbstractSet[str]],
        *,
        limits: Limits,
        plan: Plan | None,
    ) -> Entered:
        """Enter a training that is about to begin, if the hospital's limits leave room for it.

        The very same order, trained again after a crash, gets a line of its own. Among the
        number of trainings it counts once; it draws new noise, so its epsilon counts each time.

        Args:
            study: The study.
            number: The round.
            order_digest: SHA-256 of the order as it was sealed.
            patients: Keyed hashes of the training patients by task.
            limits: What the hospital insists on.
            plan: How the training is made private; None without privacy.

        Raises:
            BudgetError: The study has had all of its trainings at this site, a patient would
                spend more than the study or the hospital allows, or the study is private and has
                gone on past this round. Nothing is written then.
            ChainError: The ledger, or a cohort that it names, is damaged.
            DataError: It cannot be used: the disk is full or read-only.
            ServiceError: Another process did not let go of the ledger in time.
        """
        cohort = frozenset[str]().union(*patients.values())
        with self._alone():
            before = self._entered()
            check_number(study, order_digest, before, limits.extra_rounds)
            spent = None
            if plan is not None:
                check_turn(study, number, before)
                spent = check_epsilon(
                    study, before, self._cohorts(before), cohort, limits=limits, plan=plan
                )
            entry = {
                "event": "training",
                "study": study.digest(),
                "name": study.name,
                "round": number,
                "order": order_digest,
                "patients": {task: len(hashes) for task, hashes in patients.items()},
                "cohort": save_cohort(self._state, cohort),
                "privacy": None if plan is None else privacy_of(plan),
            }
            return Entered(self._log.append(entry), spent)

    def check_writable(self) -> None:
        """Find out whether a training could be entered, before its images are read.

        Raises:
            DataError: The disk is full or read-only, or the file is another user's.
            ServiceError: Another process did not let go of the ledger in time.
        """
        probe = self._state / f".{LEDGER_FILE}.probe"
        with self._alone():
            try:
                probe.write_bytes(bytes(1 << 20))  # room for a cohort of 30,000 patients
            finally:
                probe.unlink(missing_ok=True)
            if self._log.path.exists():
                os.close(os.open(self._log.path, os.O_RDWR | os.O_CLOEXEC))

    def studies(self) -> dict[str, str]:
        """Return the names of the studies that were ever trained, by digest, the oldest first.

        Raises:
            ChainError: The ledger is damaged.
        """
        return {found.study: found.name for found in self._entered()}

    def first_plan(self, study_digest: str) -> Begun | None:
        """Return how a study's first private training was made; None when there was none.

        Raises:
            ChainError: The ledger is damaged.
        """
        return next(
            (
                Begun(found.mechanism, found.epsilon, found.delta)
                for found in self._entered()
                if found.study == study_digest and found.mechanism is not None
            ),
            None,
        )

    def plan_limits(self, study_digest: str) -> tuple[float, float] | None:
        """Return a study's epsilon and delta as of its last training; None without privacy.

        Raises:
            ChainError: The ledger is damaged.
        """
        private = self._private(study_digest)
        return (private[-1].epsilon, private[-1].delta) if private else None

    def spent(self, study_digest: str | None = None, delta: float | None = None) -> Spending:
        """Return what a study has cost the patients of this site, or all studies together.

        Args:
            study_digest: The study; left out, all of them.
            delta: The delta of the epsilon; left out, 1 / patients^1.1 of all patients who were
                ever entered.

        Raises:
            ChainError: The ledger, or a cohort that it names, is damaged.
        """
        entered = self._entered()
        known = self._cohorts(entered)
        if delta is None:
            delta = delta_of(known)
        meant = [found for found in entered if study_digest in (None, found.study)]
        cohorts = {found.cohort: known[found.cohort] for found in meant if found.cohort}
        return Spending(
            trainings=len(meant),
            without_privacy=sum(found.mechanism is None for found in meant),
            unknown=sum(not found.cohort for found in meant),
            patients=len(frozenset[str]().union(*cohorts.values())),
            epsilon=worst_epsilon(parts_of(meant), cohorts, [], delta),
            delta=delta,
        )

    def rounds_left(self, study_digest: str, limits: Limits) -> Left | None:
        """Return how many more rounds like a study's last one fit; None without privacy.

        Raises:
            ChainError: The ledger, or a cohort that it names, is damaged.
        """
        private = self._private(study_digest)
        last = private[-1] if private else None
        if last is None or last.mechanism is None:
            return None
        entered = self._entered()
        known = self._cohorts(entered)
        theirs = among(known, known[last.cohort])
        most = last.epsilon * (1 + SLACK)
        own = largest_fit(parts_of(private), theirs, last.mechanism, last.delta, most, _MOST_ROUNDS)
        if limits.max_epsilon is None:
            return Left(own, None)
        delta = limits.delta or delta_of(known)
        site = largest_fit(
            parts_of(entered), theirs, last.mechanism, delta, limits.max_epsilon, own
        )
        return Left(own, site)

    def torn(self) -> list[dict[str, Any]]:
        """Return the entries that tell of a torn end: ``at``, ``file`` and ``sha256`` of each.

        Raises:
            ChainError: The ledger is damaged.
        """
        keys = ("at", "file", "sha256")
        entries = self._log.entries()
        return [{key: e.get(key, "") for key in keys} for e in entries if e.get("event") == "torn"]

    def _entered(self) -> list[Training]:
        """Return all trainings, the oldest first."""
        entries = [e for e in self._log.entries() if e.get("event") == "training"]
        try:
            return [training_of(entry) for entry in entries]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ChainError(
                f"{self._log.path} holds a training that is not as this version writes it: "
                f"{error!r}.",
                remedy="Install the version of rarefed that wrote it, or a newer one.",
            ) from error

    def _private(self, study_digest: str) -> list[Training]:
        return [e for e in self._entered() if e.study == study_digest and e.mechanism]

    def _cohorts(self, trainings: Sequence[Training]) -> dict[str, frozenset[str]]:
        digests = {found.cohort for found in trainings if found.cohort}
        return {digest: load_cohort(self._state, digest) for digest in sorted(digests)}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the ledger: what is read in here stays true until it is written.

        Raises:
            DataError: A file in the state folder cannot be read or written.
            ServiceError: Another process did not let go in time.
        """
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self._state / LOCK_FILE, seconds=LOCK_SECONDS):
                yield
        except OSError as error:
            raise DataError(
                f"Cannot use the ledger in {self._state}: {error.strerror}.",
                remedy="Make room on its disk, and let the user who runs the vault write there.",
            ) from error
