"""Classification metrics as states that add: sites send sums, the coordinator computes once.

Shapes: N images, K classes, C ranked classes (the positive one alone, else all K, each against
the rest). Counts are exact. AUROC and average precision come from histograms of the log-odds:
float32 probabilities of a confident network coincide by the thousand, log-odds do not.

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

from common import metrics_faults as faults_of
from common.errors import ReplyError
from common.metrics_faults import LOGIT_MAX, Arrays

LOGIT_LIMIT = 1e4
"""Log-odds beyond this share the outermost bins."""
BINS = 2000
"""Bins of equal width in arcsinh(log-odds / RESOLUTION), so each 1.5 % of its log-odds wide.

Bins of equal width in the log-odds themselves would have to end somewhere: within +-30, a network
that is sure of most images was measured to lose up to 0.08 of AUROC, and here 0.0002. Nor would
they tell the images of a network apart that has only begun to learn.
"""
RESOLUTION = 0.01
"""Log-odds below which the bins stop to narrow."""
CALIBRATION_BINS = 15

METRICS: tuple[str, ...] = (
    "accuracy", "balanced_accuracy", "precision", "sensitivity", "specificity", "f1",
    "auroc", "auroc_bound", "average_precision", "brier", "calibration_error", "loss",
)  # fmt: skip
"""Names in the order in which tables print them."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MetricState:
    """What is known of one model on one set of images; its arrays are never changed."""

    n_patients: int
    n_images: int
    loss_sum: float  # of the cross-entropy, in nats
    brier_sum: float  # of the squared errors of the probabilities
    confusion: Ints  # (K, K): rows are the true classes, columns the predicted ones
    histogram: Ints  # (C, 2, BINS): counts of log-odds by the lowest bin where each may lie;
    #                  negatives, positives
    histogram_upper: Ints  # (C, 2, BINS): the same images by the highest bin; equal if none merged
    calibration: Floats  # (CALIBRATION_BINS, 3): count, sum of confidence, number correct


