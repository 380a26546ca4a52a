"""Laws of the sites with which a study may begin."""

from collections.abc import Callable, Sequence

import pytest

from common.errors import FederationError, QuorumError, TaskWithoutSiteError
from common.statements import Counted, Declaration, Splits
from common.study import Study
from server.roster import Member, check_roster, joined

Make = Callable[..., Study]
COUNTS = Counted(patients=1, images=1)
SPLITS = Splits(train=COUNTS, validation=COUNTS, test=COUNTS)


def member(name: str, *tasks: str) -> Member:
    declared = Declaration(
        software="1", base="", tasks=dict.fromkeys(tasks, SPLITS), unreadable={}, patients=1
    )
    return Member(1, name, declared, "")


def test_a_complete_roster_passes(make_study: Make) -> None:
    """Enough sites, each of another name, and every task at one of them at least."""
    check_roster(make_study(), [member("a", "ct"), member("b", "mr")], {"c": "data"})


def test_tasks_are_sorted() -> None:
    """A member's tasks come in the order of their names, whatever the site sent."""
    assert member("a", "mr", "ct").tasks == ("ct", "mr")


def test_two_sites_of_one_name_are_refused(make_study: Make) -> None:
    """Names are how replies are told apart; every name that is used twice is listed."""
    members = [member(name, "ct", "mr") for name in ("b", "a", "b", "c", "a")]
    with pytest.raises(FederationError, match=r"called a, b\.") as refused:
        check_roster(make_study(), members, {})
    assert type(refused.value) is FederationError
    assert "site.toml" in refused.value.remedy


@pytest.mark.parametrize("members", [[], [member("a", "ct", "mr")]])
def test_fewer_sites_than_the_quorum_are_refused(
    make_study: Make, members: Sequence[Member]
) -> None:
    """The refusal counts who is ready, and says who is not and why."""
    with pytest.raises(QuorumError, match=f"{len(members)} sites are ready, the quorum is 2") as no:
        check_roster(make_study(), members, {"z": "label", "y": "missing_folder"})
    assert "\n  - y refused: missing_folder\n  - z refused: label" in no.value.message
    assert no.value.remedy


def test_every_task_without_a_site_is_listed(make_study: Make) -> None:
    """A study with tasks that nobody has cannot begin; all of them are named."""
    task = {"modality": "CT", "classes": ["a", "b"]}
    study = make_study(tasks=dict.fromkeys(("w", "x", "y", "z"), task))
    with pytest.raises(TaskWithoutSiteError, match=r"the task w, z\.\n  - c refused: data") as no:
        check_roster(study, [member("a", "x"), member("b", "y")], {"c": "data"})
    assert "[data.TASK]" in no.value.remedy


def test_newcomers_are_among_the_members_by_name() -> None:
    """All are sorted, and the members themselves stay the objects that they were."""
    members = [member("a", "ct"), member("d", "ct")]
    found = joined(members, [member("e", "ct"), member("b", "mr")])
    assert [m.name for m in found] == ["a", "b", "d", "e"]
    assert (found[0], found[2]) == (members[0], members[1])
    assert found[0] is members[0]
    assert joined(members, []) == members


def test_a_newcomer_takes_the_place_of_its_name() -> None:
    """A site with another key is not there twice; the last one of a name counts."""
    old, new, newest = (member("a", *tasks) for tasks in (["ct"], ["mr"], ["ct", "mr"]))
    new.node_id, newest.node_id = 2, 3
    assert joined([old, member("b", "ct")], [new, newest])[0] is newest
    assert len(joined([old], [new])) == 1
