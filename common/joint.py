"""How a task's classes share the chance in their AUROC and average precision.

A mean over classes varies less than the classes do, as far as they vary apart: each class's figure
is of the same images, but asks another thing of them. A site tells the correlation of the classes'
figures over its own images, from how each image moves each figure (its influence; Hampel 1974). It
weighs as many images as the site has, so that sites' correlations add to a mean.

Shapes: N images, K classes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from common.ranking import Floats, Ints, log_odds, ratio

FIGURES = ("auroc", "average_precision")
_DIGITS = 2
"""Of a correlation: more would change no interval, and say more of single images."""


def blank(n_classes: int) -> Floats:
    """Return (2, 2, K, K) zeros: of each of ``FIGURES`` nothing is known."""
    return np.zeros((len(FIGURES), 2, n_classes, n_classes))


def joint_of(logits: Floats, labels: Ints) -> Floats:
    """Return (2, 2, K, K): for each of ``FIGURES``, N times the correlations, and N.

    Both are 0 for a pair of classes of which one's figure is undefined, or moved by no image.

    Args:
        logits: (N, K), finite.
        labels: (N,): the true classes, in [0, K).
    """
    n, k = logits.shape
    found = blank(k)
    if n == 0:
        return found
    influence = np.full((len(FIGURES), k, n), np.nan)
    for c in range(k):
        true = labels == c
        if 0 < true.sum() < n:
            odds = log_odds(logits, c)
            influence[:, c] = influence_on_auroc(odds, true), influence_on_precision(odds, true)
    for figure, of_figure in enumerate(influence):
        spread = np.sqrt((of_figure**2).mean(axis=1))
        known = np.flatnonzero(np.nan_to_num(spread) > 0)
        scaled = of_figure[known] / spread[known, np.newaxis]
        cells, products = np.ix_(known, known), scaled @ scaled.T / n
        alike = (products + products.T) / 2  # to the last bit
        found[figure, 0][cells] = n * alike.clip(-1, 1).round(_DIGITS)
        found[figure, 1][cells] = n
    return found


def correlations(joint: Floats) -> Floats:
    """Return (2, K, K): the mean correlations; 1 where nothing is known, which spreads most."""
    found = ratio(joint[:, 0], joint[:, 1])
    return np.where(np.isnan(found), 1.0, found)


def influence_on_auroc(odds: Floats, true: NDArray[np.bool_]) -> Floats:
    """Return (N,): what each image's weight moves AUROC by (DeLong et al. 1988).

    Args:
        odds: (N,), higher for what is more likely of the class.
        true: (N,) bool, with images of both kinds.
    """
    found = np.empty(len(odds))
    # Of an image of the class, the share of the others that it lies above; and the reverse.
    found[true] = _share_below(odds[~true], odds[true])
    found[~true] = 1 - _share_below(odds[true], odds[~true])
    found -= found[true].mean()
    found[true] /= true.sum()
    found[~true] /= (~true).sum()
    return found


def _share_below(of: Floats, values: Floats) -> Floats:
    """Return the share of some numbers that lies below each value; an equal one counts half."""
    rising = np.sort(of)
    below = rising.searchsorted(values, "left") + rising.searchsorted(values, "right")
    share: Floats = below / (2 * len(of))
    return share


def influence_on_precision(odds: Floats, true: NDArray[np.bool_]) -> Floats:
    """Return (N,): what each image's weight moves average precision by; as ``influence_on_auroc``.

    The derivative of the weighted sum of precisions; equal log-odds count in the images' order.
    """
    order = np.argsort(-odds, kind="stable")
    hit, above = true[order], np.arange(1, len(odds) + 1)
    precision, n_true = np.cumsum(hit) / above, int(true.sum())
    average = (precision * hit).sum() / n_true
    # An image counts in the precision at its own place, if it is of the class, and at all below.
    gain = _from_below(np.where(hit, (1 - precision) / above, 0.0))
    loss = _from_below(np.where(hit, precision / above, 0.0))
    found = np.empty(len(odds))
    found[order] = np.where(hit, precision - average + gain, -loss) / n_true
    return found


def _from_below(values: Floats) -> Floats:
    found: Floats = values[::-1].cumsum()[::-1]
    return found


def half_width(distances: Floats, correlation: Floats) -> float:
    """Return how far an interval of a mean over classes reaches to one side of it.

    Zou and Donner (2008), equation 5: variances at the limits are recovered from the classes' own
    intervals, and add as those of correlated terms do.

    Args:
        distances: (K,): from each class's figure to its limit.
        correlation: (K, K).
    """
    return math.sqrt(max(float(distances @ correlation @ distances), 0.0)) / len(distances)
