"""What the members of an ensemble weigh, as their scores on the sites' validation patients say.

Shapes: M members.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common import metrics
from common.arrays import Array, Arrays
from common.held_out import members_of
from common.layout import votes_group, votes_name
from common.ranking import Floats
from common.study import Study
from server.history import MEMBERS, RoundRecord, figures
from server.ingress import States

_CHANCE = 0.5
"""AUROC of a member where none is defined."""
_LEAST = 1e-6
"""A member that ranks every pair wrongly weighs next to nothing, and all members may be such."""


def note(
    record: RoundRecord,
    study: Study,
    states: Mapping[str, States],
    current: Mapping[str, Arrays],
) -> None:
    """Note in a record how each member did by itself, and what it weighs in the measured model.

    Args:
        record: Of an exchange that only measures; its ``tasks`` are there.
        study: What was agreed.
        states: What the sites measured, by site, then by task and name of the state.
        current: The arrays of the measured model, by group.
    """
    names = members_of(study)
    for task, said in study.tasks.items() if names else ():
        record.votes[task] = current[votes_group(task)][votes_name(task)].tolist()
        each = [[of[task, name] for of in states.values() if (task, name) in of] for name in names]
        if all(each):
            pooled = [figures(metrics.merge(parts), said.positive_index) for parts in each]
            record.tasks[task]["validation"][MEMBERS] = pooled


def arrays_of(study: Study, tasks: Mapping[str, Any]) -> dict[str, Array]:
    """Return what each member is to weigh, as arrays of the model by their names.

    It is a member's share of the sum: of the AUROCs, or of exp(-loss). Where no site told how the
    members did, all weigh the same.

    Args:
        study: What was agreed.
        tasks: Figures by task and split, as the record of the exchange that measured the model has
            them.
    """
    kind, found = study.federation.score, {}
    for task in study.tasks:
        members = tasks.get(task, {}).get("validation", {}).get(MEMBERS)
        scores = [one[kind] for one in members] if members else [None] * len(study.ensemble)
        worth_M = _of_aurocs(scores) if kind == "auroc" else _of_losses(scores)
        found[votes_name(task)] = (worth_M / worth_M.sum()).astype(np.float32)
    return found


def _of_aurocs(scores: Sequence[float | None]) -> Floats:
    known = [_CHANCE if score is None else score for score in scores]
    clipped: Floats = np.clip(np.array(known), _LEAST, 1.0)
    return clipped


def _of_losses(scores: Sequence[float | None]) -> Floats:
    """Return the exponentials of the negated losses, relative to the least: what is likeliest."""
    losses = np.array([0.0 if score is None else score for score in scores])
    worth: Floats = np.exp(losses.min() - losses)
    return worth
