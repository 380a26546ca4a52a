"""Laws of metrics of images that count several times."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as reference

from client.weighted_metrics import NAMES, Cases, metrics_of
from common import metrics


def made(n: int, classes: int, positive: int | None, seed: int) -> Cases:
    """Scores of which each stands there four times, so that ranks are shared."""
    rng = np.random.default_rng(seed)
    logits = np.tile(rng.normal(size=(n // 4, classes)), (4, 1))
    return Cases(logits, rng.integers(0, classes, n), rng.integers(0, n // 2, n), positive)


def copied(cases: Cases, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(len(counts)), counts)
    return cases.logits[rows], cases.labels[rows]


def by_reference(logits: np.ndarray, labels: np.ndarray, positive: int | None) -> dict[str, float]:
    """Return what scikit-learn says of copies of the images."""
    share, said = softmax(logits, axis=1), logits.argmax(axis=1)
    k = logits.shape[1]
    truth = np.eye(k)[labels]
    asked = range(k) if positive is None else [positive]
    average = {"average": "macro"} if positive is None else {"pos_label": positive}
    one_hot = {c: (labels == c, share[:, c]) for c in asked}
    return {
        "accuracy": reference.accuracy_score(labels, said),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, said),
        "precision": reference.precision_score(labels, said, **average),
        "sensitivity": reference.recall_score(labels, said, **average),
        "specificity": np.mean(
            [reference.recall_score(labels != c, said != c, pos_label=True) for c in asked]
        ),
        "f1": reference.f1_score(labels, said, **average),
        "auroc": np.mean([reference.roc_auc_score(*pair) for pair in one_hot.values()]),
        "average_precision": np.mean(
            [reference.average_precision_score(*pair) for pair in one_hot.values()]
        ),
        "brier": np.mean(((share - truth)[:, list(asked)] ** 2).sum(axis=1)),
        "loss": reference.log_loss(labels, share, labels=range(k)),
    }


@pytest.mark.parametrize(("classes", "positive"), [(2, 1), (2, 0), (4, None)])
def test_weights_do_what_copies_do(classes: int, positive: int | None) -> None:
    """Each draw's metrics are scikit-learn's of images that stand there as often as they count."""
    cases = made(120, classes, positive, seed=classes)
    counts = np.random.default_rng(1).integers(0, 4, (8, 120))
    found = metrics_of(cases, counts)
    for draw, row in enumerate(counts):
        for name, value in by_reference(*copied(cases, row), positive).items():
            assert found[name][draw] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(("classes", "positive"), [(2, 1), (3, None)])
def test_they_are_the_federations_metrics(classes: int, positive: int | None) -> None:
    """With every image once they are those of the state that adds, ranks within its bound."""
    cases = made(300, classes, positive, seed=5)
    state = metrics.update(metrics.zero(classes, positive), *cases[:2], positive)
    pooled = metrics.compute(state, positive)
    found = metrics_of(cases, np.ones((1, 300)))
    for name in NAMES:
        slack = 0.01 if name in {"auroc", "average_precision"} else 1e-9
        assert found[name][0] == pytest.approx(pooled[name], abs=slack), name


def test_what_a_draw_leaves_undefined_is_no_number() -> None:
    """Without a positive image there is no sensitivity and no AUROC; without any, nothing."""
    cases = made(20, 2, 1, seed=3)
    counts = np.stack([(cases.labels == 0).astype(int), np.zeros(20, int)])
    found = metrics_of(cases, counts)
    assert np.isnan([found["sensitivity"][0], found["auroc"][0]]).all()
    assert not np.isnan([found["specificity"][0], found["loss"][0]]).any()
    assert np.isnan([values[1] for values in found.values()]).all()
