"""Classification metrics as states that add: sites send sums, the coordinator computes once.

Shapes: N images, K classes, C ranked classes (the positive one alone, else all K, each against
the rest), T temperatures. Counts are exact. AUROC and average precision come from histograms of
the log-odds (``common/ranking.py``).

A site with fewer images than bins sends nearly the list of its scores, each with its label. One
that does not want this merges neighbouring bins (``client/suppression.py``): it says of each image
the lowest and the highest bin where it may lie, and the bound of AUROC grows by what that hides.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import joint
from common.metrics_faults import LOGIT_MAX
from common.ranking import (
    BINS,
    Floats,
    Ints,
    histogram_of,
    ranked_classes,
    ranking,
    ratio,
)
from common.temperature import TEMPERATURES, scaled_loss

CALIBRATION_BINS = 15

METRICS: tuple[str, ...] = (
    "accuracy", "balanced_accuracy", "precision", "sensitivity", "specificity", "f1",
    "auroc", "auroc_bound", "average_precision", "brier", "calibration_error", "loss",
)  # fmt: skip
"""Names in the order in which tables print them."""


MAY_BE_UNTOLD = ("squares", "scaled_loss")
"""Arrays of a state that a site may keep to itself, both together."""


@dataclass(frozen=True)
class MetricState:
    """What is known of one model on one set of images; its arrays are never changed."""

    n_patients: int
    n_images: int
    loss_sum: float  # of the cross-entropy, in nats
    brier_sum: float  # of the squared errors of the probabilities
    squares: Floats  # (2,): sums of the squares of what those two are sums of
    scaled_loss: Floats  # (T,): the loss's sum had logits been divided by each of TEMPERATURES;
    #                      NaN, as squares, where a site does not tell them (``untold``)
    confusion: Ints  # (K, K): rows are the true classes, columns the predicted ones
    histogram: Ints  # (C, 2, BINS): counts of log-odds by the lowest bin where each may lie;
    #                  negatives, positives
    histogram_upper: Ints  # (C, 2, BINS): the same images by the highest bin; equal if none merged
    calibration: Floats  # (CALIBRATION_BINS, 3): count, sum of confidence, number correct
    joint: Floats  # (2, 2, C, C): how the ranked classes vary together (``common/joint.py``)


def zero(n_classes: int, positive: int | None) -> MetricState:
    """Return the state of no images.

    Raises:
        ValueError: Fewer than two classes, or ``positive`` is none of them.
    """
    if n_classes <= 1 or (positive is not None and not 0 <= positive < n_classes):
        raise ValueError(f"{n_classes} classes with the positive one at {positive}")
    confusion = np.zeros((n_classes, n_classes), np.int64)
    histogram = np.zeros((len(ranked_classes(n_classes, positive)), 2, BINS), np.int64)
    table = np.zeros((CALIBRATION_BINS, 3))
    moments = np.zeros(2), np.zeros(len(TEMPERATURES))
    histograms, kin = (histogram, histogram.copy()), joint.blank(len(histogram))
    return MetricState(0, 0, 0.0, 0.0, *moments, confusion, *histograms, table, kin)


def update(
    state: MetricState, logits: NDArray[Any], labels: NDArray[Any], positive: int | None
) -> MetricState:
    """Return ``state`` with N more images; patients are counted by ``with_patients``.

    Args:
        state: What was seen so far.
        logits: (N, K), finite floats; computed with in float64 whatever their type.
        labels: (N,), integers: the true classes, in [0, K).
        positive: Index of the positive class, or None for a multi-class task.

    Raises:
        ValueError: Wrong shapes, a label outside the classes, or a logit that is not finite.
    """
    _check_positive(state, positive)
    logits, labels, k = logits.astype(np.float64), labels.astype(np.int64), len(state.confusion)
    _check_batch(logits, labels, k)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.logaddexp.reduce(log_p, axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    pairs = np.bincount(labels * k + predicted, minlength=k * k)
    truth = np.eye(k)[labels]
    # Brier (1950) sums over the classes; with a positive class, that one alone is customary.
    squared = (np.exp(log_p) - truth)[:, ranked_classes(k, positive)] ** 2
    losses, briers = -log_p[truth == 1], squared.sum(axis=1)
    binned = histogram_of(logits, labels, positive)
    return replace(
        state,
        n_images=state.n_images + len(labels),
        loss_sum=state.loss_sum + float(losses.sum()),
        brier_sum=state.brier_sum + float(briers.sum()),
        squares=state.squares + np.array([losses @ losses, briers @ briers]),
        scaled_loss=state.scaled_loss + scaled_loss(logits, labels),
        confusion=state.confusion + pairs.reshape(k, k),
        histogram=state.histogram + binned,
        histogram_upper=state.histogram_upper + binned,
        calibration=state.calibration + _calibration(log_p, predicted == labels),
    )


def with_patients(state: MetricState, n: int) -> MetricState:
    """Return ``state`` as that of ``n`` patients; every patient has an image at least."""
    if not 0 <= n <= state.n_images:
        raise ValueError(f"{n} patients cannot have {state.n_images} images")
    return replace(state, n_patients=n)


def untold(state: MetricState) -> MetricState:
    """Return ``state`` without the sums that single log-odds could be solved from."""
    blank = {name: np.full_like(getattr(state, name), np.nan) for name in MAY_BE_UNTOLD}
    return replace(state, joint=np.zeros_like(state.joint), **blank)


def told(state: MetricState) -> bool:
    """Say whether all of ``MAY_BE_UNTOLD`` are known; of merged states, from all of them."""
    return not any(np.isnan(getattr(state, name)).any() for name in MAY_BE_UNTOLD)


def with_joint(state: MetricState, logits: NDArray[Any], labels: NDArray[Any]) -> MetricState:
    """Return ``state`` with what all its images say of how ranked classes vary together.

    A task with a positive class has nothing to say of it.

    Args:
        state: Of these images.
        logits: (N, K).
        labels: (N,).
    """
    if len(state.histogram) == 1:
        return state
    return replace(state, joint=joint.joint_of(logits.astype(np.float64), labels))


def merge(states: Iterable[MetricState]) -> MetricState:
    """Return the state of all images together; the order changes no bit of it.

    What one of them does not tell is not told of all together either.

    Raises:
        ValueError: No state at all, or states of tasks of different shapes.
    """
    states = list(states)
    shapes = {(state.confusion.shape, state.histogram.shape) for state in states}
    if len(shapes) != 1:
        raise ValueError(f"one task's states are needed to merge, not those of {len(shapes)} kinds")
    first, rest = states[0], states[1:]
    # Integers add exactly in any order; fsum does so for floats, with one rounding at the end.
    return MetricState(
        n_patients=sum(state.n_patients for state in states),
        n_images=sum(state.n_images for state in states),
        loss_sum=math.fsum(state.loss_sum for state in states),
        brier_sum=math.fsum(state.brier_sum for state in states),
        squares=_exact_sum(state.squares for state in states),
        scaled_loss=_exact_sum(state.scaled_loss for state in states),
        confusion=sum((state.confusion for state in rest), first.confusion),
        histogram=sum((state.histogram for state in rest), first.histogram),
        histogram_upper=sum((state.histogram_upper for state in rest), first.histogram_upper),
        calibration=_exact_sum(state.calibration for state in states),
        joint=_exact_sum(state.joint for state in states),
    )


def _exact_sum(arrays: Iterable[Floats]) -> Floats:
    found: Floats = np.apply_along_axis(math.fsum, 0, np.stack(list(arrays)))
    return found


def compute(state: MetricState, positive: int | None) -> dict[str, float | None]:
    """Return every metric of ``METRICS``, or None where the images leave it undefined.

    With a positive class, precision, sensitivity, specificity and F1 are that class's at the
    highest logit; without, they and the ranking metrics are means over the classes that define
    them. Balanced accuracy is the mean recall of the classes present. ``auroc_bound``: the AUROC
    of the unbinned log-odds is within this of ``auroc``.
    """
    _check_positive(state, positive)
    if state.n_images == 0:
        return dict.fromkeys(METRICS)
    n, (_, confidence, correct) = state.n_images, state.calibration.T
    per_class = at_highest_logit(state.confusion, positive)
    per_class |= ranking(state.histogram, state.histogram_upper)
    values = {name: _mean_of_defined(value) for name, value in per_class.items()}
    # Expected calibration error, Guo et al. (2017), equation 3.
    values["calibration_error"] = float(np.abs(correct - confidence).sum()) / n
    values |= {"brier": state.brier_sum / n, "loss": state.loss_sum / n}
    return {name: values[name] for name in METRICS}


def at_highest_logit(confusion: Ints, positive: int | None) -> dict[str, Floats]:
    """Return the counted metrics of confusion matrices (..., K, K), NaN where undefined.

    Each has one value for every class that it is asked of, along the last axis.
    """
    hits = confusion.diagonal(axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = true.sum(axis=-1, keepdims=True)
    asked, recall = ranked_classes(confusion.shape[-1], positive), ratio(hits, true)
    return {
        "accuracy": ratio(hits.sum(axis=-1, keepdims=True), total),
        "balanced_accuracy": recall,
        "precision": ratio(hits, predicted)[..., asked],
        "sensitivity": recall[..., asked],
        "specificity": ratio(total - true - predicted + hits, total - true)[..., asked],
        "f1": ratio(2 * hits, true + predicted)[..., asked],
    }


def _check_positive(state: MetricState, positive: int | None) -> None:
    if (positive is None) != (len(state.histogram) == len(state.confusion)):
        raise ValueError(f"the state is of another task than one with positive class {positive}")


def _check_batch(logits: Floats, labels: Ints, n_classes: int) -> None:
    if labels.ndim != 1 or logits.shape != (len(labels), n_classes):
        raise ValueError(f"{logits.shape} logits for {labels.shape} labels of {n_classes} classes")
    if not np.all((labels >= 0) & (labels < n_classes)):
        raise ValueError(f"a label is outside [0, {n_classes})")
    if not np.all(np.abs(logits) <= LOGIT_MAX):
        raise ValueError("a logit is not finite in float32")


def _calibration(log_p: Floats, correct: NDArray[np.bool_]) -> Floats:
    """Return (CALIBRATION_BINS, 3); a bin holds its upper edge, as in Guo et al. (2017)."""
    confidence = np.exp(log_p.max(axis=1))
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    columns = (np.ones_like(confidence), confidence, correct)
    return np.stack([np.bincount(bins, c, CALIBRATION_BINS) for c in columns], axis=1)


def _mean_of_defined(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
