"""Figures from the sums of sites against scikit-learn on the same images laid together.

Made-up federations of sites that differ in size, prevalence and scores. Sums travel as they do on
the wire. Counts must be exact, AUROC within 0.003, average precision within 0.01, and each
interval's width within 10 % of that of a bootstrap over the images (each of another patient); of
tasks without a positive class this is asked of the means of AUROC and average precision. The
figure is the worst of these, as a share of what it may be.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn import metrics as reference

from common import metrics, metrics_wire
from common.intervals import Interval, intervals
from common.metrics import MetricState, compute
from common.ranking import log_odds
from simulations.benches.result import Result

AUROC_LIMIT = 0.003
PRECISION_LIMIT = 0.01
WIDTH_LIMIT = 0.10
MEANS = ("auroc", "average_precision")
Images = tuple[NDArray[Any], NDArray[Any]]
Values = dict[str, float]

FEDERATIONS: Mapping[str, tuple[tuple[int, float, float, float], ...]] = {
    "alike": ((300, 0.4, 1.0, 0.0),) * 4,
    "of many sizes": ((40, 0.4, 1.0, 0.0), (150, 0.3, 1.0, 0.2), (900, 0.4, 1.0, 0.0)),
    "skewed": ((300, 0.1, 1.0, -1.0), (300, 0.3, 1.0, 0.0), (300, 0.6, 1.0, 1.0)),
    "sure": ((300, 0.3, 8.0, 0.0), (300, 0.5, 20.0, 0.0)),
    "barely trained": ((200, 0.4, 0.03, 0.0), (200, 0.4, 0.03, 0.01)),
    "rare": ((500, 0.05, 1.0, 0.0), (500, 0.08, 1.0, 0.0)),
}
"""Sites of each: images, share of the ill, by what log-odds are stretched, and shifted."""
SEVERAL: Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "three classes": ((300, 300, 300), (0.4, 0.3, 0.3)),
    "four classes, many sizes": ((40, 150, 900), (0.25, 0.25, 0.25, 0.25)),
    "five classes, skewed": ((200, 200, 200), (0.5, 0.2, 0.1, 0.1, 0.1)),
}
"""Images of each site, and shares of the classes."""


def main(draws: Annotated[int, typer.Option(help="Resamples of the images.")] = 2000) -> None:
    """Measure, print, and end with 1 if a limit is not kept."""
    found = {name: _of_federation(name, draws) for name in FEDERATIONS}
    found |= {name: _of_classes(*SEVERAL[name], draws) for name in SEVERAL}
    limits = {"auroc": AUROC_LIMIT, "average_precision": PRECISION_LIMIT}
    counts = max(each["counts"] for each in found.values())
    errors = {name: max(each["errors"][name] for each in found.values()) for name in limits}
    widths = {f"{name}, {m}": w for name, each in found.items() for m, w in each["widths"].items()}
    shares = {name: errors[name] / limit for name, limit in limits.items()}
    shares["width"] = max(abs(w - 1) for w in widths.values()) / WIDTH_LIMIT
    widest = max(widths, key=lambda name: abs(widths[name] - 1))
    worst = max(shares.values())
    result = Result(
        name="metrics",
        figure=worst,
        against={"what": "scikit-learn, pooled images", "figure": 1.0, "unit": "of the limit"},
        ratio=worst,
        limit=1.0,
        holds=worst <= 1.0 and counts == 0,
        details={
            "largest_error_of_counts": counts,
            "largest_errors": errors,
            "width_furthest_from_1": {widest: widths[widest]},
            "federations": found,
        },
    )
    raise typer.Exit(result.tell())


def _of_federation(name: str, draws: int) -> dict[str, Any]:
    """Return the errors of one federation's pooled figures, and the widths' ratios."""
    rng = np.random.default_rng(0)
    sites = [_images(rng, *site) for site in FEDERATIONS[name]]
    logits, labels = (np.concatenate([site[i] for site in sites]) for i in (0, 1))
    sent = [metrics_wire.to_arrays(_state(site)) for site in sites]
    pooled = metrics.merge(metrics_wire.from_arrays(arrays, 2, 1) for arrays in sent)
    found, expected = compute(pooled, 1), _reference(logits, labels)
    off = {m: abs((found[m] or 0.0) - value) for m, value in expected.items()}
    ranked = ("auroc", "average_precision")
    return {
        "counts": max(error for m, error in off.items() if m not in (*ranked, "loss", "brier")),
        "errors": {m: off[m] for m in (*ranked, "loss", "brier")},
        "widths": _widths(pooled, logits, labels, draws),
    }


def _of_classes(sizes: tuple[int, ...], shares: tuple[float, ...], draws: int) -> dict[str, Any]:
    """Return the same of a task without a positive class: means over its classes."""
    rng, k = np.random.default_rng(3), len(shares)
    sites = []
    for n in sizes:
        labels = rng.choice(k, n, p=shares)
        # What all classes have in common makes their figures vary together.
        logits = rng.normal(size=(n, k)) + 1.2 * np.eye(k)[labels] + rng.normal(size=(n, 1)) / 2
        sites.append((logits, labels))
    logits, labels = (np.concatenate([site[i] for site in sites]) for i in (0, 1))
    states = [metrics_wire.to_arrays(_state_of_classes(*site)) for site in sites]
    pooled = metrics.merge(metrics_wire.from_arrays(arrays, k, None) for arrays in states)
    found, expected = compute(pooled, None), _macro(logits, labels)
    off = {m: abs((found[m] or 0.0) - value) for m, value in expected.items()}
    ours, drawn = intervals(pooled, None, seed=2), []
    for _ in range(draws):
        pick = rng.integers(0, len(labels), len(labels))
        drawn.append(_macro(logits[pick], labels[pick]))
    return {
        "counts": off["accuracy"],
        "errors": {m: off[m] for m in MEANS},
        "widths": {m: _ratio(ours[m], [each[m] for each in drawn]) for m in MEANS},
    }


def _state_of_classes(logits: NDArray[Any], labels: NDArray[Any]) -> MetricState:
    state = metrics.update(metrics.zero(logits.shape[1], None), logits, labels, None)
    return metrics.with_patients(metrics.with_joint(state, logits, labels), len(labels))


def _macro(logits: NDArray[Any], labels: NDArray[Any]) -> Values:
    """Return scikit-learn's means over the classes."""
    truth = np.eye(logits.shape[1])[labels]
    odds = np.stack([log_odds(logits, k) for k in range(logits.shape[1])], axis=1)
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "auroc": float(reference.roc_auc_score(truth, odds, average="macro")),
        "average_precision": float(reference.average_precision_score(truth, odds, average="macro")),
    }


