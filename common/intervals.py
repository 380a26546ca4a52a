"""95 % confidence intervals of every metric, from sums alone: a site's, or those of all sites.

Three methods, each for what it is right for:

- Shares of cases (accuracy; precision, sensitivity and specificity of a positive class): Wilson's
  score interval, which says something of 10 right of 10 too (Brown, Cai and DasGupta 2001).
- Means over cases (loss, Brier score): Student's interval, from the sums of the squares.
- All others: the percentile bootstrap. A resample of cases is a resample of the counts of their
  cells (``common/resampling.py``), so that confusion matrix and histogram are resampled as if the
  cases were there.

A mean over classes of AUROC or average precision is of figures of the same images. Its interval is
made of the classes' own intervals and of the correlations that the sites tell (``common/joint.py``;
Zou and Donner 2008); where they tell none, the classes count as moving as one, which spreads a mean
most. The calibration error of a resample is larger than that of the cases, for the
reason for which that of the cases is larger than the truth; its quantiles are reflected at the
figure (Davison and Hinkley 1997, section 5.2), and the figure itself is kept within.

There is no interval where it would not be right: where patients have several images (those of one
patient are alike; the state that counts each patient once has intervals), where more than one draw
in twenty leaves the metric undefined, where all draws are equal, and, where a site has merged bins,
for what bins give alone, and for the means, whose squares such a site does not tell. That of AUROC
is wider by its bound at both ends.
"""

import math

import numpy as np
from scipy.special import ndtri, stdtrit

from common import joint, metrics, resampling
from common.metrics import METRICS, MetricState
from common.ranking import Floats, ranking, ratio

Interval = tuple[float, float]
LEVEL = 0.95
_LOW, _HIGH = (1 - LEVEL) / 2, (1 + LEVEL) / 2
_Z = float(ndtri(_HIGH))
_UNDEFINED_AT_MOST = 0.05
"""Share of draws: of a class with three patients, one draw in twenty has none."""


def intervals(state: MetricState, positive: int | None, seed: int) -> dict[str, Interval | None]:
    """Return the interval of each metric but ``auroc_bound``; None where there is none.

    Args:
        state: A site's, or that of all sites merged.
        positive: Index of the positive class, or None for a multi-class task.
        seed: From ``common.seeds.stream``.
    """
    found: dict[str, Interval | None] = {m: None for m in METRICS if m != "auroc_bound"}
    if state.n_images == 0 or not independent(state):
        return found
    rng = np.random.default_rng(seed)
    found |= _counted(state, positive, rng)
    found |= _shares(state, positive) | _means(state, positive)
    found |= _ranked(state, rng)
    if not resampling.are_merged(state):
        found["calibration_error"] = _of_calibration(state, positive, rng)
    return found


def independent(state: MetricState) -> bool:
    """Say whether each case is another patient's, so that their number says how much is known."""
    return state.n_images == state.n_patients


def wilson(hits: float, n: float) -> Interval | None:
    """Return Wilson's score interval of a share (Newcombe 1998, method 3); None of nothing."""
    if n == 0:
        return None
    share, square = hits / n, _Z * _Z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # The ends are 0 and 1 for none and for all; rounding would miss them.
    low, high = (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)
    return low, high


def _shares(state: MetricState, positive: int | None) -> dict[str, Interval | None]:
    """Return the intervals of what is a share of cases: of a multi-class task, accuracy alone."""
    confusion, n = state.confusion, state.n_images
    found = {"accuracy": wilson(int(confusion.trace()), n)}
    if positive is None:
        return found
    hits, ill = int(confusion[positive, positive]), int(confusion[positive].sum())
    called = int(confusion[:, positive].sum())
    return found | {
        "precision": wilson(hits, called),
        "sensitivity": wilson(hits, ill),
        "specificity": wilson(n - ill - called + hits, n - ill),
    }


