"""Whether the site's audit log is whole, agrees with the ledger, and is as it was countersigned.

``client/audit.py`` writes the log.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from client import countersigned as heads
from client.audit import AUDIT_FILE, EVENTS
from client.ledger import LEDGER_FILE
from client.pinned import load_pinned
from common.chained_log import FIRST, ChainedLog
from common.errors import ChainError


class Verified(NamedTuple):
    """What was found of two logs that are whole and agree."""

    lines: int
    head: str
    """Hash of the audit log's last line; who keeps it can tell whether lines are cut off later."""
    trainings: int
    """Entries of the ledger that lines of the audit log name."""
    ledger_lines: int
    ledger_head: str
    countersigned: int
    """The last line that the coordinator has countersigned; 0 for none."""
    disputed: int
    """Heads that the coordinator countersigned and that the log did not have; all were followed by
    one that it had."""
    held: int | None
    """The line whose hash was asked for; None where none was."""


def verify(state: Path, held: str = "") -> Verified:
    """Check the audit log and the ledger from end to end, and that they tell the same trainings.

    A line that follows a training names its entry in the ledger, of the same study, round and
    order; lines of an older release name none, and an entry of the same three must be there. An
    entry without a line is no fault: its training may have been killed. What the coordinator has
    countersigned must be as it was then (``client/countersigned.py``).

    Args:
        state: The site's state folder.
        held: A hash that somebody holds, which must be that of a line; empty for none.

    Raises:
        ChainError: A log is damaged, or lines of the audit log follow trainings that the ledger
            does not have, or are not as they were countersigned; all of them are listed.
        EnrolmentError: Whom the site has joined cannot be read.
        OSError: A log cannot be read.
    """
    lines = ChainedLog(state / AUDIT_FILE).entries()  # first: the vault may be at work meanwhile
    entries = ChainedLog(state / LEDGER_FILE).entries()
    trainings = {e["hash"]: _training_of(e) for e in entries if e.get("event") == "training"}
    named, faults = _linked(lines, trainings)
    found = heads.check(lines, load_pinned(state))
    faults += found.faults
    hashes = [FIRST, *(line["hash"] for line in lines)]
    if held and held not in hashes:
        faults.append(f"no line has the hash {held}")
    if faults:
        raise ChainError(
            f"{state / AUDIT_FILE} is not what it should be:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy=f"Keep it and {LEDGER_FILE}, find out who changed one of them, and restore a "
            "backup.",
        )
    line = hashes.index(held) if held else None
    return Verified(
        *(len(lines), _head(lines), len(named), len(entries), _head(entries)),
        *(found.countersigned, found.disputed, line),
    )


def _linked(
    lines: Iterable[Mapping[str, Any]], trainings: Mapping[str, Any]
) -> tuple[set[str], list[str]]:
    """Return the entries of the ledger that lines name, and the lines that name none."""
    named: set[str] = set()
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not _follows_training(line):
            continue
        link: Any = line["ledger"] if "ledger" in line else _older_link(line, trainings)
        if link in trainings and trainings[link] == _training_of(line):
            named.add(link)
        else:
            what = f"round {line.get('round')} of {line.get('study')}"
            faults.append(f"line {number}: {what} was trained, and is not in {LEDGER_FILE}")
    return named, faults


def _follows_training(line: Mapping[str, Any]) -> bool:
    answered = line.get("event") == EVENTS["sent"] and line.get("kind") == "train"
    return answered or line.get("ledger") is not None


def _older_link(line: Mapping[str, Any], trainings: Mapping[str, Any]) -> str | None:
    same = (link for link, training in trainings.items() if training == _training_of(line))
    return next(same, None)


def _training_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("study", "round", "order"))


def _head(entries: list[dict[str, Any]]) -> str:
    return str(entries[-1]["hash"]) if entries else FIRST
