"""What can be wrong with the metrics in a reply, found all at once."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.temperature import AT_ONE, TEMPERATURES

if TYPE_CHECKING:
    from common.metrics import MetricState

Arrays = Mapping[str, NDArray[Any]]

LOGIT_MAX = float(np.finfo(np.float32).max)
_LOSS_MAX = 3 * LOGIT_MAX
"""No image can lose more: two float32 logits differ by at most twice their maximum."""
ROUNDED = 1e-6
"""By how much of itself a sum may be off: its float64 terms were added in some order."""

_TINY = 1e-100
"""Losses below this may lose their digits, and their squares be zero."""


def misfits(arrays: Arrays, expected: Arrays) -> dict[str, str]:
    """Return what is wrong with names, types and shapes, by the array's name."""
    wrong = dict.fromkeys(sorted(arrays.keys() - expected.keys()), "is not known")
    wrong |= dict.fromkeys(sorted(expected.keys() - arrays.keys()), "is missing")
    for name in sorted(expected.keys() & arrays.keys()):
        array, wanted, shape = arrays[name], expected[name], expected[name].shape
        if name.startswith("histogram"):  # index and count are as long as there are bins in use
            shape = (arrays.get(f"{name.rpartition('_')[0]}_index", array).size,)
        if (array.dtype, array.shape) != (wanted.dtype, shape):
            wrong[name] = f"{array.dtype} {array.shape} instead of {wanted.dtype} {shape}"
    return wrong


def value_faults(arrays: Arrays, n_bins: int) -> list[str]:
    """Return what is wrong within single arrays."""
    sums, table = arrays["sums"], arrays["calibration"]
    more = {name: arrays[name] for name in ("squares", "scaled_loss") if name in arrays}
    patients, images = arrays["counts"]
    checks = {
        f"counts: {patients} patients with {images} images": 0 <= patients <= images,
        "sums: a value is negative or not finite": np.all(np.isfinite(sums) & (sums >= 0)),
        **{
            f"{name}: negative or not finite": np.all(np.isfinite(array) & (array >= 0))
            for name, array in more.items()
        },
        "joint: not finite": np.all(np.isfinite(arrays.get("joint", 0))),
        "confusion: a count is negative": np.all(arrays["confusion"] >= 0),
        "calibration: negative or not finite": np.all(np.isfinite(table) & (table >= 0)),
        "calibration: a count is not whole": np.all(table[:, [0, 2]] == table[:, [0, 2]].round()),
    }
    for name in sorted(arrays.keys() & {"histogram_index", "histogram_upper_index"}):
        index, count = arrays[name], name.replace("_index", "_count")
        checks[f"{name}: outside the bins"] = np.all((index >= 0) & (index < n_bins))
        checks[f"{name}: does not increase"] = np.all(index[1:] > index[:-1])
        checks[f"{count}: not above zero"] = np.all(arrays[count] > 0)
    return [fault for fault, holds in checks.items() if not holds]


def sum_faults(state: "MetricState", ranked: list[int]) -> list[str]:
    """Return which sums contradict each other; each alone is known to be sound."""
    n, (count, _, correct) = state.n_images, state.calibration.T
    confusion = state.confusion.astype(np.float64)  # cannot overflow, whatever was sent
    labels = confusion.sum(axis=1)[ranked]
    negatives, positives = state.histogram.sum(axis=2).T
    lower, upper = (np.cumsum(h, axis=2) for h in (state.histogram, state.histogram_upper))
    bounded = state.loss_sum <= n * _LOSS_MAX and state.brier_sum <= 2 * n
    checks = {
        "sums: more than so many images can lose": bounded,
        **({} if np.isnan(state.squares).any() else _moment_checks(state)),
        "confusion: not of all images": confusion.sum() == n,
        "histogram: not of all images": np.all(negatives + positives == n),
        "histogram: other labels than in confusion": np.all(positives == labels),
        "histogram_upper: other images than in histogram": np.all(lower[..., -1] == upper[..., -1]),
        "histogram_upper: below histogram": np.all(lower >= upper),
        "calibration: not of all images": count.sum() == n,
        "calibration: other hits than in confusion": correct.sum() == confusion.trace(),
        "calibration: more than its count": np.all(state.calibration <= count[:, np.newaxis]),
        "joint: no correlations of so many images": _may_be_joint(state),
    }
    return [fault for fault, holds in checks.items() if not holds]


def _moment_checks(state: "MetricState") -> dict[str, bool]:
    """Return what must hold of the sums that a site may leave out."""
    sums, roots = np.array([state.loss_sum, state.brier_sum]), np.sqrt(state.squares)
    more, less = sums * (1 + ROUNDED) + _TINY, sums * (1 - ROUNDED) - _TINY
    at_one = state.scaled_loss[AT_ONE]
    return {
        # Cauchy-Schwarz: squares of n numbers are at least the square of their sum over n.
        "squares: too small for their sums": bool(np.all(np.sqrt(state.n_images) * roots >= less)),
        "squares: too large for their sums": bool(np.all(roots <= more)),
        "scaled_loss: another loss at temperature 1": bool(less[0] <= at_one <= more[0]),
        "scaled_loss: no cross-entropy at rising temperatures": _may_be_scaled(state),
    }


def _may_be_joint(state: "MetricState") -> bool:
    """Say whether sums of correlations have the shape and the size of such sums."""
    products, weights = state.joint.swapaxes(0, 1)
    alike = np.array_equal(state.joint, state.joint.swapaxes(-1, -2))
    within = np.all((np.abs(products) <= weights) & (weights <= state.n_images))
    ones = np.diagonal(products - weights, axis1=-2, axis2=-1)
    return bool(alike and within and not ones.any())


def _may_be_scaled(state: "MetricState") -> bool:
    """Say whether the losses may be those of the same logits at every temperature.

    As a function of 1 / T the cross-entropy is convex, and at 0 that of equal probabilities. An
    image whose true class lies g below the highest logit loses from g / T to g / T + log K.
    """
    blind = state.n_images * np.log(len(state.confusion))
    inverse = np.append(0, 1 / TEMPERATURES[::-1])
    loss = np.append(blind, state.scaled_loss[::-1])
    share = (inverse[1:-1] - inverse[:-2]) / (inverse[2:] - inverse[:-2])
    chord = (1 - share) * loss[:-2] + share * loss[2:]
    grown = inverse[2:] / inverse[1:-1] * loss[1:-1] + blind
    convex = np.all(loss[1:-1] <= chord * (1 + ROUNDED) + _TINY)
    return bool(convex and np.all(loss[2:] <= grown * (1 + ROUNDED) + _TINY))
