"""Laws of operating points; the reference is scikit-learn's ROC curve and counts by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from common import metrics
from common.intervals import wilson
from common.metrics import MetricState
from common.operating import LEAST, RULES, at_edge, choose
from common.ranking import edges, log_odds


def images(n: int, seed: int, n_classes: int = 2) -> tuple[NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, n_classes, n)
    return random.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels], labels


def state_of(
    logits: NDArray[Any], labels: NDArray[Any], positive: int | None, n_patients: int | None = None
) -> MetricState:
    state = metrics.update(metrics.zero(logits.shape[1], positive), logits, labels, positive)
    return metrics.with_patients(state, len(labels) if n_patients is None else n_patients)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.integers(0, 10_000))
def test_youden_is_scikit_learns(n: int, seed: int) -> None:
    """The chosen edge has the greatest J of scikit-learn's curve, to what a bin can hide."""
    logits, labels = images(n, seed)
    labels[:2] = 0, 1
    scores = logits[:, 1] - logits[:, 0]
    chosen = choose(state_of(logits, labels, 1), 0)
    assert chosen is not None
    threshold = edges()[chosen["youden"]]
    found = np.mean(scores[labels == 1] >= threshold) - np.mean(scores[labels == 0] >= threshold)
    false, true, _ = reference.roc_curve(labels, scores)
    assert found <= np.max(true - false) + 1e-12
    assert found >= np.max(true - false) - 0.1  # a bin of few images


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.integers(0, 10_000), st.floats(0.5, 1.0))
def test_what_is_asked_for_is_reached(n: int, seed: int, least: float) -> None:
    """Sensitivity or specificity is at least what was asked, and no next edge would do better."""
    logits, labels = images(n, seed)
    labels[:2] = 0, 1
    scores = logits[:, 1] - logits[:, 0]
    ill, healthy = scores[labels == 1], scores[labels == 0]
    chosen = choose(state_of(logits, labels, 1), 0, least)
    assert chosen is not None
    at = edges()
    sensitivity = np.array([np.mean(ill >= edge) for edge in at])
    specificity = np.array([np.mean(healthy < edge) for edge in at])
    enough = sensitivity >= least - 1e-9
    assert enough[chosen["sensitivity"]]
    assert specificity[chosen["sensitivity"]] == specificity[enough].max()
    enough = specificity >= least - 1e-9
    assert enough[chosen["specificity"]]
    assert sensitivity[chosen["specificity"]] == sensitivity[enough].max()


def test_shares_are_counts_at_the_threshold() -> None:
    """On test images every share is that of the scores at the edge, with Wilson's interval."""
    logits, labels = images(300, seed=1)
    chosen = choose(state_of(*images(200, seed=2), 1), 0)
    assert chosen is not None
    assert tuple(chosen) == RULES
    scores = logits[:, 1] - logits[:, 0]
    for edge in chosen.values():
        found = at_edge(state_of(logits, labels, 1), 0, edge)
        called = scores >= found["threshold"]
        tn, fp, fn, tp = reference.confusion_matrix(labels, called).ravel().tolist()
        shares = {
            "sensitivity": (tp, fn),
            "specificity": (tn, fp),
            "ppv": (tp, fp),
            "npv": (tn, fn),
        }
        for name, (hits, misses) in shares.items():
            assert found[name]["value"] == hits / (hits + misses)
            assert found[name]["n"] == hits + misses
            assert tuple(found[name]["interval"]) == wilson(hits, hits + misses)
        assert found["probability"] == pytest.approx(1 / (1 + np.exp(-found["threshold"])))


def test_each_class_is_held_against_the_rest() -> None:
    """Without a positive class the k-th point is of class k's log-odds against all others."""
    logits, labels = images(300, seed=3, n_classes=3)
    state = state_of(logits, labels, None)
    for k in range(3):
        chosen = choose(state, k)
        assert chosen is not None
        found = at_edge(state, k, chosen["sensitivity"])
        called = log_odds(logits, k) >= found["threshold"]
        assert found["sensitivity"]["value"] == np.mean(called[labels == k]) >= LEAST
        assert found["specificity"]["value"] == np.mean(~called[labels != k])


def test_the_threshold_lies_amid_its_gap() -> None:
    """Between the images that it parts the threshold leaves as many bins below as above."""
    logits = np.array([[0, x] for x in (-3.0, -2.0, 2.0, 3.0)])
    chosen = choose(state_of(logits, np.array([0, 0, 1, 1]), 1), 0)
    assert chosen is not None
    for edge in chosen.values():
        assert abs(edges()[edge]) < 0.001


def test_one_class_has_no_threshold() -> None:
    """Without ill or without healthy images nothing is chosen; on them shares are undefined."""
    logits, _ = images(30, seed=4)
    for label in (0, 1):
        state = state_of(logits, np.full(30, label), 1)
        assert choose(state, 0) is None
        found = at_edge(state, 0, 1000)
        missing = "specificity" if label else "sensitivity"
        assert found[missing] == {"value": None, "interval": None, "n": 0}


def test_several_images_of_a_patient_have_no_interval() -> None:
    """Where images are not all of different patients a share has no interval."""
    logits, labels = images(50, seed=5)
    found = at_edge(state_of(logits, labels, 1, n_patients=20), 0, 1000)
    assert found["sensitivity"]["interval"] is None
    assert found["sensitivity"]["value"] is not None


def test_merged_bins_are_not_parted() -> None:
    """No threshold is chosen within merged bins; on such, an interval holds both its ends."""
    logits, labels = images(200, seed=6)
    state = state_of(logits, labels, 1)
    lower, upper = np.zeros_like(state.histogram), np.zeros_like(state.histogram)
    for first, last in ((0, 899), (900, 999), (1000, 1999)):
        counts = state.histogram[..., first : last + 1].sum(axis=-1)
        lower[..., first], upper[..., last] = counts, counts
    merged = replace(state, histogram=lower, histogram_upper=upper)
    chosen = choose(merged, 0)
    assert chosen is not None
    assert set(chosen.values()) <= {0, 900, 1000, 2000}
    whole, found = at_edge(state, 0, 950), at_edge(merged, 0, 950)
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        low, high = found[name]["interval"]
        assert low <= whole[name]["interval"][0]
        assert whole[name]["interval"][1] <= high
