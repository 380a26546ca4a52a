"""Temperature scaling (Guo et al. 2017, section 4.2) from sums that add over sites.

Logits divided by a temperature T > 1 give probabilities that are less sure, and rank the images of
a task of two classes as before. The best T is that of the least cross-entropy on validation
images. A site sends that cross-entropy, summed over its images, at temperatures that are the same
everywhere: the sums of all sites add to those of all images, and between the temperatures a cubic
spline in log T leads. Shapes: N images, K classes, T temperatures.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar

from common.ranking import Floats, Ints, centres

TEMPERATURES: Floats = 2.0 ** (np.arange(-8, 9) / 2)
"""From 1/16 to 16, each sqrt(2) times the one before."""
AT_ONE = 8
"""Where the temperature 1 stands among them: the network as it is."""


def scaled_loss(logits: Floats, labels: Ints) -> Floats:
    """Return (T,): the cross-entropy in nats, summed over N images, at each temperature.

    Args:
        logits: (N, K), finite.
        labels: (N,): the true classes, in [0, K).
    """
    rows = np.arange(len(labels))
    found = []
    # From the highest down, a loss keeps all its digits, however small it is and large they are.
    shifted = logits - logits.max(axis=1, keepdims=True)
    for temperature in TEMPERATURES:
        scaled = shifted / temperature
        log_p = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
        found.append(float((0.0 - log_p[rows, labels]).sum()))
    return np.array(found)


def best_temperature(sums: NDArray[Any]) -> float | None:
    """Return the temperature of the least loss on validation images; None if that says nothing.

    It says nothing where a site does not tell its losses, which are NaN then.

    Where the first or the last of ``TEMPERATURES`` is the best of them, it is returned: the images
    then ask for one as small, or as large, or beyond.

    Args:
        sums: (T,), of a state of validation images.
    """
    if np.isnan(sums).any() or np.ptp(sums) == 0:
        return None  # no images, or a network that says of each image the same of every class
    least = int(sums.argmin())
    if least in (0, len(TEMPERATURES) - 1):
        return float(TEMPERATURES[least])
    around = np.log(TEMPERATURES[[least - 1, least + 1]])
    found = minimize_scalar(_curve(sums), bounds=around, method="bounded")
    return float(np.exp(found.x))


def loss_at(sums: NDArray[Any], n_images: int, temperature: float) -> float | None:
    """Return the mean cross-entropy at a temperature, in nats; None without images.

    Args:
        sums: (T,), of a state of any images.
        n_images: How many they are of.
        temperature: Within those of ``TEMPERATURES``.
    """
    if n_images == 0:
        return None
    total = float(_curve(sums)(np.log(temperature)))
    # Between two temperatures the spline of a steep loss can dip below what is possible.
    return max(total, 0.0) / n_images


def _curve(sums: NDArray[Any]) -> CubicSpline:
    """Return the loss by log T: to 0.1 % between the temperatures, and the least to 0.1 % of T."""
    return CubicSpline(np.log(TEMPERATURES), sums)


def scaled_calibration_error(histogram: Ints, temperature: float, n_bins: int) -> float | None:
    """Return the calibration error of a task with a positive class at a temperature.

    An image's log-odds are taken as the middle of its bin, at most 0.8 % from what they are.

    Args:
        histogram: (2, BINS): log-odds of the positive class; negatives, positives.
        temperature: What the log-odds are divided by.
        n_bins: Bins of the highest probability, of equal width, as in ``calibration_error``.
    """
    n = histogram.sum()
    if n == 0:
        return None
    # The greater of two probabilities; written so that it does not overflow.
    confidence = 1 / (1 + np.exp(-np.abs(centres()) / temperature))
    row = np.minimum(np.ceil(confidence * n_bins).astype(np.int64), n_bins) - 1
    hits = np.where(centres() > 0, histogram[1], histogram[0])
    gaps = np.bincount(row, hits - histogram.sum(axis=0) * confidence, n_bins)
    return float(np.abs(gaps).sum() / n)
