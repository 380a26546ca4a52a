"""Laws of the sites with which a study may begin."""

from collections.abc import Callable, Sequence

import pytest

from common.errors import FederationError, QuorumError, TaskWithoutSiteError
from common.messages import Counted, Declaration, Splits
from common.study import Study
from server.roster import Member, check_roster

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
