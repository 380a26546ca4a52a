"""Operating points: thresholds chosen on validation images, and what they do on test images.

A threshold is an edge between two bins of the log-odds' histogram: an image is called positive if
its log-odds are at least that. On either side of an edge counts are exact, so that only the choice
of the threshold is coarser than it would be on the scores themselves, by 1.5 % of the log-odds.
Where a site has merged bins, an edge within them splits images whose side is not known: no
threshold is chosen there, and where a threshold falls there on the test images, each count is the
middle of what it may be and its interval is of both ends.
Shapes: E = BINS + 1 edges.
"""

from typing import Any, NamedTuple

import numpy as np

from common.intervals import Interval, independent, wilson
from common.metrics import MetricState
from common.ranking import Ints, edges

LEAST = 0.95
"""The sensitivity, or specificity, that a threshold is asked for."""
RULES = ("youden", "sensitivity", "specificity")
"""Youden's J (1950) is greatest; one of the two is at least ``LEAST`` and the other greatest."""


class Above(NamedTuple):
    """Images at or above each edge, (E,) each: surely, and at most, by their label."""

    negatives: Ints
    positives: Ints
    negatives_at_most: Ints
    positives_at_most: Ints


def above(state: MetricState, k: int) -> Above:
    """Return how many images lie at or above each edge, for the k-th ranked class."""
    surely, at_most = (
        np.pad(histogram[k, :, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
        for histogram in (state.histogram, state.histogram_upper)
    )
    return Above(*surely, *at_most)


def clean_edges(counted: Above) -> Ints:
    """Return the edges that have every image surely on one side, rising."""
    same = (counted.negatives == counted.negatives_at_most) & (
        counted.positives == counted.positives_at_most
    )
    return np.flatnonzero(same)


def choose(state: MetricState, k: int, least: float = LEAST) -> dict[str, int] | None:
    """Return the edge that each of ``RULES`` takes for the k-th ranked class.

    Of edges between which no image lies the middle one is taken.

    Args:
        state: Of validation images.
        k: Which of the state's histograms.
        least: What sensitivity and specificity are asked for, above 0 and at most 1.

    Returns:
        None where there are no images of the class, or none of the others.
    """
    counted = above(state, k)
    usable = clean_edges(counted)
    ill, healthy = int(counted.positives[0]), int(counted.negatives[0])
    if not ill or not healthy:
        return None
    positives, negatives = counted.positives[usable], counted.negatives[usable]
    rounding = 1e-9
    sensitive = positives >= least * ill - rounding
    specific = healthy - negatives >= least * healthy - rounding
    # Whole numbers in place of rates: equal ones are equal. Along the edges both counts fall, and
    # of edges with the same sensitivity the last is the most specific, and the other way round.
    chosen = {
        "youden": _last_greatest(positives * healthy - negatives * ill),
        "sensitivity": int(np.argmin(np.where(sensitive, negatives, healthy + 1))),
        "specificity": _last_greatest(np.where(specific, positives, -1)),
    }
    alike = {
        rule: (positives == positives[best]) & (negatives == negatives[best])
        for rule, best in chosen.items()
    }
    return {rule: int(usable[same][same.sum() // 2]) for rule, same in alike.items()}


def _last_greatest(values: Ints) -> int:
    return len(values) - 1 - int(values[::-1].argmax())


def at_edge(state: MetricState, k: int, edge: int) -> dict[str, Any]:
    """Return what a threshold does on test images, ready for JSON.

    Args:
        state: Of test images.
        k: Which of the state's histograms.
        edge: One of ``choose``.

    Returns:
        ``threshold``, in log-odds, ``probability``, the same as a probability, and of
        ``sensitivity``, ``specificity``, ``ppv`` and ``npv``: ``value``, ``interval`` (Wilson's,
        95 %; null where patients have several images) and ``n``, the images that it is a share of.
    """
    counted = above(state, k)
    threshold = float(edges()[edge])
    ill, healthy = int(counted.positives[0]), int(counted.negatives[0])
    tp = int(counted.positives[edge]), int(counted.positives_at_most[edge])
    fp = int(counted.negatives[edge]), int(counted.negatives_at_most[edge])
    tn, fn = (healthy - fp[1], healthy - fp[0]), (ill - tp[1], ill - tp[0])
    alone = independent(state)
    return {
        "threshold": threshold,
        "probability": float(0.5 * (1 + np.tanh(threshold / 2))),
        "sensitivity": _share(tp, fn, alone=alone),
        "specificity": _share(tn, fp, alone=alone),
        "ppv": _share(tp, fp, alone=alone),
        "npv": _share(tn, fn, alone=alone),
    }


def _share(hits: tuple[int, int], misses: tuple[int, int], *, alone: bool) -> dict[str, Any]:
    """Return a share, its interval and what it is of; hits and misses are least and most."""
    hit, miss = sum(hits) / 2, sum(misses) / 2
    n = hit + miss
    if n == 0:
        return {"value": None, "interval": None, "n": 0}
    ends: list[Interval | None] = [
        wilson(hits[0], hits[0] + misses[1]),
        wilson(hits[1], hits[1] + misses[0]),
    ]
    low, high = (end or (0.0, 1.0) for end in ends)
    return {"value": hit / n, "interval": [low[0], high[1]] if alone else None, "n": round(n)}
