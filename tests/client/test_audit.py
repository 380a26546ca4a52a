"""Laws of the site's audit log."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.audit import FREE_LINES, Audit, Decision, decision_on, describe_reply
from client.audit_check import verify
from common.arrays import Array, digest
from common.chained_log import ChainedLog, Head
from common.errors import ChainError
from common.messages import Reply


def entries(state: Path) -> list[dict[str, object]]:
    return ChainedLog(state / "audit.jsonl").entries()


def test_what_happened_is_noted(tmp_path: Path) -> None:
    """Each event is a line with its values, in one chain."""
    audit = Audit(tmp_path)
    audit.note("answered", round=3, parts=["shared"])
    audit.note_free("rejected", status=404, path="/")
    Audit(tmp_path).note("started")
    assert [entry["event"] for entry in entries(tmp_path)] == ["answered", "rejected", "started"]
    assert entries(tmp_path)[0]["parts"] == ["shared"]


def test_a_flood_does_not_fill_the_disk(tmp_path: Path) -> None:
    """After so many lines of what costs nothing the rest is counted, and orders are still noted."""
    audit = Audit(tmp_path)
    for _ in range(10 * FREE_LINES):
        audit.note_free("rejected", path="x" * 100_000)
    audit.note("answered")
    audit.settle()
    assert len(entries(tmp_path)) == FREE_LINES + 1
    assert (tmp_path / "audit.jsonl").stat().st_size < 500 * FREE_LINES
    audit.settle(now=True)
    assert entries(tmp_path)[-1]["event"] == "left_out"
    assert entries(tmp_path)[-1]["lines"] == 9 * FREE_LINES
    audit.note_free("rejected")
    assert entries(tmp_path)[-1]["event"] == "rejected"


def test_nothing_left_out_needs_no_line(tmp_path: Path) -> None:
    """A quiet minute leaves no trace."""
    audit = Audit(tmp_path)
    audit.note_free("rejected")
    audit.settle(now=True)
    audit.settle(now=True)
    assert len(entries(tmp_path)) == 1


def test_a_dispute_is_one_line_however_many_threads_note_it(tmp_path: Path) -> None:
    """Each head that the log does not have is noted once."""
    audit, heads = Audit(tmp_path), [Head(9, "ab" * 32), Head(8, "cd" * 32)]
    with ThreadPoolExecutor(8) as threads:
        for head in heads * 40:
            threads.submit(audit.note_dispute, head, round=head.entries)
    assert sorted((e["event"], e["round"]) for e in entries(tmp_path)) == [
        ("disputed", 8),
        ("disputed", 9),
    ]


def test_a_damaged_log_takes_no_more(tmp_path: Path) -> None:
    """Who changed the last line stops the vault, which answers nothing that it cannot note."""
    audit = Audit(tmp_path)
    audit.note("answered", round=3)
    path = tmp_path / "audit.jsonl"
    path.write_text(path.read_text().replace('"round": 3', '"round": 4'))
    with pytest.raises(ChainError):
        audit.note("answered")
    with pytest.raises(ChainError):
        audit.note_free("rejected")
    with pytest.raises(ChainError):
        Audit(tmp_path)


# Orders and their replies

STUDY, ORDER = "ab" * 32, "cd" * 32


def enter(state: Path, *, study: str = STUDY, number: int = 3, order: str = ORDER) -> str:
    """Enter a training in the ledger and return the hash of its line."""
    log = ChainedLog(state / "ledger.jsonl")
    log.append({"event": "training", "study": study, "round": number, "order": order})
    return str(log.entries()[-1]["hash"])


def sent(audit: Audit, ledger: str | None, **changes: Any) -> None:
    """Note the reply to an order to train."""
    values = {"study": STUDY, "number": 3, "kind": "train", "order": ORDER, "ledger": ledger}
    audit.note_exchange("sent", **(values | changes))  # type: ignore[arg-type]


def test_an_exchange_is_one_line(tmp_path: Path) -> None:
    """Order, decision, link to the ledger, cost and what went stand in it; infinity is none."""
    link = enter(tmp_path)
    audit = Audit(tmp_path)
    carried = describe_reply(Reply("a", STUDY, 3))
    sent(audit, link, epsilon=1.25, size=77, carried=carried)
    sent(audit, link, epsilon=math.inf)
    first, second = entries(tmp_path)
    assert {key: first[key] for key in first if key not in {"at", "previous", "hash"}} == {
        "event": "answered", "decision": "sent", "study": STUDY, "round": 3, "kind": "train",
        "order": ORDER, "code": "", "bytes": 77, "ledger": link, "epsilon": 1.25, "groups": {},
        "metrics": [], "suppressed": [], "declaration": False,
    }  # fmt: skip
    assert second["epsilon"] is None


def test_what_cost_a_training_is_always_noted(tmp_path: Path) -> None:
    """Refusals that cost nothing are bounded; replies, what was held back and trainings are not."""
    audit, link = Audit(tmp_path), enter(tmp_path)
    free: tuple[Decision, ...] = ("refused", "repeated")
    for decision in free * (FREE_LINES + 5):
        audit.note_exchange(decision, study=STUDY, number=1, kind="train", order=ORDER)
    assert len(entries(tmp_path)) == FREE_LINES
    costly: dict[Decision, str | None] = {"sent": None, "stopped": None, "refused": link}
    for decision, ledger in costly.items():
        audit.note_exchange(
            decision, study=STUDY, number=3, kind="evaluate", order=ORDER, ledger=ledger
        )
    shown = [entry["decision"] for entry in entries(tmp_path)[FREE_LINES:]]
    assert shown == ["sent", "stopped", "refused"]


def test_a_reply_is_described_by_digests_and_names() -> None:
    """Each group has the digest and size of its arrays; metrics are those sent and those not."""
    arrays: dict[str, Array] = {"w": np.arange(6, dtype=np.float32), "b": np.array(2, np.float16)}
    metrics: Any = {("ct", "test"): {}}
    reply = Reply("a", STUDY, 3, groups={"shared": arrays}, metrics=metrics)
    measured = [("ct", "validation"), ("ct", "test")]
    assert describe_reply(reply, measured) == {
        "groups": {"shared": {"digest": digest(arrays), "bytes": 26}},
        "metrics": ["ct/test"],
        "suppressed": ["ct/validation"],
        "declaration": False,
    }
    refused = describe_reply(Reply("a", STUDY, 3, refusal="data"), measured)
    assert refused == {"groups": {}, "metrics": [], "suppressed": [], "declaration": False}
    json.dumps(refused)


@pytest.mark.parametrize(
    ("code", "decision"), [("", "sent"), ("egress", "stopped"), ("data", "refused")]
)
def test_a_reply_tells_what_was_decided(code: str, decision: str) -> None:
    """A reply that the site held back itself is not one that it refused."""
    assert decision_on(Reply("a", STUDY, 3, refusal=code)) == decision


# Verifying


def test_logs_that_agree_are_verified(tmp_path: Path) -> None:
    """Lines, trainings and heads are counted; a training that was killed has no line."""
    assert verify(tmp_path) == (0, "0" * 64, 0, 0, "0" * 64, 0, 0, None)
    links = [enter(tmp_path, number=n, order=f"{n:064x}") for n in (1, 2, 3)]
    audit = Audit(tmp_path)
    audit.note("started")
    for number in (1, 2):
        sent(audit, links[number - 1], number=number, order=f"{number:064x}")
    audit.note_exchange("sent", study=STUDY, number=0, kind="check", order=ORDER)
    audit.note_exchange("repeated", study=STUDY, number=2, kind="train", order=f"{2:064x}")
    assert verify(tmp_path) == (5, entries(tmp_path)[-1]["hash"], 2, 3, links[-1], 0, 0, None)


def test_lines_of_an_older_release_are_verified_by_their_order(tmp_path: Path) -> None:
    """A line that names no entry of the ledger needs one of its study, round and order."""
    audit = Audit(tmp_path)
    audit.note("answered", study=STUDY, round=3, kind="train", order=ORDER)
    with pytest.raises(ChainError, match="line 1: round 3"):
        verify(tmp_path)
    enter(tmp_path)
    assert verify(tmp_path).trainings == 1


@pytest.mark.parametrize(
    "change",
    [{"study": "00" * 32}, {"number": 4}, {"order": "00" * 32}, {"ledger": "00" * 32},
     {"ledger": None}],
)  # fmt: skip
def test_a_training_must_stand_in_the_ledger(change: dict[str, Any], tmp_path: Path) -> None:
    """A line of another study, round or order than its entry, or of none, is told by its number."""
    link, audit = enter(tmp_path), Audit(tmp_path)
    sent(audit, link)
    assert verify(tmp_path).trainings == 1
    sent(audit, **({"ledger": link} | change))
    with pytest.raises(ChainError, match="line 2: round"):
        verify(tmp_path)


def test_a_refusal_after_a_training_is_linked_too(tmp_path: Path) -> None:
    """Whatever became of a training, the line that names its entry must name a true one."""
    audit = Audit(tmp_path)
    audit.note_exchange(
        "refused", study=STUDY, number=3, kind="train", order=ORDER, code="diverged", ledger="0"
    )
    with pytest.raises(ChainError, match=r"ledger\.jsonl"):
        verify(tmp_path)


@pytest.mark.parametrize("file", ["audit.jsonl", "ledger.jsonl"])
@pytest.mark.parametrize("damage", ["changed", "taken out", "torn", "emptied"])
def test_damage_anywhere_is_found(file: str, damage: str, tmp_path: Path) -> None:
    """A changed, missing or torn line of either log is a ChainError."""
    audit = Audit(tmp_path)
    for number in (1, 2, 3):
        sent(audit, enter(tmp_path, number=number), number=number)
    path = tmp_path / file
    lines = path.read_text().splitlines(keepends=True)
    if damage == "changed":
        lines[1] = lines[1].replace('"round": 2', '"round": 9')
    elif damage == "taken out":
        del lines[1]
    elif damage == "torn":
        lines[2] = lines[2][:-9]
    else:
        lines = []
    path.write_text("".join(lines))
    if damage == "emptied" and file == "audit.jsonl":
        assert verify(tmp_path).lines == 0  # who kept the head sees it
    else:
        with pytest.raises(ChainError):
            verify(tmp_path)
