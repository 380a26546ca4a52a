"""Laws of the intervals; the reference is scipy, and a bootstrap over the images themselves."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as reference

from common import metrics
from common.intervals import intervals, wilson
from common.metrics import METRICS, MetricState, compute

Batch = tuple[NDArray[Any], NDArray[Any]]


def two_class(n: int, seed: int, prevalence: float = 0.4, shift: float = 0.0) -> Batch:
    """Unit normals at a distance of 1.5, and how far a site's scores are shifted."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < prevalence).astype(np.int64)
    log_odds = 1.5 * random.normal(1.5 * (labels - 0.5)) + shift
    base = random.normal(size=n)
    return np.stack([base, base + log_odds], axis=1), labels


def multi_class(n: int, seed: int, n_classes: int = 4) -> Batch:
    random = np.random.default_rng(seed)
    labels = random.integers(0, n_classes, n)
    return 2 * random.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[labels], labels


def state_of(batch: Batch, positive: int | None, n_patients: int | None = None) -> MetricState:
    logits, labels = batch
    state = metrics.update(metrics.zero(logits.shape[1], positive), logits, labels, positive)
    return metrics.with_patients(state, len(labels) if n_patients is None else n_patients)


def bootstrap(batches: Sequence[Batch], positive: int | None) -> dict[str, tuple[float, float]]:
    """Return the percentile intervals of resamples of all sites' images laid together."""
    random, found = np.random.default_rng(9), []
    logits, labels = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
    for _ in range(500):
        pick = random.integers(0, len(labels), len(labels))
        found.append(compute(state_of((logits[pick], labels[pick]), positive), positive))
    ends = (0.025, 0.975)
    return {
        name: tuple(np.quantile([float(each[name] or 0) for each in found], ends))
        for name in METRICS
    }


def test_wilson_is_that_of_scipy() -> None:
    """Wilson's interval is scipy's for every share, none and all included."""
    for n in (1, 7, 40, 1000):
        for hits in {0, 1, n // 3, n - 1, n}:
            expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
            assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) is None


@pytest.mark.parametrize("positive", [1, None])
def test_widths_are_those_of_a_bootstrap_of_the_images(positive: int | None) -> None:
    """Of three sites together each width is within 12 % of that of resampled images.

    Means over classes of what is ranked are wider, never narrower.
    """
    batches = (
        [two_class(250, s, p, d) for s, p, d in ((0, 0.3, 0.0), (1, 0.5, 1.0), (2, 0.4, -0.5))]
        if positive == 1
        else [multi_class(150, s) for s in range(3)]
    )
    merged = metrics.merge(state_of(batch, positive) for batch in batches)
    found = intervals(merged, positive, seed=5)
    for name, (low, high) in bootstrap(batches, positive).items():
        if name in ("auroc_bound", "calibration_error"):
            continue
        interval = found[name]
        assert interval is not None
        ratio = (interval[1] - interval[0]) / (high - low)
        widest = 2.2 if positive is None and name in ("auroc", "average_precision") else 1.12
        assert 0.88 < ratio < widest, name


@pytest.mark.parametrize("positive", [1, None])
def test_the_figure_lies_within(positive: int | None) -> None:
    """Each interval holds its metric, and neither end leaves the metric's range."""
    for seed in range(5):
        batch = two_class(60, seed) if positive else multi_class(60, seed)
        state = state_of(batch, positive)
        values = compute(state, positive)
        for name, interval in intervals(state, positive, seed).items():
            assert interval is not None, name
            value = values[name]
            assert value is not None
            assert 0 <= interval[0] <= value <= interval[1], name
            assert name == "loss" or interval[1] <= (2 if name == "brier" else 1), name


@pytest.mark.slow
def test_auroc_is_covered_as_often_as_it_should_be() -> None:
    """Of 300 samples of 80 images, the interval holds the true AUROC in 91 % to 98 %."""
    truth = stats.norm.cdf(1.5 / np.sqrt(2))
    held = 0
    for seed in range(300):
        interval = intervals(state_of(two_class(80, 1000 + seed), 1), 1, seed)["auroc"]
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert 0.91 <= held / 300 <= 0.98


def test_loss_and_brier_are_students() -> None:
    """The intervals of the two means are scipy's, from the values themselves."""
    logits, labels = multi_class(90, seed=3)
    found = intervals(state_of((logits, labels), None), None, seed=0)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    values = {
        "loss": -np.log(p[np.arange(90), labels]),
        "brier": ((p - np.eye(4)[labels]) ** 2).sum(axis=1),
    }
    for name, each in values.items():
        expected = stats.t.interval(0.95, 89, each.mean(), stats.sem(each))
        assert found[name] == pytest.approx(expected, rel=1e-6)


