"""Metrics of images that count several times, or not at all: what a bootstrap draws.

Weights in place of copies: one matrix product gives the sums of all draws. The definitions are
those of ``common/metrics.py``; only AUROC and average precision come from the log-odds themselves,
as nothing has to be binned where nothing is sent.

Shapes: N images (or patients' cases), K classes, D draws, U different log-odds.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.metrics import CALIBRATION_BINS, METRICS
from common.ranking import Floats, Ints, log_odds, ranked_classes, ranking, ratio

NAMES = tuple(name for name in METRICS if name != "auroc_bound")
"""What is computed; without bins there is nothing to bound."""


class Cases(NamedTuple):
    """What a model says of images or of patients, and what is true."""

    logits: Floats
    """(N, K), finite."""
    labels: Ints
    """(N,), in [0, K)."""
    owners: Ints
    """(N,): whose each is, in [0, P); patients of one image set are numbered alike."""
    positive: int | None
    """Index of the positive class of a task of two; None for a multi-class task."""


def metrics_of(cases: Cases, weights: NDArray[Any]) -> dict[str, Floats]:
    """Return every metric of ``NAMES``, (D,) each; NaN where the draw leaves it undefined.

    Args:
        cases: N of them.
        weights: (D, N), not negative: how often each counts.
    """
    counts: Floats = weights.astype(np.float64)
    found = _counted(_confusions(cases, counts), cases.positive)
    found |= _ranked(cases, counts)
    found |= _sums(cases, counts)
    return {name: found[name] for name in NAMES}


def _confusions(cases: Cases, weights: Floats) -> Floats:
    """Return (D, K, K): rows are the true classes, columns the predicted ones."""
    k = cases.logits.shape[1]
    cells = np.eye(k * k)[cases.labels * k + cases.logits.argmax(axis=1)]
    sums: Floats = weights @ cells
    return sums.reshape(-1, k, k)


def _counted(confusion: Floats, positive: int | None) -> dict[str, Floats]:
    hits = confusion.diagonal(axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total, asked = confusion.sum(axis=(1, 2)), ranked_classes(confusion.shape[1], positive)
    recall, rest = ratio(hits, true), total[:, None] - true
    per_class = {
        "precision": ratio(hits, predicted),
        "sensitivity": recall,
        "specificity": ratio(rest - predicted + hits, rest),
        "f1": ratio(2 * hits, true + predicted),
    }
    found = {name: _mean_of_defined(values[:, asked]) for name, values in per_class.items()}
    found["accuracy"] = ratio(hits.sum(axis=1), total)
    found["balanced_accuracy"] = _mean_of_defined(recall)
    return found


def _ranked(cases: Cases, weights: Floats) -> dict[str, Floats]:
    """Return AUROC and average precision: a bin for each different log-odds."""
    parts: dict[str, list[Floats]] = {"auroc": [], "average_precision": []}
    for k in ranked_classes(cases.logits.shape[1], cases.positive):
        odds = log_odds(cases.logits, k)
        order = np.argsort(odds, kind="stable")
        first = np.flatnonzero(np.diff(odds[order], prepend=-np.inf))  # of each different value
        is_class = (cases.labels == k)[order]
        bins = np.stack(
            [np.add.reduceat(weights[:, order] * (is_class == y), first, axis=1) for y in (0, 1)],
            axis=1,
        )
        worth = ranking(bins, bins)
        for name, values in parts.items():
            values.append(worth[name])
    return {name: _mean_of_defined(np.stack(values, axis=1)) for name, values in parts.items()}


def _sums(cases: Cases, weights: Floats) -> dict[str, Floats]:
    """Return what is a mean over images, or over images by confidence."""
    k, total = cases.logits.shape[1], weights.sum(axis=1)
    log_p = cases.logits - np.logaddexp.reduce(cases.logits, axis=1, keepdims=True)
    truth = np.eye(k)[cases.labels]
    asked = ranked_classes(k, cases.positive)
    squares = ((np.exp(log_p) - truth)[:, asked] ** 2).sum(axis=1)
    confidence = np.exp(log_p.max(axis=1))
    row = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = (cases.logits.argmax(axis=1) == cases.labels) - confidence
    by_bin = weights @ (np.eye(CALIBRATION_BINS)[row] * gaps[:, None])
    return {
        "loss": ratio(weights @ -(log_p * truth).sum(axis=1), total),
        "brier": ratio(weights @ squares, total),
        "calibration_error": ratio(np.abs(by_bin).sum(axis=1), total),
    }


def _mean_of_defined(values: Floats) -> Floats:
    """Return the means over the last axis of what is no NaN; NaN where nothing else is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))