def _means(state: MetricState, positive: int | None) -> dict[str, Interval | None]:
    """Return Student's intervals of loss and Brier score; None where squares are not told."""
    if not metrics.told(state):
        return {}
    n, (squared_loss, squared_brier) = state.n_images, state.squares.tolist()
    greatest = 2.0 if positive is None else 1.0
    return {
        "loss": _student(state.loss_sum, squared_loss, n, math.inf),
        "brier": _student(state.brier_sum, squared_brier, n, greatest),
    }


def _student(total: float, squares: float, n: int, greatest: float) -> Interval | None:
    """Return the interval of the mean of n values of at least 0; None where they are equal."""
    mean = total / n
    variance = (squares / n - mean * mean) * n / (n - 1) if n > 1 else 0.0
    if variance <= 1e-9 * mean * mean:  # what rounding leaves of equal values
        return None
    half = float(stdtrit(n - 1, _HIGH)) * math.sqrt(variance / n)
    return max(mean - half, 0.0), min(mean + half, greatest)


def _counted(
    state: MetricState, positive: int | None, rng: np.random.Generator
) -> dict[str, Interval | None]:
    """Return the intervals of what is counted, from resampled confusion matrices."""
    drawn = metrics.at_highest_logit(resampling.confusions(state, rng), positive)
    return {name: _quantiles(_mean_of_defined(values)) for name, values in drawn.items()}


def _ranked(state: MetricState, rng: np.random.Generator) -> dict[str, Interval | None]:
    """Return the intervals of AUROC and average precision, from those of each class."""
    by_class = [_of_class(state, k, rng) for k in range(len(state.histogram))]
    figures = ranking(state.histogram, state.histogram_upper)
    correlations = dict(zip(joint.FIGURES, joint.correlations(state.joint), strict=True))
    return {
        name: _of_mean(figures[name], [each[name] for each in by_class], correlations[name])
        for name in joint.FIGURES
    }


def _of_mean(
    figures: Floats, by_class: list[Interval | None], correlation: Floats
) -> Interval | None:
    """Return the interval of the mean of the classes' figures; None if a class has none."""
    known = [interval for interval in by_class if interval is not None]
    if len(known) < len(by_class):
        return None
    if len(known) == 1:
        return known[0]
    low, high = np.array(known).T
    mean = float(figures.mean())
    down = joint.half_width(figures - low, correlation)
    return mean - down, mean + joint.half_width(high - figures, correlation)


def _of_class(state: MetricState, k: int, rng: np.random.Generator) -> dict[str, Interval | None]:
    """Return the intervals of AUROC and average precision of the k-th ranked class."""
    drawn = [ranking(lower, upper) for lower, upper in resampling.histograms(state, k, rng)]
    auroc, bound, precision = (
        np.concatenate([chunk[name] for chunk in drawn])
        for name in ("auroc", "auroc_bound", "average_precision")
    )
    low, high = _quantiles(auroc - bound), _quantiles(auroc + bound)
    merged = resampling.are_merged(state)
    return {
        "auroc": (low[0], high[1]) if low and high else None,
        "average_precision": None if merged else _quantiles(precision),
    }


def _of_calibration(
    state: MetricState,
    positive: int | None,
    rng: np.random.Generator,
) -> Interval | None:
    """Return the interval of the calibration error: reflected quantiles, the figure within."""
    drawn = _quantiles(resampling.calibration_errors(state, rng))
    figure = metrics.compute(state, positive)["calibration_error"]
    if drawn is None or figure is None:
        return None
    low, high = 2 * figure - drawn[1], 2 * figure - drawn[0]
    return max(min(low, figure), 0.0), min(max(high, figure), 1.0)


def _quantiles(values: Floats) -> Interval | None:
    """Return the middle 95 % of draws; None of draws too often undefined, or all equal."""
    defined = values[~np.isnan(values)]
    if len(defined) < (1 - _UNDEFINED_AT_MOST) * len(values) or np.ptp(defined) == 0:
        return None
    low, high = np.quantile(defined, (_LOW, _HIGH)).tolist()
    return low, high


def _mean_of_defined(values: Floats) -> Floats:
    """Return (D,): means over the classes, (D, K), that a draw defines; NaN where none is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))
