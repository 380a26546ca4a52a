"""Bootstrap of cases of which only the counts of cells are known.

To draw n of n cases with replacement is to draw the counts of their cells from a multinomial
distribution. The cases of all sites are drawn as one sample, as a bootstrap over the data laid
together would do. To draw within each site would take the sites' shares for given, and draws from
a site of n cases vary by a share of 1 / n too little: of the small sites that rare diseases have,
by a fifth where a site has five. Shapes: D draws, K classes, B bins in use, S cells.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from common.metrics import MetricState
from common.ranking import Floats, Ints

DRAWS = 2000
_CHUNK = 100
"""Draws whose rankings are computed at once; all of them would take hundreds of MiB."""


class _Cells(NamedTuple):
    """Cases that are alike in label and bin; each array is (S,)."""

    label: Ints
    low: Ints
    high: Ints
    counts: Ints


def confusions(state: MetricState, rng: np.random.Generator) -> Ints:
    """Return (D, K, K): confusion matrices."""
    return _drawn(state.confusion.ravel(), DRAWS, rng).reshape(DRAWS, *state.confusion.shape)


def histograms(state: MetricState, k: int, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints]]:
    """Yield draws of the k-th ranked class, (d, 2, B) at a time, by lowest and by highest bin."""
    cells = _cells_of(state, k)
    used, places = np.unique(np.stack([cells.low, cells.high]), return_inverse=True)
    for _ in range(0, DRAWS, _CHUNK):
        drawn = _drawn(cells.counts, _CHUNK, rng).T
        lower, upper = np.zeros((2, _CHUNK, 2, len(used)), np.int64)
        for counts, bins in ((lower, places[0]), (upper, places[1])):
            np.add.at(counts.transpose(1, 2, 0), (cells.label, bins), drawn)
        yield lower, upper


def calibration_errors(state: MetricState, rng: np.random.Generator) -> Floats:
    """Return (D,): calibration errors.

    A case is drawn as right or wrong in its bin, with the mean confidence of the bin: within a bin
    of 1/15 confidence varies too little to matter beside right and wrong.
    """
    count, confidence, correct = state.calibration.T
    mean = np.divide(confidence, count, out=np.zeros_like(count), where=count > 0)
    cells = np.concatenate([correct, count - correct]).astype(np.int64)
    hits, misses = np.split(_drawn(cells, DRAWS, rng), 2, axis=1)
    errors: Floats = np.abs(hits - (hits + misses) * mean).sum(axis=1) / state.n_images
    return errors


def are_merged(state: MetricState) -> bool:
    """Say whether the site merged bins, so that of some cases the bin is not known."""
    return not np.array_equal(state.histogram, state.histogram_upper)


def _drawn(counts: Ints, n_draws: int, rng: np.random.Generator) -> Ints:
    """Return (n_draws, S): as many cases as there are, drawn with replacement."""
    total = counts.sum()
    return rng.multinomial(total, counts / total, size=n_draws)


def _cells_of(state: MetricState, k: int) -> _Cells:
    """Return the cells in use; merged bins keep the order that their cases had."""
    parts = []
    for label in (0, 1):
        low, high = (
            np.repeat(np.arange(histogram.shape[-1]), histogram[k, label])
            for histogram in (state.histogram, state.histogram_upper)
        )
        pairs, count = np.unique(np.stack([low, high]), axis=1, return_counts=True)
        parts.append((np.full(len(count), label), *pairs, count))
    return _Cells(*(np.concatenate(column) for column in zip(*parts, strict=True)))
