"""Figures of a lab's rows: from predictions to metrics, and from seeds to a mean with its interval.

Every metric is scikit-learn's. Precision, sensitivity, specificity and F1 are those of the
positive class; without one, means over the classes (macro), as AUROC is of each class against the
rest. A class of which a metric is not defined is left out of the mean. Shapes: N patients, K
classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from client.weighted_metrics import Cases
from common.ranking import Floats, Ints, log_odds, ranked_classes, ratio

METRICS = {
    "accuracy": "accuracy",
    "error_rate": "error rate",
    "precision": "precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "auroc": "AUROC",
}
"""Metrics by name, as a table calls them."""
LEVEL = 0.95
GRID = np.linspace(0, 1, 201)
"""False positive rates at which curves are averaged."""


class Mean(NamedTuple):
    """The mean of a figure over the seeds that define it."""

    mean: float | None
    low: float | None
    high: float | None
    """Student's interval of the mean; None of fewer than two seeds."""
    values: tuple[float | None, ...]
    """By seed."""


def figures_of(cases: Cases) -> dict[str, float | None]:
    """Return each metric of ``METRICS``; None where the patients leave it undefined."""
    truth, said = cases.labels, cases.logits.argmax(axis=1)
    asked = ranked_classes(cases.logits.shape[1], cases.positive)
    accuracy = float(accuracy_score(truth, said))
    nothing = np.nan  # of nothing: scikit-learn then leaves the class out of the mean
    counted = {
        name: score(truth, said, labels=asked, average="macro", zero_division=nothing)
        for name, score in (
            ("precision", precision_score),
            ("sensitivity", recall_score),
            ("f1", f1_score),
        )
    }
    tables = multilabel_confusion_matrix(truth, said, labels=asked).astype(np.float64)
    right, healthy = tables[:, 0, 0], tables[:, 0].sum(axis=1)
    counted["specificity"] = _mean_of_defined(ratio(right, healthy))
    counted |= {"accuracy": accuracy, "error_rate": 1 - accuracy, "auroc": auroc(cases)}
    return {name: _plain(counted[name]) for name in METRICS}


def auroc(cases: Cases) -> float:
    """Return the AUROC of the positive class, or the mean over the classes; NaN of no class."""
    k_all = ranked_classes(cases.logits.shape[1], cases.positive)
    ranked = [(cases.labels == k, log_odds(cases.logits, k)) for k in k_all]
    found = [roc_auc_score(is_k, odds) for is_k, odds in ranked if _both(is_k)]
    return float(np.mean(found)) if found else float("nan")


def mean_figures(models: Sequence[Cases]) -> dict[str, float | None]:
    """Return the means over models of their figures on the same patients, where defined."""
    found = [figures_of(cases) for cases in models]
    means = {}
    for name in METRICS:
        values = [value for one in found if (value := one[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def over_seeds(values: Sequence[float | None]) -> Mean:
    """Return the mean with Student's interval: t quantile times standard error, n - 1 degrees."""
    known = [value for value in values if value is not None]
    if not known:
        return Mean(None, None, None, tuple(values))
    mean = float(np.mean(known))
    if len(known) < 2:  # noqa: PLR2004 - one value has no spread
        return Mean(mean, None, None, tuple(values))
    error = float(stats.sem(known))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1)) * error
    return Mean(mean, mean - half, mean + half, tuple(values))


def confusion(models: Sequence[Cases]) -> Ints:
    """Return (K, K): the sum of the models' confusion matrices; rows are the true classes."""
    labels = range(models[0].logits.shape[1])
    tables = [confusion_matrix(c.labels, c.logits.argmax(axis=1), labels=labels) for c in models]
    total: Ints = np.sum(tables, axis=0)
    return total


def roc(models: Sequence[Cases]) -> Floats | None:
    """Return the true positive rates at ``GRID``: means over models, and over their classes.

    A curve is scikit-learn's, with straight lines between its points.

    Returns:
        None where no class has both positives and negatives.
    """
    curves = []
    for cases in models:
        for k in ranked_classes(cases.logits.shape[1], cases.positive):
            is_k = cases.labels == k
            if _both(is_k):
                false, true, _ = roc_curve(is_k, log_odds(cases.logits, k))
                curves.append(np.interp(GRID, false, true))
    if not curves:
        return None
    mean: Floats = np.mean(curves, axis=0)
    mean[0] = 0.0
    return mean


def mean_plain(found: Mean) -> Mapping[str, object]:
    """Return a mean as JSON has it."""
    return {"mean": found.mean, "low": found.low, "high": found.high, "values": list(found.values)}


def _both(is_k: Ints) -> bool:
    return bool(is_k.any()) and not bool(is_k.all())


def _mean_of_defined(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
