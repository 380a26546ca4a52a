"""Curves of a state, as plain lists for JSON: a point is an edge between two bins of log-odds.

Counts at an edge are exact. Where a site has merged bins, edges within them have no point.
"""

from typing import Any

import numpy as np

from common.intervals import independent, wilson
from common.metrics import MetricState
from common.operating import Above, above, clean_edges
from common.ranking import Ints, edges, ratio

POINTS = 200
"""At most so many points of a curve; its two ends are always among them."""
PROBABILITIES = tuple(round(0.01 * step, 2) for step in range(1, 100))
"""Threshold probabilities of a decision curve; each is moved to the nearest edge."""

Curve = dict[str, list[float]]


def roc(state: MetricState, k: int) -> Curve | None:
    """Return ``false_positive_rate`` and ``true_positive_rate``, from (0, 0) to (1, 1).

    Args:
        state: Of any images.
        k: Which of the state's histograms.

    Returns:
        None where there are no images of the class, or none of the others.
    """
    counted = above(state, k)
    ill, healthy = int(counted.positives[0]), int(counted.negatives[0])
    if not ill or not healthy:
        return None
    chosen = _few(_corners(counted))[::-1]
    return {
        "false_positive_rate": (counted.negatives[chosen] / healthy).tolist(),
        "true_positive_rate": (counted.positives[chosen] / ill).tolist(),
    }


def precision_recall(state: MetricState, k: int) -> Curve | None:
    """Return ``recall``, rising, and ``precision``; None where no image is of the class."""
    counted = above(state, k)
    ill = int(counted.positives[0])
    if not ill:
        return None
    chosen = _few(_changes(counted))[::-1]
    called = counted.positives[chosen] + counted.negatives[chosen]
    chosen, called = chosen[called > 0], called[called > 0]
    return {
        "recall": (counted.positives[chosen] / ill).tolist(),
        "precision": (counted.positives[chosen] / called).tolist(),
    }


def reliability(state: MetricState) -> dict[str, list[Any]]:
    """Return the reliability diagram: of each bin of the highest probability that has images.

    Returns:
        ``n`` images, their mean ``confidence``, the share that is right (``accuracy``) and its
        95 % ``interval`` (Wilson's; null where patients have several images).
    """
    used = state.calibration[state.calibration[:, 0] > 0]
    alone = independent(state)
    ends = [wilson(hits, n) if alone else None for n, _, hits in used.tolist()]
    return {
        "n": used[:, 0].astype(int).tolist(),
        "confidence": ratio(used[:, 1], used[:, 0]).tolist(),
        "accuracy": ratio(used[:, 2], used[:, 0]).tolist(),
        "interval": [list(interval) if interval else None for interval in ends],
    }


def decision(state: MetricState, k: int) -> Curve | None:
    """Return the decision curve of Vickers and Elkin (2006): net benefit for each image.

    At a threshold probability p one false positive weighs as p / (1 - p) of a true one. The model
    is of use where its ``net_benefit`` is above ``treat_all`` and above 0, that of treating nobody;
    and only as far as its probabilities are right.

    Returns:
        ``probability``, rising, ``net_benefit`` and ``treat_all``; None without images.
    """
    counted = above(state, k)
    n, ill = state.n_images, int(counted.positives[0])
    if n == 0:
        return None
    usable = clean_edges(counted)
    at = edges()[usable]
    wanted = np.log(np.array(PROBABILITIES) / (1 - np.array(PROBABILITIES)))
    nearest = np.unique(np.abs(at[:, np.newaxis] - wanted).argmin(axis=0))
    # Where merged bins leave few edges, the nearest one may be far from any of them.
    nearest = nearest[np.abs(at[nearest]) < np.abs(wanted).max() * 1.02]
    odds, chosen = np.exp(at[nearest]), usable[nearest]
    net = (counted.positives[chosen] - counted.negatives[chosen] * odds) / n
    return {
        "probability": (odds / (1 + odds)).tolist(),
        "net_benefit": net.tolist(),
        "treat_all": ((ill - (n - ill) * odds) / n).tolist(),
    }


def _changes(counted: Above) -> Ints:
    """Return the edges, rising, between each two of which images lie."""
    usable = clean_edges(counted)
    points = np.stack([counted.negatives[usable], counted.positives[usable]])
    last_of_its_counts = np.append(np.diff(points, axis=1).any(axis=0), True)
    found: Ints = usable[last_of_its_counts]
    return found


def _corners(counted: Above) -> Ints:
    """Return the edges where the ROC curve turns, and its ends; between them it is straight."""
    chosen = _changes(counted)
    false, true = np.diff(counted.negatives[chosen]), np.diff(counted.positives[chosen])
    turns = false[1:] * true[:-1] != true[1:] * false[:-1]
    found: Ints = chosen[np.concatenate([[True], turns, [True]])]
    return found


def _few(chosen: Ints) -> Ints:
    """Return ``POINTS`` of the edges at most, the two ends among them."""
    if len(chosen) <= POINTS:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, POINTS).round().astype(np.int64)]
