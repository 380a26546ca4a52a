"""Laws of sending orders and pulling replies, over a real grid with fake sites."""

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from common.arrays import Array, digest
from common.errors import FederationError, QuorumError, TaskWithoutSiteError
from common.messages import Order, Reply, order_to_record, size_in_bytes
from common.study import Study
from server.door import Door, enrol
from server.exchange import exchange, gather
from server.history import RoundRecord
from server.mail import Mail
from server.roster import Member
from server.timing import AT_ONCE, Timing

Make = Callable[..., Any]
GROUPS: dict[str, dict[str, Array]] = {
    "shared": {"w": np.arange(6, dtype=np.float32)},
    "head:ct": {"heads.ct.bias": np.zeros(2, np.float32)},
}
BASE: dict[str, Array] = {"counter": np.array(3, np.int64)}
COMING_AND_GOING = Timing(sites_return=True, gather_s=0.3, recheck_s=0.0, resend_s=0.01, resends=2)


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    """A study of the task that every fake site has."""
    return make_study(tasks={"ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"}})


def orders_for(members: Iterable[Member], study: Study) -> dict[str, tuple[Member, Order]]:
    order = Order("train", study, 1, GROUPS, digest(BASE), BASE)
    return {member.name: (member, order) for member in members}


def door_to(study: Study, grid: Any, timing: Timing = AT_ONCE) -> Door:
    return Door(study, Mail(grid), timing)


def collect(
    door: Door, study: Study, members: list[Member]
) -> tuple[dict[str, Reply], RoundRecord]:
    """Run one exchange, and return the replies by site and the record of the round."""
    record = RoundRecord(1, 0, trained=True)
    orders = orders_for(members, study)
    return {m.name: reply for m, reply in exchange(door, orders, record)}, record


def test_every_site_declares_itself(study: Study, make_site: Make, make_grid: Make) -> None:
    """Members come in the order of their names, with node, declaration and the base they hold."""
    sites = [make_site("c"), make_site("a", {"ct": 4}), make_site("b", base=BASE)]
    members = enrol(door_to(study, make_grid(sites)), 3)
    assert [(m.name, m.node_id, m.base) for m in members] == [
        ("a", 2, ""), ("b", 3, digest(BASE)), ("c", 1, ""),
    ]  # fmt: skip
    assert members[0].declaration.patients == 4
    asked = [order for site in sites for order in site.orders]
    assert {(o.kind, o.round, len(o.groups), o.base) for o in asked} == {("check", 0, 0, None)}


def test_sites_that_refuse_are_left_out(study: Study, make_site: Make, make_grid: Make) -> None:
    """Enrolment goes on without a site that refuses, fails, or has none of the tasks."""
    sites = [make_site(name) for name in ("a", "b", "refusing", "failing", "idle", "other")]
    sites[2].answer = lambda _: Reply("refusing", study.digest(), 0, refusal="data")
    sites[3].answer = lambda _: 1 / 0
    sites[4].tasks = {}
    sites[5].tasks = {"unknown": 3}
    members = enrol(door_to(study, make_grid(sites)), 6)
    assert [member.name for member in members] == ["a", "b"]


def test_the_roster_is_checked(
    study: Study, make_study: Make, make_site: Make, make_grid: Make
) -> None:
    """Two sites of one name, too few sites, and a task without a site each end the enrolment."""
    with pytest.raises(FederationError, match="called a"):
        enrol(door_to(study, make_grid([make_site("a"), make_site("a")])), 2)
    refusing = make_site("b")
    refusing.answer = lambda _: Reply("b", study.digest(), 0, refusal="missing_folder")
    with pytest.raises(QuorumError, match="b refused: missing_folder"):
        enrol(door_to(study, make_grid([make_site("a"), refusing])), 2)
    with pytest.raises(TaskWithoutSiteError, match="the task mr"):
        enrol(door_to(make_study(), make_grid([make_site("a"), make_site("b")])), 2)


