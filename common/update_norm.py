"""The norm of a site's change, which a study may bound: the site shortens, both sides check.

A bounded change limits what one site can do to the model, by mistake or on purpose (norm clipping,
Sun et al. 2019, arXiv:1911.07963).
"""

import math
from collections.abc import Mapping

import numpy as np

from common.arrays import Arrays, pieces_of
from common.layout import STATISTICS

SLACK = 1e-3
"""A shortened change may exceed the bound by so much of it: float16 rounds each number by up to
2^-11 of itself."""
_CHUNK = 1 << 20


def update_norm(groups: Mapping[str, Arrays]) -> float:
    """Return the L2 norm over all trained arrays; NaN or infinity if one of them is not finite.

    Running statistics of batch normalisation are measured, not trained, and are left out.

    Args:
        groups: The change of each group's arrays.
    """
    squares = [
        float(np.square(piece[begin : begin + _CHUNK], dtype=np.float64).sum())
        for group, arrays in groups.items()
        if group != STATISTICS
        for name in arrays
        for piece in pieces_of(arrays, name)
        for begin in range(0, piece.size, _CHUNK)
    ]
    return math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.inf


def is_within(groups: Mapping[str, Arrays], bound: float | None) -> bool:
    """Say whether a change keeps to a study's bound, or the study has none."""
    return bound is None or update_norm(groups) <= bound * (1 + SLACK)


def factor_within(groups: Mapping[str, Arrays], bound: float | None) -> float:
    """Return what a change has to be multiplied by to keep to the bound, in (0, 1]."""
    norm = 0.0 if bound is None else update_norm(groups)
    return 1.0 if bound is None or norm <= bound else bound / norm
