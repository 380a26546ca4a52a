"""Laws of the curves; the reference is scikit-learn on the scores themselves."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from common import metrics
from common.curves import POINTS, decision, precision_recall, reliability, roc
from common.intervals import wilson
from common.metrics import MetricState, compute


def images(n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.35).astype(np.int64)
    log_odds = 1.5 * random.normal(1.5 * (labels - 0.5)) - 0.6
    return np.stack([np.zeros(n), log_odds], axis=1), labels


def state_of(logits: NDArray[Any], labels: NDArray[Any]) -> MetricState:
    state = metrics.update(metrics.zero(2, 1), logits, labels, 1)
    return metrics.with_patients(state, len(labels))


@pytest.mark.parametrize("n", [30, 300, 5000])
def test_the_area_below_the_roc_curve_is_auroc(n: int) -> None:
    """The curve is monotone from corner to corner, short, and encloses the state's AUROC."""
    state = state_of(*images(n, seed=0))
    found = roc(state, 0)
    assert found is not None
    x, y = found["false_positive_rate"], found["true_positive_rate"]
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) >= 0)
    assert len(x) <= POINTS
    assert reference.auc(x, y) == pytest.approx(compute(state, 1)["auroc"], abs=1e-3)


def test_corners_are_scikit_learns() -> None:
    """Points are those of scikit-learn's curve, and between them it is as straight as ours."""
    labels = images(60, seed=1)[1]
    logits = np.stack([np.zeros(60), np.linspace(-3, 3, 60) + 0.01], axis=1)  # a bin for each
    found = roc(state_of(logits, labels), 0)
    assert found is not None
    points = set(zip(*found.values(), strict=True))
    false, true, _ = reference.roc_curve(labels, logits[:, 1], drop_intermediate=False)
    assert points < set(zip(false.tolist(), true.tolist(), strict=True))
    assert reference.auc(*found.values()) == pytest.approx(reference.auc(false, true), abs=1e-12)


def test_precision_and_recall_are_scikit_learns() -> None:
    """Each point of the curve is one of scikit-learn's."""
    logits, labels = images(80, seed=2)
    found = precision_recall(state_of(logits, labels), 0)
    assert found is not None
    precision, recall, _ = reference.precision_recall_curve(labels, logits[:, 1])
    expected = {(round(r, 12), round(p, 12)) for r, p in zip(recall, precision, strict=True)}
    points = zip(found["recall"], found["precision"], strict=True)
    assert {(round(r, 12), round(p, 12)) for r, p in points} <= expected
    assert found["recall"][-1] == 1


def test_net_benefit_by_hand() -> None:
    """At each probability p it is (TP - FP p / (1 - p)) / n; treating all needs no model."""
    logits, labels = images(200, seed=3)
    found = decision(state_of(logits, labels), 0)
    assert found is not None
    chance = 1 / (1 + np.exp(-logits[:, 1]))
    assert len(found["probability"]) > 90
    for p, net, everybody in zip(*found.values(), strict=True):
        # The probability is that of an edge: an image in a hair's breadth may be on either side.
        called = chance >= p - 1e-12
        odds = p / (1 - p)
        tp, fp = np.sum(called & (labels == 1)), np.sum(called & (labels == 0))
        assert net == pytest.approx((tp - fp * odds) / 200, abs=1e-9)
        assert everybody == pytest.approx(labels.mean() - (1 - labels.mean()) * odds)


def test_reliability_is_the_calibration_error_drawn() -> None:
    """The bins' gaps, weighted by images, are the calibration error; intervals are Wilson's."""
    state = state_of(*images(300, seed=4))
    found = reliability(state)
    n, confidence, accuracy = (np.array(found[k]) for k in ("n", "confidence", "accuracy"))
    error = (n * np.abs(accuracy - confidence)).sum() / 300
    assert error == pytest.approx(compute(state, 1)["calibration_error"])
    expected = [wilson(a * m, m) for a, m in zip(accuracy, n, strict=True)]
    assert np.allclose(found["interval"], np.array(expected))
    assert set(reliability(metrics.with_patients(state, 299))["interval"]) == {None}


def test_what_is_not_there_has_no_curve() -> None:
    """No images have no curves; one class has no ROC curve."""
    logits, labels = images(20, seed=5)
    blank, healthy = metrics.zero(2, 1), state_of(logits, np.zeros_like(labels))
    assert roc(blank, 0) is precision_recall(blank, 0) is decision(blank, 0) is None
    assert roc(healthy, 0) is precision_recall(healthy, 0) is None
    assert reliability(blank) == {"n": [], "confidence": [], "accuracy": [], "interval": []}


def test_curves_are_plain_json() -> None:
    """Every curve goes through JSON and comes back as it was."""
    state = state_of(*images(50, seed=6))
    for made in (roc(state, 0), precision_recall(state, 0), decision(state, 0), reliability(state)):
        assert json.loads(json.dumps(made, allow_nan=False)) == made