def zero(n_classes: int, positive: int | None) -> MetricState:
    """Return the state of no images.

    Raises:
        ValueError: Fewer than two classes, or ``positive`` is none of them.
    """
    if n_classes <= 1 or (positive is not None and not 0 <= positive < n_classes):
        raise ValueError(f"{n_classes} classes with the positive one at {positive}")
    confusion = np.zeros((n_classes, n_classes), np.int64)
    histogram = np.zeros((len(_ranked(n_classes, positive)), 2, BINS), np.int64)
    table = np.zeros((CALIBRATION_BINS, 3))
    return MetricState(0, 0, 0.0, 0.0, confusion, histogram, histogram.copy(), table)


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
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    pairs = np.bincount(labels * k + predicted, minlength=k * k)
    truth = np.eye(k)[labels]
    # Brier (1950) sums over the classes; with a positive class, that one alone is customary.
    squares = (np.exp(log_p) - truth)[:, _ranked(k, positive)] ** 2
    binned = _histogram(logits, labels, positive)
    return replace(
        state,
        n_images=state.n_images + len(labels),
        loss_sum=state.loss_sum - float(log_p[truth == 1].sum()),
        brier_sum=state.brier_sum + float(squares.sum()),
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


def merge(states: Iterable[MetricState]) -> MetricState:
    """Return the state of all images together; the order changes no bit of it.

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
        confusion=sum((state.confusion for state in rest), first.confusion),
        histogram=sum((state.histogram for state in rest), first.histogram),
        histogram_upper=sum((state.histogram_upper for state in rest), first.histogram_upper),
        calibration=np.apply_along_axis(math.fsum, 0, np.stack([s.calibration for s in states])),
    )


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
    per_class = _at_highest_logit(state.confusion, positive)
    per_class |= _ranking(state.histogram, state.histogram_upper)
    values = {name: _mean_of_defined(value) for name, value in per_class.items()}
    # Expected calibration error, Guo et al. (2017), equation 3.
    values["calibration_error"] = float(np.abs(correct - confidence).sum()) / n
    values |= {"brier": state.brier_sum / n, "loss": state.loss_sum / n}
    return {name: values[name] for name in METRICS}


def to_arrays(state: MetricState) -> dict[str, NDArray[Any]]:
    """Return the wire form; a histogram as flat indices of its bins in use and their counts.

    The upper histogram is left out where it is the same.
    """
    arrays = {
        "counts": np.array([state.n_patients, state.n_images], np.int64),
        "sums": np.array([state.loss_sum, state.brier_sum], np.float64),
        "confusion": state.confusion,
        **_sparse("histogram", state.histogram),
        "calibration": state.calibration,
    }
    if not np.array_equal(state.histogram, state.histogram_upper):
        arrays |= _sparse("histogram_upper", state.histogram_upper)
    return arrays


def from_arrays(arrays: Arrays, n_classes: int, positive: int | None) -> MetricState:
    """Return the state that a site sent, once nothing in it contradicts anything else.

    Raises:
        ReplyError: Lists every fault of names, types, shapes and values; only when there is
            none, every sum that does not agree with the others.
    """
    blank = zero(n_classes, positive)
    expected = to_arrays(blank)
    if upper := arrays.keys() & _sparse("histogram_upper", blank.histogram).keys():
        expected |= _sparse("histogram_upper", blank.histogram)
    misfits = faults_of.misfits(arrays, expected)
    # A blank stands in for what does not fit, so that the rest is still looked at.
    usable = expected | {name: arrays[name] for name in arrays.keys() - misfits.keys()}
    faults = [f"{name}: {what}" for name, what in misfits.items()]
    faults += faults_of.value_faults(usable, blank.histogram.size)
    if not faults:
        (n_patients, n_images), (loss, brier) = usable["counts"].tolist(), usable["sums"].tolist()
        blank.histogram.flat[usable["histogram_index"]] = usable["histogram_count"]
        name = "histogram_upper" if upper else "histogram"
        blank.histogram_upper.flat[usable[f"{name}_index"]] = usable[f"{name}_count"]
        histograms = blank.histogram, blank.histogram_upper
        tables = usable["confusion"], *histograms, usable["calibration"]
        state = MetricState(n_patients, n_images, loss, brier, *tables)
        faults = faults_of.sum_faults(state, _ranked(n_classes, positive))
    if faults:
        raise ReplyError(
            "The metrics in the reply are refused:\n" + "\n".join(f"  - {f}." for f in faults),
            remedy="Run the same release of rarefed at the site and at the coordinator.",
        )
    return state


def _sparse(name: str, histogram: Ints) -> dict[str, NDArray[Any]]:
    flat = histogram.ravel()
    used = np.flatnonzero(flat)
    return {f"{name}_index": used.astype(np.int32), f"{name}_count": flat[used].astype(np.int32)}


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


def _ranked(n_classes: int, positive: int | None) -> list[int]:
    return list(range(n_classes)) if positive is None else [positive]


def _histogram(logits: Floats, labels: Ints, positive: int | None) -> Ints:
    """Return (C, 2, BINS): the log-odds of each ranked class against all others."""
    rows = []
    for k in _ranked(logits.shape[1], positive):
        log_odds = logits[:, k] - np.logaddexp.reduce(np.delete(logits, k, axis=1), axis=1)
        place = np.arcsinh(log_odds.clip(-LOGIT_LIMIT, LOGIT_LIMIT) / RESOLUTION)
        limit = np.arcsinh(LOGIT_LIMIT / RESOLUTION)
        rows.append(
            [np.histogram(place[(labels == k) == y], BINS, (-limit, limit))[0] for y in (0, 1)]
        )
    return np.array(rows, np.int64)


def _calibration(log_p: Floats, correct: NDArray[np.bool_]) -> Floats:
    """Return (CALIBRATION_BINS, 3); a bin holds its upper edge, as in Guo et al. (2017)."""
    confidence = np.exp(log_p.max(axis=1))
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    columns = (np.ones_like(confidence), confidence, correct)
    return np.stack([np.bincount(bins, c, CALIBRATION_BINS) for c in columns], axis=1)


def _at_highest_logit(confusion: Ints, positive: int | None) -> dict[str, Floats]:
    """Return the counted metrics, one value per class that they are asked of, NaN if undefined."""
    hits, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    total, asked = confusion.sum(), _ranked(len(confusion), positive)
    recall = _ratio(hits, true)
    return {
        "accuracy": _ratio(hits.sum(), total),
        "balanced_accuracy": recall,
        "precision": _ratio(hits, predicted)[asked],
        "sensitivity": recall[asked],
        "specificity": _ratio(total - true - predicted + hits, total - true)[asked],
        "f1": _ratio(2 * hits, true + predicted)[asked],
    }


def _ranking(lower: Ints, upper: Ints) -> dict[str, Floats]:
    """Return AUROC, its bound and average precision per ranked class, NaN if undefined.

    Args:
        lower: (C, 2, BINS), each image in the lowest bin where it may lie.
        upper: (C, 2, BINS), each image in the highest one.
    """
    (low_negatives, low_positives), (high_negatives, high_positives) = (
        histogram.astype(np.float64).swapaxes(0, 1) for histogram in (lower, upper)
    )
    pairs = low_negatives.sum(axis=1) * low_positives.sum(axis=1)
    # Mann-Whitney U: of the pairs that are not sure to be in the right order, those that may be
    # count half, as pairs within a bin do, and that half is all that can be wrong.
    sure = (low_positives * (high_negatives.cumsum(axis=1) - high_negatives)).sum(axis=1)
    half = ((high_positives * low_negatives.cumsum(axis=1)).sum(axis=1) - sure) / 2
    return {
        "auroc": _ratio(sure + half, pairs),
        "auroc_bound": _ratio(half, pairs),
        "average_precision": (_average_precision(lower) + _average_precision(upper)) / 2,
    }


def _average_precision(histogram: Ints) -> Floats:
    """Return scikit-learn's sum, without interpolation: every lower edge is a threshold."""
    positives = histogram[:, 1].astype(np.float64)
    from_top = histogram[:, :, ::-1].cumsum(axis=2)
    precision = np.nan_to_num(_ratio(from_top[:, 1], from_top.sum(axis=1)))
    return _ratio((precision * positives[:, ::-1]).sum(axis=1), positives.sum(axis=1))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Divide; nothing of nothing is NaN."""
    out = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _mean_of_defined(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