def test_the_seed_alone_decides() -> None:
    """The same states and seed give the same intervals; another seed gives others."""
    state = state_of(two_class(80, 0), 1)
    assert intervals(state, 1, seed=1) == intervals(state, 1, seed=1)
    assert intervals(state, 1, seed=1)["auroc"] != intervals(state, 1, seed=2)["auroc"]


def test_several_images_of_a_patient_have_no_interval() -> None:
    """Where images are not all of different patients, no interval claims that they are."""
    batch = two_class(80, seed=4)
    merged = metrics.merge([state_of(batch, 1), state_of(batch, 1, n_patients=79)])
    assert set(intervals(merged, 1, seed=0).values()) == {None}
    assert set(intervals(metrics.zero(2, 1), 1, seed=0).values()) == {None}
    assert "auroc_bound" not in intervals(metrics.zero(2, 1), 1, seed=0)


EDGE: dict[str, tuple[Callable[[], Batch], set[str]]] = {
    "one class": (
        lambda: (two_class(40, seed=1)[0], np.zeros(40, np.int64)),
        {"sensitivity", "auroc", "average_precision"},
    ),
    "two positives": (
        lambda: (two_class(40, seed=1)[0], np.r_[np.ones(2), np.zeros(38)].astype(np.int64)),
        {"auroc"},
    ),
    "all right": (
        lambda: (np.array([[9.0, 0], [0, 9]] * 20), np.array([0, 1] * 20)),
        {"auroc", "average_precision", "balanced_accuracy", "f1", "loss", "brier"},
    ),
    "one image": (lambda: two_class(1, seed=0), {"auroc", "loss", "brier"}),
}


@pytest.mark.parametrize("case", EDGE)
def test_what_says_nothing_has_no_interval(case: str) -> None:
    """Too few of a class, or no image wrong, leave no bootstrap; shares keep Wilson's."""
    make, missing = EDGE[case]
    found = intervals(state_of(make(), 1), 1, seed=0)
    assert missing <= {name for name, interval in found.items() if interval is None}
    assert found["accuracy"] is not None
    if case == "all right":
        assert found["sensitivity"] == pytest.approx(wilson(20, 20))


def test_merged_bins_widen_the_interval_of_auroc() -> None:
    """A site that merged bins gets an AUROC's interval that holds both ends of its bound."""
    state = state_of(two_class(100, seed=6), 1)
    lower, upper = np.zeros_like(state.histogram), np.zeros_like(state.histogram)
    bins = np.arange(metrics.zero(2, 1).histogram.shape[-1])
    for first, last in ((0, 949), (950, 1049), (1050, 1999)):
        counts = state.histogram[..., (bins >= first) & (bins <= last)].sum(axis=-1)
        lower[..., first], upper[..., last] = counts, counts
    merged = replace(state, histogram=lower, histogram_upper=upper)
    exact, found = (intervals(each, 1, seed=0) for each in (state, merged))
    values = compute(merged, 1)
    auroc, bound = values["auroc"], values["auroc_bound"]
    assert auroc is not None
    assert bound is not None
    assert found["auroc"] is not None
    assert exact["auroc"] is not None
    assert found["auroc"][0] < min(auroc - bound, exact["auroc"][0])
    assert found["auroc"][1] > max(auroc + bound, exact["auroc"][1])
    assert found["average_precision"] is found["calibration_error"] is None
    assert found["loss"] == exact["loss"]


def test_squares_that_are_not_told_leave_means_without_an_interval() -> None:
    """Loss and Brier score have none then; all else stays."""
    state = state_of(two_class(100, seed=7), 1)
    exact, found = (intervals(each, 1, seed=0) for each in (state, metrics.untold(state)))
    assert found == exact | {"loss": None, "brier": None}
    assert exact["loss"] is not None


def test_the_resampled_auroc_is_scikit_learns() -> None:
    """An interval is centred on scikit-learn's AUROC of the same images to 0.02."""
    logits, labels = two_class(400, seed=8)
    found = intervals(state_of((logits, labels), 1), 1, seed=0)["auroc"]
    assert found is not None
    expected = reference.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    assert np.mean(found) == pytest.approx(expected, abs=0.02)
