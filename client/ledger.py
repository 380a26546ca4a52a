"""The site's ledger: every training stands in it before it begins, for ever.

This is the thin form, which counts trainings; what each costs in privacy comes with the privacy
issue. Lines are chained (``common/chained_log.py``) and outlive rounds, restarts and studies.
"""

from collections.abc import Mapping
from pathlib import Path

from common.chained_log import ChainedLog
from common.errors import BudgetError
from common.study import Study

LEDGER_FILE = "ledger.jsonl"


class Ledger:
    """The ledger in a site's state folder.

    Args:
        state: The site's state folder.

    Raises:
        ChainError: The ledger is damaged.
        OSError: It cannot be read.
    """

    def __init__(self, state: Path) -> None:
        self._log = ChainedLog(state / LEDGER_FILE)
        self._log.repair()  # a line torn by a crash: its training never began
        self._log.entries()

    def trainings(self, study_digest: str) -> set[str]:
        """Return the digests of the orders that were trained for a study.

        Raises:
            ChainError: The ledger is damaged.
        """
        return {
            entry["order"]
            for entry in self._log.entries()
            if entry.get("event") == "training" and entry["study"] == study_digest
        }

    def enter(
        self,
        study: Study,
        number: int,
        order_digest: str,
        patients: Mapping[str, int],
        *,
        extra_rounds: int,
    ) -> None:
        """Enter a training that is about to begin, if the hospital's limit leaves room for it.

        The very same order, trained again after a crash, gets a line of its own and counts once:
        it computes the same numbers from the same patients.

        Args:
            study: The study.
            number: The round.
            order_digest: SHA-256 of the order as it was sealed.
            patients: Training patients by task.
            extra_rounds: Trainings beyond the study's own rounds that the hospital allows.

        Raises:
            BudgetError: The study has had all of its trainings at this site.
            ChainError: The ledger is damaged.
            OSError: It cannot be written.
        """
        digest = study.digest()
        done, allowed = self.trainings(digest), study.rounds + extra_rounds
        if order_digest not in done and len(done) >= allowed:
            raise BudgetError(
                f"Study {study.name} has had {len(done)} trainings at this site; "
                f"{study.rounds} rounds and {extra_rounds} extra are allowed.",
                remedy="Ask the coordinator why; then raise limits.extra_rounds in site.toml, "
                "if you agree.",
            )
        self._log.append(
            {
                "event": "training",
                "study": digest,
                "name": study.name,
                "round": number,
                "order": order_digest,
                "patients": dict(patients),
            }
        )
