"""Laws of how classes share the chance in their figures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from common import joint, metrics, metrics_wire
from common.errors import ReplyError
from common.intervals import intervals
from common.metrics import MetricState
from common.ranking import log_odds

Images = tuple[NDArray[Any], NDArray[Any]]
FIGURES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "auroc": (joint.influence_on_auroc, reference.roc_auc_score),
    "average_precision": (joint.influence_on_precision, reference.average_precision_score),
}


def images(n: int, k: int, seed: int) -> Images:
    """Return logits (n, k) and labels; what is common to all classes makes them vary together."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, k, n)
    logits = random.normal(size=(n, k)) + 1.2 * np.eye(k)[labels]
    return logits + 0.5 * random.normal(size=(n, 1)), labels


def state_of(part: Images) -> MetricState:
    logits, labels = part
    state = metrics.update(metrics.zero(logits.shape[1], None), logits, labels, None)
    return metrics.with_patients(metrics.with_joint(state, logits, labels), len(labels))


@pytest.mark.parametrize("figure", FIGURES)
def test_influence_is_the_derivative_of_scikit_learns_figure(figure: str) -> None:
    """An image that weighs a little more moves the weighted figure by its influence."""
    influence, figure_of = FIGURES[figure]
    logits, labels = images(40, 2, seed=1)
    odds, true, step = log_odds(logits, 1), labels == 1, 1e-6
    found = influence(odds, true)
    for image in range(40):
        weights = np.ones(40)
        weights[image] += step
        moved = figure_of(true, odds, sample_weight=weights) - figure_of(true, odds)
        assert found[image] == pytest.approx(moved / step, abs=1e-4)
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_correlations_are_those_of_influences() -> None:
    """Each is numpy's correlation of two classes' influences, to two digits, times the images."""
    logits, labels = images(150, 3, seed=2)
    found = joint.joint_of(logits, labels)
    influence = [joint.influence_on_auroc(log_odds(logits, c), labels == c) for c in range(3)]
    assert found[0, 0] / 150 == pytest.approx(np.corrcoef(influence), abs=0.00501)
    assert np.all(found[:, 1] == 150)
    assert np.array_equal(found, found.swapaxes(-1, -2))


def test_sites_weigh_as_their_images() -> None:
    """The correlations of merged states are the means of the sites', weighted by images."""
    parts = [images(60, 3, seed=3), images(180, 3, seed=4)]
    states = [state_of(part) for part in parts]
    pooled = joint.correlations(metrics.merge(states).joint)
    one, other = (joint.correlations(state.joint) for state in states)
    assert pooled == pytest.approx((60 * one + 180 * other) / 240)


def test_a_class_that_is_missing_says_nothing() -> None:
    """Its correlations count as 1 where no site knows them, and as the others' where one does."""
    logits, labels = images(80, 3, seed=5)
    without = joint.joint_of(logits[labels < 2], labels[labels < 2])
    assert np.all(without[:, :, 2] == 0)
    assert np.all(joint.correlations(without)[:, 2] == 1)
    other = joint.joint_of(*images(50, 3, seed=6))
    both = joint.correlations(without + other)
    assert both[:, 2] == pytest.approx(joint.correlations(other)[:, 2])


def test_what_travels_is_checked() -> None:
    """Sums that are no correlations of so many images are refused, and none are needed."""
    state = state_of(images(50, 3, seed=7))
    arrays = metrics_wire.to_arrays(state)
    assert np.array_equal(metrics_wire.from_arrays(arrays, 3, None).joint, state.joint)
    bare = {name: array for name, array in arrays.items() if name != "joint"}
    assert not metrics_wire.from_arrays(bare, 3, None).joint.any()
    assert "joint" not in metrics_wire.to_arrays(metrics.untold(state))
    for index, value in (((0, 0, 0, 1), 3.0), ((0, 1, 0, 0), 60.0), ((0, 0, 1, 1), 1.0)):
        wrong = state.joint.copy()
        wrong[index] = value
        with pytest.raises(ReplyError, match="joint: no correlations"):
            metrics_wire.from_arrays(arrays | {"joint": wrong}, 3, None)
    with pytest.raises(ReplyError, match="joint: not finite"):
        metrics_wire.from_arrays(arrays | {"joint": state.joint * np.nan}, 3, None)


@pytest.mark.parametrize("sizes", [(150, 150, 150), (40, 100, 400)])
def test_a_mean_over_classes_has_the_width_of_a_bootstrap_over_the_images(
    sizes: tuple[int, ...],
) -> None:
    """Pooled intervals of AUROC and average precision are as wide as scikit-learn's to 12 %."""
    parts = [images(n, 3, seed) for seed, n in enumerate(sizes)]
    logits, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    odds = np.stack([log_odds(logits, c) for c in range(3)], axis=1)
    random, drawn = np.random.default_rng(0), []
    for _ in range(500):
        pick = random.integers(0, len(labels), len(labels))
        truth = np.eye(3)[labels[pick]]
        drawn.append([of(truth, odds[pick], average="macro") for _, of in FIGURES.values()])
    found = intervals(metrics.merge(map(state_of, parts)), None, seed=1)
    for values, name in zip(np.transpose(drawn), FIGURES, strict=True):
        ends = found[name]
        assert ends is not None
        low, high = np.quantile(values, (0.025, 0.975))
        assert (ends[1] - ends[0]) / (high - low) == pytest.approx(1, abs=0.12)
