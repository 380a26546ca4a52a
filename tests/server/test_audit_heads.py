"""Laws of the audit logs' heads in a study: noted, countersigned, and compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.chained_log import Head
from common.errors import QuorumError
from common.messages import Order, Reply

Make = Callable[..., Any]


def grows(hashes: str = "ab") -> Callable[[Reply, Order], Reply]:
    """Return what adds a head to each reply, of a log that grows by two lines a round."""
    return lambda reply, order: reply._replace(audit=head_of(order.round, hashes))


def head_of(number: int, hashes: str = "ab") -> Head:
    return Head(2 * number, f"{number}{hashes}".ljust(64, "0"))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "history.jsonl").read_text("utf-8").splitlines()]


def countersigned(site: Any) -> list[Head | None]:
    return [order.countersigned for order in site.orders if order.kind != "check"]


def test_each_order_countersigns_the_last_head(
    make_site: Make, make_grid: Make, make_small_study: Make, play_on: Make, tmp_path: Path
) -> None:
    """A site's own, of its last reply; one of an older release tells none and is sent none."""
    sites = [make_site("a", spoil=grows()), make_site("b", spoil=grows("cd")), make_site("old")]
    play_on(make_small_study(), make_grid(sites), tmp_path)
    assert countersigned(sites[0]) == [None, head_of(1), head_of(2)]
    assert countersigned(sites[1]) == [None, head_of(1, "cd"), head_of(2, "cd")]
    assert countersigned(sites[2]) == [None] * 3
    for number, line in enumerate(lines_of(tmp_path), start=1):
        assert line["audit_heads"] == {
            "a": head_of(number)._asdict(), "b": head_of(number, "cd")._asdict(),
        }  # fmt: skip
        assert line["audit_faults"] == {}


def test_a_log_that_goes_back_is_noted_and_the_reply_is_used(
    make_site: Make, make_grid: Make, make_small_study: Make, play_on: Make, tmp_path: Path
) -> None:
    """The round counts, and the next order countersigns what the log is now."""

    def restored(reply: Reply, order: Order) -> Reply:
        return reply._replace(
            audit=Head(1, "ef" * 32) if order.round == 2 else head_of(order.round)
        )

    def silenced(reply: Reply, order: Order) -> Reply:
        return reply._replace(audit=head_of(order.round) if order.round != 2 else None)

    sites = [make_site("a", spoil=restored), make_site("b", spoil=silenced)]
    play_on(make_small_study(), make_grid(sites), tmp_path)
    lines = lines_of(tmp_path)
    assert [line["answered"] for line in lines] == [["a", "b"]] * 3
    assert [set(line["audit_faults"]) for line in lines] == [set(), {"a", "b"}, set()]
    assert "went back from 2 lines to 1" in lines[1]["audit_faults"]["a"]
    assert countersigned(sites[0]) == [None, head_of(1), Head(1, "ef" * 32)]
    assert countersigned(sites[1]) == [None, head_of(1), head_of(1)]


def test_a_coordinator_that_starts_again_goes_on_with_the_heads(
    make_site: Make, make_grid: Make, make_small_study: Make, play_on: Make, tmp_path: Path
) -> None:
    """They come from the history; a round that is tried again has those of its first try."""
    sites = [make_site("a", spoil=grows()), make_site("b", spoil=grows("cd"))]
    refuse = lambda reply, _: Reply(reply.site, reply.digest, reply.round, "diverged")  # noqa: E731 - one line
    sites[1].meanwhile = lambda order: setattr(
        sites[1], "spoil", refuse if order.round == 2 else grows("cd")
    )
    with pytest.raises(QuorumError):
        play_on(make_small_study(), make_grid(sites), tmp_path)
    assert lines_of(tmp_path)[-1]["audit_heads"] == {"a": head_of(2)._asdict()}
    sites[1].meanwhile = None
    sites[1].spoil = grows("cd")
    play_on(make_small_study(), make_grid(sites), tmp_path)
    assert countersigned(sites[0]) == [None, head_of(1), head_of(2), head_of(2)]
    assert countersigned(sites[1]) == [None, *[head_of(1, "cd")] * 2, head_of(2, "cd")]
    assert not any(line["audit_faults"] for line in lines_of(tmp_path))


def test_what_is_refused_is_not_countersigned(
    make_site: Make, make_grid: Make, make_small_study: Make, play_on: Make, tmp_path: Path
) -> None:
    """A reply that cannot be used leaves no head, whatever it tells."""

    def wrong(reply: Reply, order: Order) -> Reply:
        return reply._replace(audit=head_of(order.round), weights={})

    sites = [make_site(name, spoil=grows()) for name in "ab"] + [make_site("c", spoil=wrong)]
    play_on(make_small_study(rounds=1), make_grid(sites), tmp_path)
    first = lines_of(tmp_path)[0]
    assert set(first["refused"]) == {"c"}
    assert set(first["audit_heads"]) == {"a", "b"}
