"""Whether two rows of a lab differ by more than their test patients do: paired tests of AUROC.

A row is several models where it has several seeds, or a model of each site; its AUROC is their
mean. Both tests ask what other patients might have shown of these very models; that other seeds
would have made other models is what the interval over seeds says.

- A task with a positive class: DeLong's test of a contrast of correlated AUROCs (DeLong, DeLong and
  Clarke-Pearson 1988), by the algorithm of Sun and Xu (2014).
- A task without one: the paired bootstrap over patients, as their classes share the patients.

Shapes: M models, N patients, D draws.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from client.bootstrap import LEAST_PATIENTS, draw_patients, patients_of_classes
from client.weighted_metrics import Cases, metrics_of
from common.ranking import Floats, log_odds

DRAWS = 2000


class Test(NamedTuple):
    """What a test says of one row against another."""

    difference: float | None
    """AUROC of the other less that of the row."""
    p: float | None
    """Two-sided; None where nothing can be said."""
    patients: int
    method: str
    """``DeLong`` or ``bootstrap``."""
    reason: str = ""
    """Why there is no p."""


def compare(best: Sequence[Cases], row: Sequence[Cases], *, seed: int) -> Test:
    """Test the mean AUROC of one row's models against that of another's, on the same patients.

    Args:
        best: What each model of the one row says.
        row: What each model of the other says.
        seed: Of the draws.
    """
    first, patients = best[0], len(np.unique(best[0].owners))
    method = "bootstrap" if first.positive is None else "DeLong"
    for other in (*best, *row):
        same = np.array_equal(other.labels, first.labels)
        if not (same and np.array_equal(other.owners, first.owners)):
            return Test(None, None, patients, method, "the rows were asked about other patients")
    counts = patients_of_classes(first)
    if (counts > 0).sum() < 2 or counts[counts > 0].min() < LEAST_PATIENTS:  # noqa: PLR2004 - two classes
        reason = f"fewer than {LEAST_PATIENTS} patients of a class"
        return Test(None, None, patients, method, reason)
    if first.positive is None:
        return Test(*_bootstrapped(best, row, seed), patients, method)
    return Test(*_by_delong(best, row, first.positive), patients, method)


def delong(scores_MN: Floats, ill_N: np.ndarray) -> tuple[Floats, Floats]:
    """Return the AUROC of each model and their covariance over patients; Sun and Xu (2014).

    Args:
        scores_MN: The greater, the likelier ill.
        ill_N: Whether a patient is; two of each kind at least.

    Returns:
        (M,) and (M, M).
    """
    positives, negatives = scores_MN[:, ill_N], scores_MN[:, ~ill_N]
    m, n = positives.shape[1], negatives.shape[1]
    both = np.concatenate([positives, negatives], axis=1)
    ranks = rankdata(both, axis=1)  # midranks of ties, as the paper has them
    of_ill = (ranks[:, :m] - rankdata(positives, axis=1)) / n
    of_healthy = 1 - (ranks[:, m:] - rankdata(negatives, axis=1)) / m
    covariance: Floats = np.atleast_2d(np.cov(of_ill)) / m + np.atleast_2d(np.cov(of_healthy)) / n
    return of_ill.mean(axis=1), covariance


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number (Holm 1979), by name."""
    corrected: dict[str, float] = {}
    greatest = 0.0
    for place, name in enumerate(sorted(values, key=values.__getitem__)):
        greatest = max(greatest, min(1.0, (len(values) - place) * values[name]))
        corrected[name] = greatest
    return corrected


def _by_delong(
    best: Sequence[Cases], row: Sequence[Cases], positive: int
) -> tuple[float, float | None]:
    models = [*best, *row]
    scores = np.stack([log_odds(cases.logits, positive) for cases in models])
    aurocs, covariance = delong(scores, models[0].labels == positive)
    contrast = np.array([1 / len(best)] * len(best) + [-1 / len(row)] * len(row))
    difference, variance = float(contrast @ aurocs), float(contrast @ covariance @ contrast)
    if variance <= 1e-12:  # noqa: PLR2004 - what rounding leaves of none
        return difference, 1.0 if abs(difference) < 1e-9 else None  # noqa: PLR2004 - the same
    return difference, float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def _bootstrapped(best: Sequence[Cases], row: Sequence[Cases], seed: int) -> tuple[float, float]:
    """Return the difference, and twice the smaller share of the draws on either side of none."""
    weights = draw_patients(best[0], seed=seed, draws=DRAWS)
    once = np.ones((1, weights.shape[1]), np.int64)

    def mean_auroc(models: Sequence[Cases], counts: np.ndarray) -> Floats:
        found = [metrics_of(cases, counts[:, cases.owners])["auroc"] for cases in models]
        mean: Floats = np.mean(found, axis=0)
        return mean

    difference = float((mean_auroc(best, once) - mean_auroc(row, once))[0])
    drawn = mean_auroc(best, weights) - mean_auroc(row, weights)
    drawn = drawn[~np.isnan(drawn)]
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return difference, float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))
