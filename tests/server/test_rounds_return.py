"""Laws of sites that come and go while a study runs, and of orders that are lost with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode

from common.arrays import Array
from common.errors import QuorumError, SealError
from common.messages import Order, Reply
from common.packed_arrays import PackedArrays
from common.seals import SEAL, Sealer, check_seal
from server import history
from server.checkpoint import MODEL
from server.history import HISTORY
from server.stored_arrays import StoredArrays
from server.timing import Timing

Make = Callable[..., Any]
COMING_AND_GOING = Timing(
    sites_return=True, gather_s=0.05, recheck_s=0.05, resend_s=0.01, resends=3
)
GATHERING = Timing(sites_return=True, gather_s=10.0, recheck_s=0.01, resend_s=0.01, resends=3)
"""Who is expected is waited for."""
WEIGHT = "backbone.weight"


@pytest.fixture
def sites(make_site: Make) -> dict[str, Any]:
    """Three sites of other weights and changes."""
    told = {"a": (10, 0.5), "b": (30, 0.25), "c": (60, -1.0)}
    return {name: make_site(name, {"ct": n}, change) for name, (n, change) in told.items()}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text("utf-8").splitlines()]


def moved(folder: Path, start: Array) -> float:
    """Return by how much every number of the backbone moved."""
    steps = StoredArrays(folder / MODEL, (WEIGHT,))[WEIGHT] - start
    np.testing.assert_allclose(steps, steps.flat[0], atol=1e-6)
    return float(steps.flat[0])


def mean(sites: dict[str, Any], names: str) -> float:
    chosen = [sites[name] for name in names]
    return float(
        np.average([s.change for s in chosen], weights=[sum(s.tasks.values()) for s in chosen])
    )


def at(kind: str, number: int, deed: Callable[[], object]) -> Callable[[Order], None]:
    """Return what does ``deed`` when such an order comes."""

    def meanwhile(order: Order) -> None:
        if (order.kind, order.round) == (kind, number):
            deed()

    return meanwhile


def open_until_c_has_declared_itself(grid: Any, sites: dict[str, Any]) -> None:
    """Let the first round last until "c" has come: "b" takes so long to train."""
    grid.deaf = {"b"}
    sites["c"].meanwhile = at("check", 0, grid.deaf.clear)


@pytest.mark.parametrize("why", ["away", "refusal"])
def test_a_site_that_comes_later_joins_the_next_round(
    why: str, sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make,
    small_arrays: dict[str, Array], tmp_path: Path,
) -> None:  # fmt: skip
    """One that was away at the beginning, or refused, takes part once that is over."""
    grid = make_grid(list(sites.values()))
    setattr(sites["c"], why, "data" if why == "refusal" else True)

    def c_comes() -> None:
        open_until_c_has_declared_itself(grid, sites)
        sites["c"].away, sites["c"].refusal = False, ""

    sites["a"].meanwhile = at("train", 1, c_comes)
    outcome = play_on(make_small_study(rounds=3), grid, tmp_path, timing=COMING_AND_GOING)
    lines = lines_of(tmp_path)
    assert [line["asked"] for line in lines] == [["a", "b"], *[["a", "b", "c"]] * 3]
    assert [line["answered"] for line in lines] == [line["asked"] for line in lines]
    assert [line["joined"] for line in lines] == [[], ["c"], [], []]
    assert [member.name for member in outcome.members] == ["a", "b", "c"]
    assert outcome.refused == {}
    expected = mean(sites, "ab") + 2 * mean(sites, "abc")
    assert moved(tmp_path, small_arrays[WEIGHT]) == pytest.approx(expected, abs=1e-5)
    assert [order.base is not None for order in sites["c"].orders if order.round] == [
        True, False, False,
    ]  # fmt: skip


def test_a_site_that_goes_and_comes_back_misses_what_it_was_away_for(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Nobody waits for it in the rounds between, and it is no newcomer when it is back."""

    def meanwhile(order: Order) -> None:
        if order.kind == "train":
            sites["c"].away = order.round < 3

    sites["a"].meanwhile = meanwhile
    study = make_small_study(rounds=4, deadline_s=0.25)
    play_on(study, make_grid(list(sites.values())), tmp_path, timing=COMING_AND_GOING)
    lines = lines_of(tmp_path)
    assert [line["answered"] for line in lines] == [
        ["a", "b"], ["a", "b"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"],
    ]  # fmt: skip
    assert [line["silent"] for line in lines] == [["c"], [], [], [], []]
    assert [line["asked"] for line in lines[1:3]] == [["a", "b"]] * 2
    assert [line["joined"] for line in lines] == [[]] * 5


def test_a_site_that_never_returns_does_not_stop_the_study(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """It costs one deadline, and then nobody asks it again."""
    sites["a"].meanwhile = at("train", 1, lambda: setattr(sites["c"], "away", True))
    study = make_small_study(rounds=3, deadline_s=0.25)
    play_on(study, make_grid(list(sites.values())), tmp_path, timing=COMING_AND_GOING)
    lines = lines_of(tmp_path)
    assert [line["combined"] for line in lines] == [True, True, True, False]
    assert [line["asked"] for line in lines] == [["a", "b", "c"], *[["a", "b"]] * 3]


@pytest.mark.parametrize("garbage", ["empty", "malformed", "foreign", "exception", "study"])
def test_a_site_that_never_makes_sense_does_not_stop_the_study(
    garbage: str, sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make,
    tmp_path: Path,
) -> None:  # fmt: skip
    """It is asked to declare itself now and then, and never to train."""
    kinds = []

    def answer(order: Order) -> Any:
        kinds.append(order.kind)
        if len(kinds) == 4:
            grid.deaf.clear()
        if garbage == "empty":
            return RecordDict()
        if garbage == "malformed":
            return RecordDict({"reply": ConfigRecord({"header": "{"})})
        if garbage == "foreign":
            return RecordDict({"reply": ArrayRecord(), "weights": ConfigRecord()})
        if garbage == "study":
            return Reply("c", "0" * 64, order.round, declaration=sites["c"].declaration())
        raise RuntimeError("patient 17")

    sites["c"].answer = answer
    grid = make_grid(list(sites.values()), deaf=["b"])  # whose training lasts until then
    outcome = play_on(make_small_study(), grid, tmp_path, timing=COMING_AND_GOING)
    assert [line["answered"] for line in lines_of(tmp_path)] == [["a", "b"]] * 3
    assert len(outcome.refused) == 1
    assert "patient 17" not in str(outcome.refused)
    assert kinds == ["check"] * len(kinds)
    assert len(kinds) >= 4


def test_words_of_a_site_do_not_spoil_the_history(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Whatever names its arrays bear, the refusals can be read again, and the study goes on."""

    def odd(reply: Reply, order: Order) -> Reply:
        arrays = {**reply.groups["shared"], "line\u2028end\x85\x1c\r": np.zeros(1, np.float32)}
        return reply._replace(groups={**order.groups, "shared": arrays})

    sites["c"].spoil = odd
    study = make_small_study()
    outcome = play_on(study, make_grid(list(sites.values())), tmp_path)
    assert "line\u2028end" in outcome.records[0].refused["c"]
    assert history.load(tmp_path) == outcome.records
    again = play_on(study, make_grid(list(sites.values())), tmp_path)
    assert again.records[:3] == outcome.records


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ],
)
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_an_order_that_was_lost_with_a_machine_is_sent_again(
    strategy: str, code: int, sites: dict[str, Any], make_site: Make, make_small_study: Make,
    make_grid: Make, play_on: Make, tmp_path: Path,
) -> None:  # fmt: skip
    """In the same round, and the model is to the byte the one that would have been."""
    study = make_small_study(strategy=strategy)
    play_on(study, make_grid(list(sites.values())), tmp_path / "whole")
    again = [make_site(site.name, site.tasks, site.change) for site in sites.values()]
    again[0].losses = [0, code]
    again[2].losses = [code, 0, 0, code, code]
    folder = tmp_path / "lost"
    play_on(study, make_grid(again), folder, timing=GATHERING)
    assert (folder / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    lines = lines_of(folder)
    assert [line["answered"] for line in lines] == [["a", "b", "c"]] * 3
    assert [line["resent"] for line in lines] == [["a"], ["c", "c"], []]
    assert [line["refused"] for line in lines] == [{}] * 3


def test_a_lost_order_waits_for_its_site(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """A machine that restarts within the round gets its order once it is connected again."""
    grid = make_grid(list(sites.values()))
    looks = []
    nodes = grid.get_nodes

    def get_nodes() -> Any:
        looks.append(sites["c"].away)
        sites["c"].away = sites["c"].away and sum(looks) < 4
        return nodes()

    grid.get_nodes = get_nodes
    sites["a"].meanwhile = at("train", 1, lambda: setattr(sites["c"], "away", True))
    play_on(make_small_study(), grid, tmp_path, timing=COMING_AND_GOING)
    lines = lines_of(tmp_path)
    assert sum(looks) == 4
    assert [line["resent"] for line in lines] == [["c"], [], []]
    assert [line["answered"] for line in lines] == [["a", "b", "c"]] * 3


def test_an_order_that_is_lost_each_time_costs_its_site_the_round(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """It is sent again as often as was agreed; where nothing may get lost, not even once."""
    crashes = [0, *[ErrorCode.CLIENT_APP_CRASHED] * 4]
    sites["c"].losses = list(crashes)
    grid = make_grid(list(sites.values()))
    play_on(make_small_study(), grid, tmp_path / "deployed", timing=GATHERING)
    lines = lines_of(tmp_path / "deployed")
    assert lines[0]["resent"] == ["c"] * 3
    assert "client failed" in lines[0]["refused"]["c"]
    assert [line["answered"] for line in lines[1:]] == [["a", "b", "c"]] * 2
    sites["c"].losses = crashes[:2]
    play_on(make_small_study(), grid, tmp_path / "simulated")
    lines = lines_of(tmp_path / "simulated")
    assert lines[0]["resent"] == []
    assert "client failed" in lines[0]["refused"]["c"]


def test_a_late_reply_is_noted_and_left_out(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make,
    small_arrays: dict[str, Array], tmp_path: Path,
) -> None:  # fmt: skip
    """It comes after its round has closed; its site's next reply counts as any other."""
    grid = make_grid(list(sites.values()), deaf=["b"])
    sites["a"].meanwhile = at("train", 2, grid.deaf.clear)
    play_on(make_small_study(deadline_s=0.25), grid, tmp_path)
    lines = lines_of(tmp_path)
    assert [line["answered"] for line in lines] == [["a", "c"], *[["a", "b", "c"]] * 2]
    assert [line["silent"] for line in lines] == [["b"], [], []]
    assert [name for line in lines for name in line["late"]] == ["b"]
    expected = mean(sites, "ac") + mean(sites, "abc")
    assert moved(tmp_path, small_arrays[WEIGHT]) == pytest.approx(expected, abs=1e-5)
    assert sorted(order.round for order in sites["b"].orders) == [0, 1, 2, 3]


def test_an_order_that_is_lost_after_its_round_is_no_late_reply(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Nothing came, so nothing is noted, and nothing is sent again."""
    grid = make_grid(list(sites.values()), deaf=["c"])
    sites["c"].losses = [0, 0, ErrorCode.MESSAGE_UNAVAILABLE]  # the second round's comes first
    sites["a"].meanwhile = at("train", 2, grid.deaf.clear)
    study = make_small_study(deadline_s=0.25)
    play_on(study, grid, tmp_path, timing=COMING_AND_GOING)
    lines = lines_of(tmp_path)
    assert [line["answered"] for line in lines] == [["a", "b"], *[["a", "b", "c"]] * 2]
    assert [line["late"] for line in lines] == [line["resent"] for line in lines] == [[]] * 3
    assert [order.round for order in sites["c"].orders] == [0, 2, 3]


def test_a_site_whose_reply_was_refused_is_sent_the_base_again(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Whatever is wrong there, its next order brings all that it needs, and the one after not."""

    def second(reply: Reply, order: Order) -> Reply:
        return reply._replace(weights={}) if order.round == 2 else reply

    sites["b"].spoil = second
    play_on(make_small_study(rounds=3), make_grid(list(sites.values())), tmp_path)
    sent = [order.base is not None for order in sites["b"].orders[1:]]
    assert sent == [True, False, True, False]


def test_a_site_speaks_under_the_name_it_was_enrolled_with(
    sites: dict[str, Any], make_site: Make, make_small_study: Make, make_grid: Make,
    play_on: Make, tmp_path: Path,
) -> None:  # fmt: skip
    """Another name is refused when it joins, and in every round after that."""
    for name, site in sites.items():
        site.enrolled = name
    sites["c"].spoil = lambda reply, _: reply._replace(site="a")
    thief = make_site("b", enrolled="thief")
    grid = make_grid([*sites.values(), thief])
    outcome = play_on(make_small_study(), grid, tmp_path, timing=COMING_AND_GOING)
    assert [member.name for member in outcome.members] == ["a", "b", "c"]
    assert outcome.refused == {"thief": "it answers under another site's name"}
    for line in lines_of(tmp_path):
        assert line["answered"] == ["a", "b"]
        assert "under another site's name" in line["refused"]["c"]
    assert {order.kind for order in thief.orders} == {"check"}


def test_each_order_is_sealed_for_its_site_alone(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Every order, one that is sent again too, bears a seal that holds at its site only."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    for name, site in sites.items():
        site.enrolled = name
    sites["b"].losses = [0, ErrorCode.REPLY_MESSAGE_UNAVAILABLE]
    grid = make_grid(list(sites.values()))
    play_on(make_small_study(), grid, tmp_path, timing=GATHERING, sealer=Sealer(key))
    assert [len(site.records) for site in sites.values()] == [4, 5, 4]
    for name, site in sites.items():
        for record in site.records:
            assert check_seal(record, name, public)
            for other in set(sites) - {name}:
                with pytest.raises(SealError, match="sealed for another site"):
                    check_seal(record, other, public)
                record[SEAL]["site"] = other
                with pytest.raises(SealError, match="not that of the coordinator"):
                    check_seal(record, other, public)
                record[SEAL]["site"] = name
    first, again = (check_seal(record, "b", public) for record in sites["b"].records[1:3])
    assert first == again


def test_without_a_sealer_there_is_no_seal(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """A simulation's orders carry what they ask for and nothing else."""
    play_on(make_small_study(), make_grid(list(sites.values())), tmp_path)
    assert not any(SEAL in record for site in sites.values() for record in site.records)


def test_updates_of_half_the_bits_are_half_the_bytes(
    make_site: Make, make_small_study: Make, make_grid: Make, play_on: Make,
    small_arrays: dict[str, Array], tmp_path: Path,
) -> None:  # fmt: skip
    """With float16 every number that a site sends takes two bytes less, what it is sent as many.

    The model is the start plus the mean of the rounded changes.
    """
    changes = {"a": 0.1, "b": 0.3, "c": -0.7}
    up, down, found = {}, {}, {}
    for dtype in ("float32", "float16"):
        sites = [make_site(name, change=change) for name, change in changes.items()]
        study = make_small_study(rounds=1, update_dtype=dtype)
        play_on(study, make_grid(sites), tmp_path / dtype)
        line = lines_of(tmp_path / dtype)[0]
        assert line["answered"] == ["a", "b", "c"]
        up[dtype], down[dtype] = (line["bytes"]["a"][way] for way in ("up", "down"))
        found[dtype] = moved(tmp_path / dtype, small_arrays[WEIGHT])
    numbers = sum(v.size for name, v in small_arrays.items() if name != "counter")
    assert up["float32"] - up["float16"] == 2 * numbers
    assert down["float32"] == down["float16"]
    assert found["float16"] == pytest.approx(
        np.mean(np.array(list(changes.values()), np.float16)), abs=1e-6
    )
    assert found["float16"] != pytest.approx(found["float32"], abs=1e-6)
    assert found["float16"] == pytest.approx(found["float32"], abs=0.7 * 2**-11)


@pytest.mark.parametrize("sent", ["float32", "float16"])
def test_updates_of_the_wrong_bits_are_refused(
    sent: str, sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A site sends the type that the study says, no other."""

    def cast(reply: Reply, _order: Order) -> Reply:
        groups = {g: {n: v.astype(sent) for n, v in a.items()} for g, a in reply.groups.items()}
        return reply._replace(groups={g: PackedArrays.of(a) for g, a in groups.items()})

    for site in sites.values():
        site.spoil = cast
    grid = make_grid(list(sites.values()))
    other = {"float32": "float16", "float16": "float32"}[sent]
    with pytest.raises(QuorumError, match=f"is {sent}.*, not {other}"):
        play_on(make_small_study(update_dtype=other), grid, tmp_path / "refused")
    play_on(make_small_study(update_dtype=sent), grid, tmp_path / "taken")
    assert len(lines_of(tmp_path / "taken")) == 3


def test_a_reply_that_is_lost_without_a_word_is_asked_for_again(
    sites: dict[str, Any], make_small_study: Make, make_grid: Make, play_on: Make,
    small_arrays: dict[str, Array], tmp_path: Path,
) -> None:  # fmt: skip
    """A site that has done with its order, and whose reply never came, is sent it once more."""
    grid = make_grid(list(sites.values()))
    grid.swallow = {"b"}
    timing = Timing(sites_return=True, probe_s=0.05, resend_s=0.01, resends=3)
    play_on(make_small_study(rounds=1), grid, tmp_path, timing=timing)
    first = lines_of(tmp_path)[0]
    assert first["resent"] == ["b"]
    assert first["answered"] == ["a", "b", "c"]
    assert first["late"] == []
    down = {name: sizes["down"] for name, sizes in first["bytes"].items()}
    assert down["b"] == 2 * down["a"] == 2 * down["c"]
    assert moved(tmp_path, small_arrays[WEIGHT]) == pytest.approx(mean(sites, "abc"), abs=1e-6)
