"""The site's audit log: what was asked of the vault, by whom it was sealed, and what went out.

Each order with its reply is one line: study, round, kind and digest of the order; what was decided,
and the code if it is a reason; of each array group that went its digest and bytes; which metrics
went and which were suppressed; what the training cost, and the hash of its entry in the ledger.

Whoever speaks to the vault can make it write a line, so lines that cost the writer nothing are
bounded: so many a minute, and one that counts the rest.
"""

import math
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from client import countersigned as heads
from common.arrays import digest, size_in_bytes
from common.chained_log import ChainedLog, Head
from common.errors import EgressError

if TYPE_CHECKING:
    from common.messages import Reply

AUDIT_FILE = "audit.jsonl"
FREE_LINES = 30
"""Lines a minute of what anybody can cause who reaches the socket."""
_WINDOW_SECONDS = 60.0
_TEXT = 120

Decision = Literal["sent", "repeated", "refused", "stopped"]
"""``stopped`` is a reply that the site itself held back; a code went in its place."""
EVENTS: Mapping[Decision, str] = {
    "sent": "answered",
    "repeated": "repeated",
    "refused": "refused",
    "stopped": "refused",
}
"""The event of the line that a decision is written in."""


class Audit:
    """The audit log in a site's state folder; any thread may write to it.

    Args:
        state: The site's state folder.

    Raises:
        ChainError: The log's end is damaged.
        OSError: It cannot be written.
    """

    def __init__(self, state: Path) -> None:
        self._log = ChainedLog(state / AUDIT_FILE)
        self._log.repair()  # all of it is verified on demand: it may be long
        self._lock = threading.Lock()
        self._began = 0.0
        self._written = 0
        self._left_out = 0
        self._disputed: set[Head] = set()

    def head(self) -> Head:
        """Return how many lines the log has, and the hash of the last.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be read.
        """
        return self._log.head()

    def holds(self, head: Head) -> bool:
        """Say whether the log has a head that the coordinator countersigned.

        Raises:
            OSError: It cannot be read.
        """
        return self._log.holds(head)

    def note_dispute(self, head: Head, **values: Any) -> None:
        """Write the line of a countersigned head that the log does not have; of each one line.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            if head in self._disputed:  # whoever reaches the socket can hand an old order in again
                return
            self._log.append({"event": heads.DISPUTED, **values})
            self._disputed.add(head)

    def note(self, event: str, **values: Any) -> None:
        """Write a line that is always written: of a sealed order that was followed, or a start.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            self._log.append({"event": event, **values})

    def note_free(self, event: str, **values: Any) -> None:
        """Write a line of what costs its cause nothing, while there is room for it this minute.

        Texts are cut short: they may be anything.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            self._turn()
            if self._written >= FREE_LINES:
                self._left_out += 1
                return
            self._written += 1
            short = {k: v[:_TEXT] if isinstance(v, str) else v for k, v in values.items()}
            self._log.append({"event": event, **short})

    def note_exchange(
        self,
        decision: Decision,
        *,
        study: str,
        number: int,
        kind: str,
        order: str,
        code: str = "",
        size: int = 0,
        ledger: str | None = None,
        epsilon: float | None = None,
        carried: Mapping[str, Any] | None = None,
        countersigned: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the line of an order and its reply.

        It is always written, unless the order cost nothing: one that was refused or answered
        with a kept reply, without a training.

        Args:
            decision: What became of the order.
            study: Digest of the study.
            number: The round.
            kind: ``check``, ``train`` or ``evaluate``; empty for what is no order.
            order: Digest of the order as it was sealed; empty where there is no good seal.
            code: The reason, where a code went.
            size: Bytes of the reply as a file.
            ledger: Hash of the entry of this training in the ledger; None without a training.
            epsilon: What the site has spent since; None without privacy, as infinity is.
            carried: What ``describe_reply`` says of the reply.
            countersigned: What proves the head that the order countersigned, if it did.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        costs = decision in {"sent", "stopped"} or ledger is not None
        (self.note if costs else self.note_free)(
            EVENTS[decision],
            decision=decision,
            study=study,
            round=number,
            kind=kind,
            order=order,
            code=code,
            bytes=size,
            ledger=ledger,
            epsilon=epsilon if epsilon is not None and math.isfinite(epsilon) else None,
            **(carried or {}),
            **({} if countersigned is None else {"countersigned": countersigned}),
        )

    def settle(self, *, now: bool = False) -> None:
        """Write the line that counts the rest, when its minute is over or ``now``.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            self._turn(now=now)

    def _turn(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._began < _WINDOW_SECONDS:
            return
        if self._left_out:
            self._log.append({"event": "left_out", "lines": self._left_out})
        self._began, self._written, self._left_out = time.monotonic(), 0, 0


def decision_on(reply: "Reply") -> Decision:
    """Return what became of an order that was answered with ``reply``."""
    if not reply.refusal:
        return "sent"
    return "stopped" if reply.refusal == EgressError.code else "refused"


def describe_reply(
    reply: "Reply", measured: Iterable[tuple[str, str]] = ()
) -> dict[str, dict[str, dict[str, Any]] | list[str] | bool]:
    """Return what a reply carries away, as JSON values.

    Args:
        reply: What leaves.
        measured: Tasks and splits that the site measured for it.

    Returns:
        ``groups`` (digest and bytes of each), ``metrics`` and ``suppressed`` (as ``TASK/SPLIT``),
        and whether a ``declaration`` is among it.
    """
    sent = {"/".join(key) for key in reply.metrics}
    known = set() if reply.refusal else {"/".join(key) for key in measured}
    return {
        "groups": {
            group: {"digest": digest(arrays), "bytes": size_in_bytes(arrays)}
            for group, arrays in sorted(reply.groups.items())
        },
        "metrics": sorted(sent),
        "suppressed": sorted(known - sent),
        "declaration": reply.declaration is not None,
    }