def test_a_declaration_for_another_study_does_not_count(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """A site that answers for another digest is refused by name."""
    stray = make_site("stray")
    honest = stray.answer
    stray.answer = lambda order: honest(order)._replace(digest="0" * 64)
    with pytest.raises(QuorumError, match="stray refused: it answers for another study"):
        enrol(door_to(study, make_grid([make_site("a"), stray])), 2)


def test_enrolment_waits_for_the_expected_sites(
    make_study: Make, make_site: Make, make_grid: Make
) -> None:
    """It waits until as many are there as are expected, at most until the deadline."""
    federation = {"quorum": 1, "deadline_s": 0.3}
    task = {"ct": {"modality": "CT", "classes": ["a", "b"]}}
    study = make_study(tasks=task, federation=federation)
    grid = make_grid([make_site("a")])
    began = time.monotonic()
    assert len(enrol(door_to(study, grid), 2)) == 1
    assert 0.3 <= time.monotonic() - began < 5

    late = make_grid([make_site("a"), make_site("b")])
    everyone = list(late.get_nodes())
    looks = iter([[], everyone[:1], everyone])
    late.get_nodes = lambda: next(looks)
    assert len(enrol(door_to(study, late), 2)) == 2


def test_every_reply_comes_once(study: Study, make_site: Make, make_grid: Make) -> None:
    """Each site is asked once, its reply arrives intact, and its bytes are counted both ways."""
    sites = [make_site(name, change=change) for name, change in (("b", 1.0), ("a", 2.0))]
    grid = make_grid(sites)
    door = door_to(study, grid)
    members = enrol(door, 2)
    replies, record = collect(door, study, members)
    assert [len(site.orders) for site in sites] == [2, 2]
    assert (record.asked, record.silent, record.refused) == (["a", "b"], [], {})
    for site in sites:
        assert (replies[site.name].groups["shared"]["w"] == site.change).all()
    down = size_in_bytes(order_to_record(orders_for(members, study)["a"][1]))
    assert {name: sizes["down"] for name, sizes in record.bytes.items()} == {"a": down, "b": down}
    assert all(sizes["up"] > 0 for sizes in record.bytes.values())


def test_arrays_are_encoded_once_for_all_sites(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """However many sites are asked, their messages share one copy of the encoded arrays."""
    grid = make_grid([make_site(name) for name in "abcd"])
    door = door_to(study, grid)
    members = enrol(door, 4)
    pushed: list[Message] = []
    push = grid.push_messages

    def note(messages: Iterable[Message]) -> list[str]:
        pushed.extend(messages)
        return list(push(pushed))

    grid.push_messages = note
    collect(door, study, members)
    assert len(pushed) == 4
    for name in ("shared", "head:ct", "base"):
        assert len({id(message.content[name]) for message in pushed}) == 1


def test_what_a_site_did_wrong_is_recorded(study: Study, make_site: Make, make_grid: Make) -> None:
    """A malformed reply and an exception cost their sites the round, and the base is resent."""

    def malformed(_reply: Reply, _order: Order) -> RecordDict:
        return RecordDict({"reply": ConfigRecord({"header": "{"})})

    def failing(_reply: Reply, _order: Order) -> Reply:
        raise RuntimeError("patient 17")

    sites = [make_site("a"), make_site("b", spoil=malformed), make_site("c", spoil=failing)]
    grid = make_grid(sites)
    door = door_to(study, grid)
    members = enrol(door, 3)
    for member in members:
        member.base = digest(BASE)
    replies, record = collect(door, study, members)
    assert list(replies) == ["a"]
    assert set(record.refused) == {"b", "c"}
    assert "malformed" in record.refused["b"]
    assert "client failed" in record.refused["c"]
    assert "patient 17" not in str(record.refused)
    assert record.silent == []
    assert [member.base for member in members] == [digest(BASE), "", ""]


def test_a_silent_site_closes_at_the_deadline(
    make_study: Make, make_site: Make, make_grid: Make
) -> None:
    """The exchange waits for a silent site until the deadline, and notes that it was silent."""
    task = {"ct": {"modality": "CT", "classes": ["a", "b"]}}
    study = make_study(tasks=task, federation={"deadline_s": 0.3})
    grid = make_grid([make_site(name) for name in "abc"], deaf=["b"])
    door = door_to(study, grid)
    members = enrol(door, 3)
    began = time.monotonic()
    replies, record = collect(door, study, members)
    assert 0.3 <= time.monotonic() - began < 5
    assert set(replies) == {"a", "c"}
    assert record.silent == ["b"]
    assert record.bytes["b"]["up"] == 0


def test_a_slow_site_is_waited_for(study: Study, make_site: Make, make_grid: Make) -> None:
    """A reply that is not there at the first looks is pulled at a later one."""
    grid = make_grid([make_site("a"), make_site("b")], deaf=["a"])
    door = door_to(study, grid)
    members = enrol(door, 2)
    pull, looks = grid.pull_messages, []

    def later(ids: list[str]) -> Iterable[Message]:
        looks.append(ids)
        if len(looks) == 5:
            grid.deaf = set()
        return list(pull(ids))

    grid.pull_messages = later
    replies, record = collect(door, study, members)
    assert list(replies) == ["b", "a"]
    assert record.silent == []
    assert all(len(ids) == 1 for ids in looks)


@pytest.mark.parametrize("lost", ["one", "all"])
def test_a_message_that_cannot_be_pushed_is_a_silent_site(
    lost: str, study: Study, make_site: Make, make_grid: Make
) -> None:
    """Flower gives None for a message that it could not push, or nothing; nobody waits then."""
    grid = make_grid([make_site(name) for name in "abc"])
    door = door_to(study, grid)
    members = enrol(door, 3)
    push = grid.push_messages

    def some(messages: Iterable[Message]) -> list[str | None]:
        first, *others = push(messages)
        return [] if lost == "all" else [first, None, *others[1:]]

    grid.push_messages = some
    replies, record = collect(door, study, members)
    assert set(replies) == ({"a", "c"} if lost == "one" else set())
    assert record.silent == (["b"] if lost == "one" else ["a", "b", "c"])


def test_only_who_has_not_joined_is_asked_to_declare_itself(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """Neither the sites that are asked to train nor the members that this round leaves out."""
    sites = [make_site("a"), make_site("b"), make_site("c", refusal="data")]
    door = door_to(study, make_grid(sites), COMING_AND_GOING)
    members = enrol(door, 2)
    asked = {name: len(site.orders) for name, site in zip("abc", sites, strict=True)}
    collect(door, study, members[:1])
    collect(door, study, members[:1])
    kinds = [[order.kind for order in site.orders[asked[site.name] :]] for site in sites]
    assert kinds[:2] == [["train", "train"], []]
    assert set(kinds[2]) == {"check"}
    assert door.newcomers() == []


def test_an_order_that_cannot_be_sent_again_is_tried_once_more(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """Where Flower does not take the second letter, a third one goes out."""
    site = make_site("a", losses=[0, ErrorCode.NODE_UNAVAILABLE])
    grid = make_grid([site, make_site("b")])
    door = door_to(study, grid, COMING_AND_GOING)
    members = enrol(door, 2)
    push, pushes = grid.push_messages, []

    def some(messages: Iterable[Message]) -> list[str | None]:
        pushes.append(list(messages))
        return [None] if len(pushes) == 2 else list(push(pushes[-1]))

    grid.push_messages = some
    replies, record = collect(door, study, members)
    assert set(replies) == {"a", "b"}
    assert (len(pushes), record.resent) == (3, ["a"])


def gathering(study: Study, make_site: Make, make_grid: Make) -> tuple[Door, list[Any], Any]:
    sites = [make_site(name) for name in "abc"]
    door = door_to(study, make_grid(sites), COMING_AND_GOING)
    return door, sites, enrol(door, 3)


def test_a_member_that_has_just_gone_is_waited_for_once(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """For as long as was agreed; after that it is away, and taken up when it is back."""
    door, sites, members = gathering(study, make_site, make_grid)
    assert [m.name for m in gather(door, members, RoundRecord(1, 0, trained=True))[1]] == [
        "a",
        "b",
        "c",
    ]
    sites[1].away = True
    began = time.monotonic()
    assert [m.name for m in gather(door, members, RoundRecord(1, 0, trained=True))[1]] == ["a", "c"]
    assert COMING_AND_GOING.gather_s <= time.monotonic() - began < 5
    assert [m.away for m in members] == [False, True, False]
    began = time.monotonic()
    assert [m.name for m in gather(door, members, RoundRecord(1, 0, trained=True))[1]] == ["a", "c"]
    assert time.monotonic() - began < COMING_AND_GOING.gather_s
    sites[1].away = False
    assert [m.name for m in gather(door, members, RoundRecord(1, 0, trained=True))[1]] == [
        "a",
        "b",
        "c",
    ]
    assert not any(m.away for m in members)


def test_a_member_that_is_back_in_time_was_not_away(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """The wait is over as soon as everyone is there."""
    door, sites, members = gathering(study, make_site, make_grid)
    sites[0].away = True
    present, looks = door.mail.present, []

    def back_at_the_second_look() -> dict[int, str]:
        looks.append(present())
        sites[0].away = False
        return looks[-1]

    door.mail.present = back_at_the_second_look  # type: ignore[method-assign]
    assert [m.name for m in gather(door, members, RoundRecord(1, 0, trained=True))[1]] == [
        "a",
        "b",
        "c",
    ]
    assert len(looks) == 2


def test_fewer_than_the_quorum_are_waited_for_until_the_deadline(
    make_small_study: Make, make_site: Make, make_grid: Make
) -> None:
    """A round is not begun with too few while they may come; then it is, and fails by itself."""
    study = make_small_study(deadline_s=0.25)
    door, sites, members = gathering(study, make_site, make_grid)
    sites[0].away = sites[1].away = True
    for _ in range(2):  # though both are known to be away the second time
        began = time.monotonic()
        assert [m.name for m in gather(door, members, RoundRecord(1, 0, trained=True))[1]] == ["c"]
        assert 0.25 <= time.monotonic() - began < 5


def test_one_reply_is_in_memory_at_a_time(study: Study, make_site: Make, make_grid: Make) -> None:
    """Before the next one comes, the exchange holds nothing of the one before."""
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def count(reply: Reply, _order: Order) -> Reply:
        alive.append(sum(reference() is not None for reference in held))
        return reply

    door = door_to(study, make_grid([make_site(name, spoil=count) for name in "abcd"]))
    orders = orders_for(enrol(door, 4), study)
    for _, reply in exchange(door, orders, RoundRecord(1, 0, trained=True)):
        held.append(weakref.ref(reply.groups["shared"].record))  # type: ignore[attr-defined]
        del reply
    assert (len(held), alive) == (4, [0] * 4)
