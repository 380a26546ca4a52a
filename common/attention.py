"""Where a network looks, as sums that add: over test patients, of a site's class activation maps.

Maps stay at the site; of each figure there are how many patients stand behind it, the sum over
them, and the sum of what a map would have that is the same everywhere. A patient with several
images gives the mean of theirs.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays
from common.errors import ReplyError

ATTENTION = "attention"
"""The name by which a task's sums go in a reply, beside its metric states."""
FIGURES = ("border", "text", "outside", "pointing", "energy")
"""The rows. Of the map's sum, the share on the image's border, on burned-in text, and outside of
body or retina; whether its highest point lies in the mask or box (Zhang et al. 2018), and the share
of its sum within (Wang et al. 2020). ``docs/explanations.md`` says of which images each is."""
COLUMNS = ("patients", "sum", "even")
"""How many patients, the sum of their figures, and the sum of what an even map would have."""
Table = NDArray[np.float64]
"""Shape (figures, columns)."""

_ARRAY = "sums"
_SHAPE = (len(FIGURES), len(COLUMNS))
_MOST = 10**9


def to_arrays(table: Table) -> dict[str, NDArray[Any]]:
    """Return the wire form."""
    return {_ARRAY: table}


def from_arrays(arrays: Arrays) -> Table:
    """Return the table that arrays hold.

    Raises:
        ReplyError: They are not of this form, or no such sums can be.
    """
    if set(arrays) != {_ARRAY}:
        raise ReplyError("other arrays than the sums of attention")
    table = arrays[_ARRAY]
    if (table.dtype, table.shape) != (np.dtype(np.float64), _SHAPE):
        raise ReplyError(f"sums are {table.dtype} {table.shape} instead of float64 {_SHAPE}")
    if not np.isfinite(table).all() or np.any(table < 0):
        raise ReplyError("a sum is negative or not finite")
    patients = table[:, :1]
    if np.any(patients != patients.round()) or np.any(patients > _MOST):
        raise ReplyError("a number of patients is not whole")
    if np.any(table > patients):
        raise ReplyError("a sum is more than so many patients can have")
    return table


def merge(tables: Iterable[Table]) -> Table:
    """Return the sums over the patients of all sites; the order changes no bit of it.

    Args:
        tables: At least one.
    """
    found: Table = np.apply_along_axis(math.fsum, 0, np.stack(list(tables)))
    return found


def means(table: Table) -> dict[str, dict[str, float | int]]:
    """Return the means over patients, by figure; none of a figure without patients.

    Each has ``mean``, ``even`` (what an even map would have, to compare it with) and ``patients``.
    """
    return {
        name: {"mean": total / patients, "even": even / patients, "patients": int(patients)}
        for name, (patients, total, even) in zip(FIGURES, table.tolist(), strict=True)
        if patients
    }