def _images(
    rng: np.random.Generator, n: int, prevalence: float, scale: float, shift: float
) -> Images:
    """Return logits (n, 2) and labels of two normal distributions at a distance of 1.5."""
    labels = (rng.random(n) < prevalence).astype(np.int64)
    log_odds = scale * (1.5 * rng.normal(1.5 * (labels - 0.5)) + shift)
    return np.stack([-log_odds / 2, log_odds / 2], axis=1), labels


def _state(images: Images) -> MetricState:
    state = metrics.update(metrics.zero(2, 1), *images, 1)
    return metrics.with_patients(state, len(images[1]))


def _reference(logits: NDArray[Any], labels: NDArray[Any]) -> Values:
    """Return scikit-learn's figures of the positive class."""
    log_odds, predicted = logits[:, 1] - logits[:, 0], logits.argmax(axis=1)
    p = 1 / (1 + np.exp(-log_odds))
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        labels, predicted, average="binary", zero_division=0.0
    )
    specificity = float((predicted[labels == 0] == 0).mean())
    # Not scikit-learn's, which cuts probabilities off where float32 ends.
    losses = np.logaddexp(0, np.where(labels == 1, -log_odds, log_odds))
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": float(precision),
        "sensitivity": float(recall),
        "specificity": specificity,
        "f1": float(f1),
        "auroc": float(reference.roc_auc_score(labels, log_odds)),
        "average_precision": float(reference.average_precision_score(labels, log_odds)),
        "brier": float(((p - labels) ** 2).mean()),
        "loss": float(losses.mean()),
    }


def _widths(
    pooled: MetricState, logits: NDArray[Any], labels: NDArray[Any], draws: int
) -> dict[str, float]:
    """Return by how much each interval is wider than a bootstrap's over the images."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        pick = rng.integers(0, len(labels), len(labels))
        found.append(_reference(logits[pick], labels[pick]))
    ours = intervals(pooled, 1, seed=2)
    widths = {name: _ratio(ours[name], [each[name] for each in found]) for name in found[0]}
    return {name: width for name, width in widths.items() if not math.isnan(width)}


def _ratio(interval: Interval | None, drawn: list[float]) -> float:
    """Return an interval's width over that of the middle 95 % of draws; NaN without either."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    if interval is None or high == low:
        return math.nan
    return float((interval[1] - interval[0]) / (high - low))


if __name__ == "__main__":
    typer.run(main)
