"""Laws of the site's audit log."""

from pathlib import Path

import pytest

from client.audit import FREE_LINES, Audit
from common.chained_log import ChainedLog
from common.errors import ChainError


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
