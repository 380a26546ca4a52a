"""Bins of histograms merged until each holds images of several patients.

A bin holds k patients for sure if it holds more images of a label than those k - 1 patients have
together who have most of them. That can be told from the state itself, and is more than needed
where patients have many images.

Shapes: C ranked classes, as in ``common/metrics.py``.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from common.arrays import Array
from common.metrics import MetricState
from common.ranking import BINS, Floats, Ints


class Least(NamedTuple):
    """How many images are surely of k patients."""

    by_label: Array
    """(C, 2): of the negatives and the positives of each ranked class."""
    of_all: int

    @classmethod
    def of(cls, classes: Sequence[Mapping[str, int]], positive: int | None, k: int) -> Self:
        """Return how many images are surely of ``k`` patients.

        Args:
            classes: For each class, how many images of it a patient has, by the patient's hash.
            positive: Index of the positive class, or None for a multi-class task.
            k: At least 1.
        """

        def least(chosen: Iterable[int]) -> int:
            images: Counter[str] = sum((Counter(classes[c]) for c in chosen), Counter())
            return sum(heapq.nlargest(k - 1, images.values())) + 1

        every = range(len(classes))
        ranked = every if positive is None else (positive,)
        by_label = [[least(c for c in every if c != r), least((r,))] for r in ranked]
        return cls(np.array(by_label), least(every))

    def holds(self, state: MetricState) -> bool:
        """Say whether every bin in use holds enough."""
        by_label = self.by_label[..., np.newaxis]
        tables = (state.histogram, by_label), (state.histogram_upper, by_label)
        return all(
            bool(np.all((table == 0) | (table >= least)))
            for table, least in (*tables, (state.calibration[:, 0], self.of_all))
        )


def merged(state: MetricState, least: Least) -> MetricState:
    """Merge neighbouring bins until each holds no image of a label, or enough of it.

    Where even all bins together do not, they are merged all the same, and the state is withheld.
    """
    if least.holds(state) or not np.array_equal(state.histogram, state.histogram_upper):
        return state
    pairs = [_spread(*row) for row in zip(state.histogram, least.by_label, strict=True)]
    lower, upper = (np.stack(side) for side in zip(*pairs, strict=True))
    calibration = _gathered(state.calibration, least.of_all)
    return replace(state, histogram=lower, histogram_upper=upper, calibration=calibration)


def all_merged(state: MetricState) -> MetricState:
    """Merge all bins of each histogram into one, where no ranking is asked for."""
    beyond = state.n_images + 1
    return merged(state, Least(np.full(state.histogram.shape[:2], beyond), beyond))


def _spread(histogram: Ints, least: Array) -> tuple[Ints, Ints]:
    """Return the (2, BINS) counts of merged bins, once at their lowest and once at their highest.

    Merged bins reach half-way to their neighbours: their ends are no image's own bin.
    """
    used = np.flatnonzero(histogram.sum(axis=0))
    runs = _runs(histogram[:, used], least)
    lower, upper = np.zeros_like(histogram), np.zeros_like(histogram)
    for number, (first, last) in enumerate(runs):
        begin = (used[first - 1] + used[first]) // 2 + 1 if number else 0
        end = (used[last] + used[last + 1]) // 2 if number < len(runs) - 1 else BINS - 1
        if first == last:
            begin = end = used[first]
        counts = histogram[:, used[first] : used[last] + 1].sum(axis=1)
        lower[:, begin] += counts
        upper[:, end] += counts
    return lower, upper


def _gathered(calibration: Floats, least: int) -> Floats:
    """Merge bins of the calibration table; its error can only become smaller by that."""
    used = np.flatnonzero(calibration[:, 0])
    merged = np.zeros_like(calibration)
    for first, last in _runs(calibration[np.newaxis, used, 0], np.array([least])):
        merged[used[first]] = calibration[used[first] : used[last] + 1].sum(axis=0)
    return merged


def _runs(counts: Array, least: Array) -> list[tuple[int, int]]:
    """Cut bins into runs, from the lowest up, each as short as it can be.

    Args:
        counts: (L, U) counts of L labels in the U bins in use.
        least: (L,), what each run holds at least of each label that it holds at all.

    Returns:
        First and last bin of each run; what is left over at the end joins the runs before.
    """
    before = np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1)

    def enough(begin: int, end: int) -> bool:
        held = before[:, end] - before[:, begin]
        return bool(np.all((held == 0) | (held >= least)))

    ends = [0]
    for end in range(1, counts.shape[1] + 1):
        if enough(ends[-1], end):
            ends.append(end)
    if ends[-1] < counts.shape[1]:
        last = counts.shape[1]
        while len(ends) > 1 and not enough(ends[-1], last):
            ends.pop()
        ends.append(last)
    return [(begin, end - 1) for begin, end in pairwise(ends)]
