"""The metric states that a site reports of a task: of each held-out split one, or two.

In the first each image counts. Where patients have several images there is a second, in which
each patient counts once.
"""

from collections.abc import Mapping

HELD_OUT = ("validation", "test")
"""The splits that a site reports metrics of; a state of images goes by its split's name."""
OF_PATIENTS: Mapping[str, str] = {split: f"{split}_patients" for split in HELD_OUT}
"""The name of the state of patients, by split."""
SPLIT_OF: Mapping[str, str] = {
    **{split: split for split in HELD_OUT},
    **{name: split for split, name in OF_PATIENTS.items()},
}
"""The split that a state is of, by the name of the state."""
