"""The metric states that a site reports of a task: of each held-out split one, or two.

In the first each image counts. Where patients have several images there is a second, in which
each patient counts once.

Where the members of an ensemble are to vote by their validation scores, an order that only measures
asks for one more state of each member by itself: on the validation patients, each counting once.
"""

from collections.abc import Mapping

from common.backbones import MOST_MEMBERS
from common.study import Study

HELD_OUT = ("validation", "test")
"""The splits that a site reports metrics of; a state of images goes by its split's name."""
OF_PATIENTS: Mapping[str, str] = {split: f"{split}_patients" for split in HELD_OUT}
"""The name of the state of patients, by split."""
SPLIT_OF: Mapping[str, str] = {
    **{split: split for split in HELD_OUT},
    **{name: split for split, name in OF_PATIENTS.items()},
}
"""The split that a state is of, by the name of the state."""
MEMBERS = tuple(f"validation.{number}" for number in range(MOST_MEMBERS))
"""The name of the state of each member of an ensemble, in their order."""


def members_of(study: Study) -> tuple[str, ...]:
    """Return the names of the members' states that the end of a study asks for; often none."""
    return MEMBERS[: len(study.ensemble)] if study.federation.votes == "validation" else ()
