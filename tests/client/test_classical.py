"""Laws of the classifiers on features that are computed once."""

import warnings
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from client.classical import FLOOR, Classifier, fit_and_ask

CLASSIFIERS = get_args(Classifier)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def made(
    n: int, classes: int, *, apart: float = 1.0, features: int = 12, seed: int = 0
) -> tuple[Floats, Ints]:
    """Return features whose first ones are larger by ``apart`` where the class is theirs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(n, features)) * 3 + 5
    x[np.arange(n), labels] += 3 * apart
    return x, labels


def standardised(x: Floats) -> Floats:
    """Return features by the mean and deviation of the first 60."""
    z: Floats = (x - x[:60].mean(axis=0)) / x[:60].std(axis=0)
    return z


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_rows_are_logarithms_of_probabilities(classifier: Any, classes: int) -> None:
    """Finite, and their exponentials sum to one."""
    x, labels = made(100, classes)
    log_p = fit_and_ask(x[:60], labels[:60], x[60:], classifier, classes=classes)
    assert log_p.shape == (40, classes)
    assert np.isfinite(log_p).all()
    assert np.exp(log_p).sum(axis=1) == pytest.approx(np.ones(40))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_what_can_be_separated_is(classifier: Any, classes: int) -> None:
    """Classes far apart have AUROC 1 and accuracy 1 on images that were not fitted."""
    x, labels = made(160, classes, apart=8.0)
    log_p = fit_and_ask(x[:80], labels[:80], x[80:], classifier, classes=classes)
    assert (log_p.argmax(axis=1) == labels[80:]).all()
    for k in range(classes):
        assert roc_auc_score(labels[80:] == k, log_p[:, k]) == 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_they_are_scikit_learns(classes: int, *, balanced: bool) -> None:
    """Probabilities of logistic regression and forest, and what support vectors decide."""
    x, labels = made(100, classes)
    labels[:60][labels[:60] == 1] = np.where(np.arange((labels[:60] == 1).sum()) % 3, 0, 1)
    z, y, weight = standardised(x), labels[:60], "balanced" if balanced else None

    def found(classifier: Classifier) -> Floats:
        return fit_and_ask(
            x[:60], y, x[60:], classifier, classes=classes, balanced=balanced, seed=3
        )

    logistic = LogisticRegression(max_iter=5000, class_weight=weight).fit(z[:60], y)
    assert np.exp(found("logistic")) == pytest.approx(logistic.predict_proba(z[60:]), abs=1e-9)
    forest = RandomForestClassifier(500, class_weight=weight, random_state=3).fit(z[:60], y)
    assert np.exp(found("forest")) == pytest.approx(forest.predict_proba(z[60:]), abs=1e-5)
    svm = SVC(class_weight=weight, break_ties=True).fit(z[:60], y)
    assert (found("svm").argmax(axis=1) == svm.predict(z[60:])).all()
    if classes == 2:
        log_p = found("svm")
        assert log_p[:, 1] - log_p[:, 0] == pytest.approx(svm.decision_function(z[60:]))


def test_the_extreme_learning_machine_is_ridge_on_random_units() -> None:
    """Its margin is that of ridge regression on sigmoids of sums that the seed alone fixes."""
    x, labels = made(100, 2)
    log_p = fit_and_ask(x[:60], labels[:60], x[60:], "elm", classes=2, seed=9)
    rng = np.random.default_rng(9)
    weights = rng.uniform(-1, 1, (12, 500)) * np.sqrt(3 / 12)
    hidden = 1 / (1 + np.exp(-(standardised(x) @ weights + rng.uniform(-1, 1, 500))))
    ridge = Ridge(alpha=1.0).fit(hidden[:60], 2 * labels[:60] - 1)
    assert log_p[:, 1] - log_p[:, 0] == pytest.approx(ridge.predict(hidden[60:]), abs=1e-6)


@pytest.mark.parametrize("classifier", ["svm", "forest", "elm"])
def test_what_no_line_separates_is_learned(classifier: Any) -> None:
    """Whether two numbers have the same sign, which logistic regression cannot tell."""
    x = np.random.default_rng(0).normal(size=(400, 2))
    labels = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    log_p = fit_and_ask(x[:300], labels[:300], x[300:], classifier, classes=2)
    assert roc_auc_score(labels[300:], log_p[:, 1]) > 0.95


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_class_that_the_site_lacks_has_the_floor(classifier: Any) -> None:
    """The others are as if it were no class of the task."""
    x, labels = made(100, 2)
    two = fit_and_ask(x[:60], labels[:60], x[60:], classifier, classes=2)
    four = fit_and_ask(x[:60], 2 * labels[:60] + 1, x[60:], classifier, classes=4)
    assert np.exp(four[:, [0, 2]]) == pytest.approx(np.full((40, 2), FLOOR), rel=1e-5)
    assert four[:, 3] - four[:, 1] == pytest.approx(two[:, 1] - two[:, 0], abs=1e-9)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_single_class_is_all_that_is_said(classifier: Any) -> None:
    """A site with images of one class says that one of everything."""
    x, _ = made(20, 2)
    log_p = fit_and_ask(x[:9], np.full(9, 1), x[9:], classifier, classes=3)
    wanted = np.tile([FLOOR, 1, FLOOR], (11, 1)) / (1 + 2 * FLOOR)
    assert np.exp(log_p) == pytest.approx(wanted)
    assert fit_and_ask(x, np.arange(20) % 2, x[:0], classifier, classes=2).shape == (0, 2)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_the_seed_fixes_every_bit(classifier: Any) -> None:
    """The same seed gives the same numbers; forest and hidden layer change with another."""
    x, labels = made(60, 3)

    def said(seed: int) -> Floats:
        return fit_and_ask(x[:40], labels[:40], x[40:], classifier, classes=3, seed=seed)

    assert np.array_equal(said(2**62), said(2**62))
    assert np.array_equal(said(1), said(2)) == (classifier in ("logistic", "svm"))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_scale_and_constant_features_do_not_matter(classifier: Any) -> None:
    """Features are standardised; one that is the same in all images divides by no zero."""
    x, labels = made(60, 2)
    other = np.hstack([x * np.logspace(-3, 3, 12) - 7, np.full((60, 1), 4.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_p = fit_and_ask(other[:40], labels[:40], other[40:], classifier, classes=2)
    assert np.isfinite(log_p).all()
    if classifier == "logistic":
        plain = fit_and_ask(x[:40], labels[:40], x[40:], classifier, classes=2)
        assert log_p == pytest.approx(plain, abs=1e-3)
