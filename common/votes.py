"""What the members of an ensemble weigh, as their validation scores say (Opitz and Shavlik 1996).

Shapes: M members.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from common.arrays import Array
from common.layout import votes_name
from common.ranking import Floats
from common.study import Study

_CHANCE = 0.5
"""AUROC of a member where none is defined."""
_LEAST = 1e-6
"""A member that ranks every pair wrongly weighs next to nothing, and all members may be such."""


def arrays_of(study: Study, scores: Mapping[str, Sequence[float | None]]) -> dict[str, Array]:
    """Return what each member is to weigh, as arrays of the model by their names.

    It is a member's share of the sum: of the AUROCs, or of exp(-loss). In a task without scores all
    weigh the same.

    Args:
        study: What was agreed; its ``federation.score`` says what the scores are.
        scores: Of the M members in their order, by task; None where one is not defined.
    """
    kind, found = study.federation.score, {}
    for task in study.tasks:
        known = scores.get(task) or [None] * len(study.ensemble)
        worth_M = _of_aurocs(known) if kind == "auroc" else _of_losses(known)
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
