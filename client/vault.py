"""The vault: follows an order that bears the right seal and that the hospital has approved.

All that comes is a file that may hold anything; all that goes is a file that passed
``client/egress.py``. What goes wrong in between becomes a code, and the words stay here.
"""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, RecordDict

from client import egress
from client.approvals import is_approved, load_pin
from client.audit import Audit, Decision, decision_on, describe_reply
from client.config import SiteConfig
from client.countersigned import proof_of
from client.ledger import Ledger
from client.site import Site
from client.store import SiteStore, remove_leftovers
from common.bodies import read_body, write_body
from common.errors import NotApprovedError, OrderError, PausedError, RarefedError
from common.messages import Order, order_from_record, reply_to_record, size_in_bytes
from common.seals import Seal, check_seal
from common.statements import MAX_COUNT

PAUSED_FILE = "paused"
SPOOL = "spool"

_NO_DIGEST = "0" * 64
_REPEATABLE = ("train", "evaluate")
"""Orders whose reply is kept. A check is answered anew: the hospital's data may have changed."""


class _Asked(NamedTuple):
    """What an order claims to be, as far as it can be told before its seal is checked."""

    study: str
    round: int
    kind: str


class Vault:
    """One hospital's vault, its data warm from order to order.

    Args:
        config: The hospital.

    Raises:
        EnrolmentError: The hospital has not joined a coordinator under this name.
        DataError: The log cannot be written, or there is no such device.
        ChainError: Ledger or audit log are damaged.
        OSError: The state folder cannot be used.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self._pin = load_pin(config)
        self.ledger = Ledger(config.state)
        self.site = Site(config, self.ledger)
        self.audit = Audit(config.state)
        self.spool = config.state / SPOOL
        self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.spool.iterdir():
            left.unlink()
        remove_leftovers(config.state)

    def answer(self, body: Path) -> Path:
        """Answer an order.

        Args:
            body: The order as a file (``common/bodies.py``).

        Returns:
            The reply as a file; one in the folder ``spool`` is the caller's to remove.

        Raises:
            OrderError: The body is no order at all, so there is nothing to answer.
        """
        try:
            record = read_body(body)
        except ValueError as error:
            raise OrderError(f"The body is no record: {error}.") from error
        asked = _asked(record)
        try:
            return self._answer(record, asked)
        except RarefedError as error:
            self.site.log.error(  # noqa: TRY400 - expected, so without a traceback
                "order of round %d refused (%s): %s", asked.round, error.code, error
            )
            return self._refuse(asked, error)
        except Exception:
            self.site.log.exception("order of round %d failed", asked.round)
            return self._refuse(asked, RarefedError("failed"))

    def _answer(self, record: RecordDict, asked: _Asked) -> Path:
        """Check and follow an order; what it carries is let go of as soon as it has been used."""
        seal = check_seal(record, self.config.name, self._pin.order_key)
        sealed, order = seal.digest(), order_from_record(record)
        record.clear()  # whoever called holds it still; from here the order alone has its arrays
        self._permit(order)
        proof = self._compared(order, seal, asked)
        store = SiteStore(self.config.state, order.study.digest())
        if order.kind in _REPEATABLE and (kept := store.find_reply(sealed)):
            size = kept.stat().st_size
            self._note("repeated", asked, order=sealed, size=size, countersigned=proof)
            return kept
        answer = self.site.answer(order, sealed)
        kind, reply, entered = order.kind, answer.reply, answer.entered
        del order
        if kind in _REPEATABLE and not reply.refusal:
            reply = reply._replace(audit=self.audit.head())
        packed = reply_to_record(reply)
        # The line first: a reply that is kept may leave, and a kill in between only costs a line.
        self._note(
            decision_on(reply),
            asked,
            order=sealed,
            code=reply.refusal,
            size=size_in_bytes(packed),
            ledger=entered.hash if entered else None,
            epsilon=entered.epsilon if entered else None,
            carried=describe_reply(reply, answer.measured),
            countersigned=proof,
        )
        if reply.refusal or kind not in _REPEATABLE:
            return self._spooled(packed)
        return store.save_reply(packed, sealed)

    def _permit(self, order: Order) -> None:
        """Check what the hospital has said of itself and of the study.

        Raises:
            PausedError: It has paused.
            NotApprovedError: It has not approved the study.
            DataError: Its list of approved studies cannot be read.
        """
        if (self.config.state / PAUSED_FILE).exists():
            raise PausedError("The hospital has paused.", remedy="rarefed-client pause --off")
        if not is_approved(self.config, order.study.digest()):
            raise NotApprovedError(
                f"Study {order.study.name} ({order.study.digest()}) is not approved here.",
                remedy="Read the coordinator's study file, then: rarefed-client approve STUDY",
            )

    def _compared(self, order: Order, seal: Seal, asked: _Asked) -> dict[str, Any] | None:
        """Return what proves the head that an order countersigns, where the log has that head.

        Where it does not, one of the two sides has lost or rewritten lines. That is noted, and the
        order is followed: a hospital that had to restore a backup stays in the study.
        """
        head = order.countersigned
        proof = None if head is None else proof_of(head, seal, self._pin.order_key)
        if head is None or proof is None or self.audit.holds(head):
            return proof
        self.site.log.error(
            "the coordinator has countersigned line %d of the audit log with the hash %s, which "
            "this log does not have: find out which side has changed it",
            *head,
        )
        self.audit.note_dispute(head, study=asked.study, round=asked.round, countersigned=proof)
        return None

    def _note(self, decision: Decision, asked: _Asked, **values: Any) -> None:
        self.audit.note_exchange(
            decision, study=asked.study, number=asked.round, kind=asked.kind, **values
        )

    def _refuse(self, asked: _Asked, error: RarefedError) -> Path:
        """Return the refusal of an order as a file; it says what the order said, and a code."""
        with suppress(Exception):  # a damaged or unwritable log is itself a reason to refuse
            self._note("refused", asked, order="", code=error.code)
        reply = egress.refusal(self.config.name, asked.study, asked.round, error)
        return self._spooled(reply_to_record(reply))

    def _spooled(self, record: RecordDict) -> Path:
        handle, name = tempfile.mkstemp(dir=self.spool, prefix="reply-")
        os.close(handle)
        write_body(record, Path(name))
        return Path(name)


def _asked(record: RecordDict) -> _Asked:
    """Return what an order claims to be; what is not of the right form is left out.

    Raises:
        OrderError: There is no order in the record.
    """
    head = record.get("order")
    if not isinstance(head, ConfigRecord):
        raise OrderError("The body holds no order.")
    study, number, kind = (head.get(name) for name in ("digest", "round", "kind"))
    return _Asked(
        study if isinstance(study, str) and re.fullmatch("[0-9a-f]{64}", study) else _NO_DIGEST,
        number if type(number) is int and 0 <= number <= MAX_COUNT else 0,
        kind if kind in {"check", "train", "evaluate"} else "",
    )
