"""Laws of how sites come in, at the beginning and between rounds."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import RecordDict
from flwr.common.constant import ErrorCode

from common.errors import FederationError, QuorumError
from common.messages import Order, Reply
from common.study import Study
from server.door import Door, enrol
from server.mail import Mail
from server.timing import AT_ONCE, Timing

Make = Callable[..., Any]
PATIENT = Timing(sites_return=True, gather_s=10.0, recheck_s=0.02)
"""Who is missing is waited for."""
HASTY = Timing(sites_return=True, gather_s=0.1, recheck_s=0.02)
SELDOM = Timing(sites_return=True, recheck_s=0.5)


@pytest.fixture
def study(make_small_study: Make) -> Study:
    found: Study = make_small_study()
    return found


@pytest.fixture
def door_to(study: Study, make_grid: Make) -> Callable[..., Door]:
    def door(sites: list[Any], timing: Timing = AT_ONCE, of: Study = study) -> Door:
        return Door(of, Mail(make_grid(sites)), timing)

    return door


def listen(door: Door) -> None:
    """Ask whoever is to be asked, and hear all that has come."""
    door.ask(door.mail.present())
    for arrived in door.mail.pull():
        door.hear(arrived)


def names(door: Door) -> list[str]:
    return [member.name for member in door.newcomers()]


def test_a_site_is_asked_what_it_holds_and_no_more(
    study: Study, make_site: Make, door_to: Make
) -> None:
    """The order to declare itself carries the study and neither arrays nor base."""
    site = make_site("a")
    listen(door_to([site]))
    (order,) = site.orders
    assert (order.kind, order.round, order.groups, order.base) == ("check", 0, {}, None)
    assert order.study.digest() == study.digest()


def test_newcomers_come_once(make_site: Make, door_to: Make) -> None:
    """Who has been taken up by a round does not come again, and is not asked again."""
    sites = [make_site("a"), make_site("b")]
    door = door_to(sites, HASTY)
    listen(door)
    assert names(door) == ["a", "b"]
    for _ in range(3):
        time.sleep(HASTY.recheck_s)
        listen(door)
        assert names(door) == []
    assert [len(site.orders) for site in sites] == [1, 1]


def test_a_site_that_has_joined_is_not_asked_again_when_it_was_away(
    make_site: Make, door_to: Make
) -> None:
    """It is a member still, with the node it had."""
    site = make_site("a")
    door = door_to([site], HASTY)
    listen(door)
    site.away = True
    listen(door)
    site.away = False
    time.sleep(HASTY.recheck_s)
    listen(door)
    assert len(site.orders) == 1
    assert names(door) == ["a"]


@pytest.mark.parametrize("timing", [AT_ONCE, SELDOM])
def test_a_site_that_was_refused_is_asked_once_in_a_while(
    timing: Timing, make_site: Make, door_to: Make
) -> None:
    """Not sooner than agreed, and not at all where everybody is there from the beginning."""
    site = make_site("a", refusal="data")
    door = door_to([site], timing)
    for _ in range(3):
        listen(door)
    assert len(site.orders) == 1
    assert door.refused == {"a": "data"}
    time.sleep(SELDOM.recheck_s)
    site.refusal = ""
    listen(door)
    returned = timing is SELDOM
    assert names(door) == (["a"] if returned else [])
    assert door.refused == ({} if returned else {"a": "data"})


def test_who_has_not_answered_yet_is_asked_again_only_after_a_while(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """However often the coordinator looks, the next order goes out when the pause is over.

    However many were answered, the site joins once.
    """
    site = make_site("a")
    grid = make_grid([site])
    pull = grid.pull_messages
    grid.pull_messages = lambda _ids: []
    door = Door(study, Mail(grid), SELDOM)
    for _ in range(4):
        listen(door)
    assert len(grid._pushed) == 1
    time.sleep(SELDOM.recheck_s)
    listen(door)
    assert len(grid._pushed) == 2
    grid.pull_messages = pull
    listen(door)
    assert names(door) == ["a"]


def wrong_site(reply: Reply) -> Reply:
    return reply._replace(site="other")


def wrong_study(reply: Reply) -> Reply:
    return reply._replace(digest="0" * 64)


def other_tasks(reply: Reply) -> Reply:
    assert reply.declaration is not None
    declared = reply.declaration.model_copy(update={"each_image": ("other",)})
    return reply._replace(declaration=declared)


def nothing(reply: Reply) -> Reply:
    return reply._replace(declaration=None)


def torn(reply: Reply) -> Reply:
    return reply._replace(refusal="label")


def malformed(_reply: Reply) -> RecordDict:
    return RecordDict()


@pytest.mark.parametrize("enrolled", ["", "a"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (wrong_study, "for another study"),
        (other_tasks, "for another study"),
        (nothing, "no declaration"),
        (torn, "label"),
        (malformed, "malformed"),
        (wrong_site, "under another site's name"),
    ],
)
def test_an_answer_that_is_none_keeps_the_site_out(
    spoil: Callable[[Reply], Any], why: str, enrolled: str, make_site: Make, door_to: Make
) -> None:
    """The reason stands beside the name that the site was enrolled under, or beside its node."""
    site = make_site("a", enrolled=enrolled)
    honest = site.answer
    site.answer = lambda order: spoil(honest(order))
    door = door_to([site])
    listen(door)
    if spoil is wrong_site and not enrolled:
        assert names(door) == ["other"]  # a grid without names believes what it is told
        return
    assert names(door) == []
    ((who, reason),) = door.refused.items()
    assert why in reason
    assert who == ("node 1" if spoil is malformed and not enrolled else "a")


@pytest.mark.parametrize(
    ("tasks", "why"), [({}, "none of the study's tasks"), ({"ct": 1, "mr": 1}, "another study")]
)
def test_a_site_has_tasks_of_the_study_only(
    tasks: dict[str, int], why: str, make_site: Make, door_to: Make
) -> None:
    """One without any has no part in it, and one with others answers something else."""
    door = door_to([make_site("a", tasks)])
    listen(door)
    assert names(door) == []
    assert why in door.refused["a"]


def test_a_site_with_another_key_is_another_node(make_site: Make, door_to: Make) -> None:
    """A machine that was set up anew joins under its name, from the node that it is now."""
    old, new = make_site("a", enrolled="a"), make_site("a", enrolled="a", away=True)
    door = door_to([old, new], HASTY)
    listen(door)
    old.away, new.away = True, False
    listen(door)
    assert [(m.name, m.node_id) for m in door.newcomers()] == [("a", 1), ("a", 2)]


def test_enrolment_waits_for_a_site_that_is_missing(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """Who connects, changes its mind or is back from a crash in time takes part from the start."""
    late = make_site("late", away=True)
    refusing = make_site("refusing", refusal="data")
    crashed = make_site("crashed", losses=[ErrorCode.NODE_UNAVAILABLE])

    def all_is_well(order: Order) -> None:
        assert order.kind == "check"
        late.away, refusing.refusal = False, ""

    crashed.meanwhile = all_is_well
    sites = [make_site("a"), make_site("b"), late, refusing, crashed]
    members = enrol(Door(study, Mail(make_grid(sites)), PATIENT), len(sites))
    assert [member.name for member in members] == ["a", "b", "crashed", "late", "refusing"]


@pytest.mark.parametrize("why", ["away", "refusal"])
def test_enrolment_goes_on_without_a_site_when_the_time_to_gather_has_passed(
    why: str, study: Study, make_site: Make, make_grid: Make
) -> None:
    """Not before it has, and long before the deadline, once the study can begin."""
    missing = make_site("c", **({"away": True} if why == "away" else {"refusal": "data"}))
    door = Door(study, Mail(make_grid([make_site("a"), make_site("b"), missing])), HASTY)
    began = time.monotonic()
    assert [member.name for member in enrol(door, 3)] == ["a", "b"]
    assert HASTY.gather_s <= time.monotonic() - began < 5
    assert door.refused == ({} if why == "away" else {"c": "data"})


def test_enrolment_with_too_few_sites_ends_at_the_deadline(
    make_small_study: Make, make_site: Make, make_grid: Make
) -> None:
    """Those who are missing are waited for until then, even where sites come and go."""
    study = make_small_study(deadline_s=0.3)
    sites = [make_site("a"), make_site("b", refusal="label"), make_site("c", away=True)]
    began = time.monotonic()
    with pytest.raises(QuorumError, match="1 sites are ready, the quorum is 2") as refused:
        enrol(Door(study, Mail(make_grid(sites)), HASTY), 3)
    assert "b refused: label" in refused.value.message
    assert 0.3 <= time.monotonic() - began < 5


def test_a_mute_site_does_not_keep_the_study_from_beginning(
    make_small_study: Make, make_site: Make, make_grid: Make
) -> None:
    """One that is connected and never answers is waited for until the deadline, no longer."""
    study = make_small_study(deadline_s=0.2)
    grid = make_grid([make_site("a"), make_site("b"), make_site("mute")])
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: pull(
        [i for i in ids if grid._pushed[i].metadata.dst_node_id < 3]
    )
    began = time.monotonic()
    members = enrol(Door(study, Mail(grid), HASTY), 3)
    assert [member.name for member in members] == ["a", "b"]
    assert time.monotonic() - began < 5


def test_two_sites_of_one_name_cannot_both_be_believed(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """Where the grid knows no names, nobody can tell them apart, and nothing begins."""
    with pytest.raises(FederationError, match="called a"):
        enrol(Door(study, Mail(make_grid([make_site("a"), make_site("a")])), AT_ONCE), 2)


def test_a_declaration_that_never_came_is_asked_for_again(
    study: Study, make_site: Make, make_grid: Make
) -> None:
    """A site that is there and silent is asked once more, and joins once."""
    grid = make_grid([make_site("a"), make_site("b")])
    grid.swallow_checks = {"b"}
    began = time.monotonic()
    members = enrol(Door(study, Mail(grid), PATIENT), 2)
    assert [member.name for member in members] == ["a", "b"]
    assert time.monotonic() - began < PATIENT.gather_s
