"""Laws of the paired tests between a lab's rows."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from client.weighted_metrics import Cases
from simulations.lab_significance import compare, delong, holm


def cases_of(scores: np.ndarray, labels: np.ndarray, positive: int | None = 1) -> Cases:
    """Return cases of one patient each; a vector of scores is of the second class of two."""
    logits = np.stack([0 * scores, scores], axis=1) if scores.ndim == 1 else scores
    return Cases(logits.astype(np.float64), labels, np.arange(len(labels)), positive)


def drawn(n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, and scores of two models that share much of what they see."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    common = labels * 1.0 + rng.normal(size=n)
    return labels, common + 0.5 * rng.normal(size=n), common - shift * labels + rng.normal(size=n)


def test_a_small_case_is_that_by_hand() -> None:
    """Two ill, two healthy: components of DeLong (1988) counted pair by pair.

    Model A ranks 3 of 4 pairs rightly: V10 = (1, 1/2), V01 = (1/2, 1). Model B ranks one pair as a
    tie and three rightly: V10 = (1, 3/4), V01 = (1, 3/4).
    """
    ill = np.array([True, True, False, False])
    scores = np.array([[4.0, 2.0, 3.0, 1.0], [4.0, 3.0, 1.0, 3.0]])
    aurocs, covariance = delong(scores, ill)
    assert aurocs.tolist() == [0.75, 0.875]
    # Sample variances and covariances of the components, each divided by its number of patients.
    of_ill = np.array([[1 / 8, 1 / 16], [1 / 16, 1 / 32]])
    of_healthy = np.array([[1 / 8, -1 / 16], [-1 / 16, 1 / 32]])
    assert covariance == pytest.approx(of_ill / 2 + of_healthy / 2)


def test_aurocs_are_those_of_scikit_learn() -> None:
    """With ties too."""
    rng = np.random.default_rng(1)
    scores, ill = rng.integers(0, 8, (5, 60)).astype(float), rng.random(60) < 0.3
    aurocs, _ = delong(scores, ill)
    assert aurocs == pytest.approx([roc_auc_score(ill, one) for one in scores])


def test_the_covariance_is_that_of_a_bootstrap() -> None:
    """Standard errors, and that of the difference, are those of 1,000 stratified draws."""
    labels, one, other = drawn(200, 0.4, 2)
    _, covariance = delong(np.stack([one, other]), labels == 1)
    rng = np.random.default_rng(3)
    ill, healthy = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    found = []
    for _ in range(1000):
        rows = np.concatenate([rng.choice(ill, len(ill)), rng.choice(healthy, len(healthy))])
        found.append(delong(np.stack([one, other])[:, rows], labels[rows] == 1)[0])
    assert np.cov(np.array(found).T) == pytest.approx(covariance, rel=0.2, abs=1e-5)


def test_p_is_twice_the_tail_of_a_normal() -> None:
    """Difference over its standard error, whatever of the two comes first."""
    labels, one, other = drawn(120, 0.6, 4)
    aurocs, covariance = delong(np.stack([one, other]), labels == 1)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    wanted = 2 * norm.sf(abs(aurocs[0] - aurocs[1]) / error)
    test = compare([cases_of(one, labels)], [cases_of(other, labels)], seed=0)
    back = compare([cases_of(other, labels)], [cases_of(one, labels)], seed=0)
    assert test.p == pytest.approx(wanted)
    assert (test.method, test.patients) == ("DeLong", 120)
    assert test.difference == pytest.approx(aurocs[0] - aurocs[1])
    assert (back.p, back.difference) == (
        pytest.approx(test.p),
        pytest.approx(-aurocs[0] + aurocs[1]),
    )


def test_a_row_of_several_models_is_their_mean() -> None:
    """The difference is that of means, and its variance that of the contrast."""
    labels, one, other = drawn(200, 0.8, 5)
    third = one + np.random.default_rng(7).normal(size=200)
    test = compare(
        [cases_of(one, labels), cases_of(third, labels)], [cases_of(other, labels)], seed=0
    )
    aurocs = [roc_auc_score(labels, scores) for scores in (one, third, other)]
    assert test.difference == pytest.approx((aurocs[0] + aurocs[1]) / 2 - aurocs[2])
    _, covariance = delong(np.stack([one, third, other]), labels == 1)
    contrast = np.array([0.5, 0.5, -1])
    error = np.sqrt(contrast @ covariance @ contrast)
    assert test.p == pytest.approx(2 * norm.sf(abs(test.difference or 0) / error))


def test_the_bootstrap_agrees_with_delong_where_both_apply() -> None:
    """A task of two classes without a positive one has nearly the same p from the draws."""
    labels, one, other = drawn(300, 0.0, 8)
    exact = compare([cases_of(one, labels)], [cases_of(other, labels)], seed=1)
    drawn_p = compare([cases_of(one, labels, None)], [cases_of(other, labels, None)], seed=1)
    assert drawn_p.method == "bootstrap"
    assert drawn_p.difference == pytest.approx(exact.difference)
    assert exact.p is not None
    assert 0.001 < exact.p < 0.5
    assert drawn_p.p == pytest.approx(exact.p, abs=0.03)


def test_of_equal_models_nothing_is_shown() -> None:
    """The same predictions have p = 1 by either test; p is never 0 by draws."""
    labels, one, _ = drawn(80, 0.0, 9)
    for positive in (1, None):
        same = compare([cases_of(one, labels, positive)], [cases_of(one, labels, positive)], seed=0)
        assert (same.difference, same.p) == (0.0, 1.0)
    best = labels * 2.0 - 1
    far = compare([cases_of(best, labels, None)], [cases_of(-best, labels, None)], seed=0)
    assert far.p == pytest.approx(2 / 2001)


def test_under_no_difference_p_is_uniform() -> None:
    """Of two equally good models, one comparison in twenty has p below 0.05."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        labels = np.arange(80) % 2
        signal = labels + rng.normal(size=80)
        one, other = (signal + rng.normal(size=80) for _ in range(2))
        found.append(compare([cases_of(one, labels)], [cases_of(other, labels)], seed=0).p)
    assert np.mean(np.array(found, float) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_other_patients_or_too_few_have_no_p() -> None:
    """Rows that were asked about other patients, or about four ill ones, are not tested."""
    labels, one, other = drawn(60, 0.3, 10)
    shifted = compare([cases_of(one, labels)], [cases_of(other, 1 - labels)], seed=0)
    assert (shifted.p, shifted.reason) == (None, "the rows were asked about other patients")
    rare = np.arange(60) < 4
    few = compare([cases_of(one, rare.astype(int))], [cases_of(other, rare.astype(int))], seed=0)
    assert few.p is None
    assert "fewer than 5" in few.reason


def test_holm_is_that_by_hand() -> None:
    """Holm 1979: the k-th smallest of n is multiplied by n - k + 1, and never falls."""
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.5})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0}
