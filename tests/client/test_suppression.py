"""Laws of what a site keeps to itself; the reference for AUROC is scikit-learn."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from client.config import Limits
from client.suppression import Behind, behind_of, stated, suppress, withheld
from common import metrics, metrics_wire, ranking
from common.arrays import Array
from common.messages import Order, Reply
from common.metrics import MetricState
from common.statements import Training
from common.study import Study

Key = tuple[str, str]
TEST = ("ct", "test")


@pytest.fixture
def order(make_study: Callable[..., Study]) -> Order:
    return Order("train", make_study(("ct", "mr")), 2, {}, "0" * 64, None)


def measured(
    labels: Sequence[int], patients: Sequence[str], *, n_classes: int = 2, seed: int = 0
) -> tuple[dict[str, Array], Behind, NDArray[Any]]:
    """Return a state of random logits, who stands behind it, and the logits."""
    positive, truth = 1 if n_classes == 2 else None, np.array(labels, int)
    logits = np.random.default_rng(seed).normal(size=(len(labels), n_classes))
    logits += 1.5 * np.eye(n_classes)[truth]
    state = metrics.update(metrics.zero(n_classes, positive), logits, truth, positive)
    arrays = metrics_wire.to_arrays(metrics.with_patients(state, len(set(patients))))
    return arrays, behind_of(labels, patients, n_classes), logits


def people(*counts: int, name: str = "p") -> tuple[list[int], list[str]]:
    """Return labels and patients with so many patients of each class, one image each."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return labels, [f"{name}{number}" for number in range(len(labels))]


def left(
    parts: Mapping[Key, tuple[Any, ...]], order: Order, limits: Limits
) -> Mapping[Key, Mapping[str, Array]]:
    """Return the metrics that stay in a reply with these states."""
    reply = Reply("a", "0" * 64, 2, metrics={key: part[0] for key, part in parts.items()})
    return suppress(reply, order, limits, {key: part[1] for key, part in parts.items()}).metrics


def read(arrays: Mapping[str, Array], n_classes: int = 2) -> MetricState:
    return metrics_wire.from_arrays(arrays, n_classes, 1 if n_classes == 2 else None)


@pytest.mark.parametrize("counts", [(4, 30), (30, 4), (30, 0), (0, 0)])
def test_a_class_of_few_patients_takes_its_state_with_it(
    counts: tuple[int, int], order: Order
) -> None:
    """With fewer than the minimum in one class, no figure of that split leaves, and others do."""
    many = measured(*people(5, 5, name="q"))
    parts = {TEST: measured(*people(*counts)), ("ct", "validation"): many}
    kept = left(parts, order, Limits())
    assert set(kept) == {("ct", "validation")}
    assert all(np.array_equal(kept["ct", "validation"][name], many[0][name]) for name in many[0])


def test_images_do_not_make_up_for_patients(order: Order) -> None:
    """Four patients with ten images each are four."""
    labels, patients = [0] * 20 + [1] * 40, [f"n{i}" for i in range(20)]
    patients += [f"p{i % 4}" for i in range(40)]
    assert left({TEST: measured(labels, patients)}, order, Limits()) == {}
    assert TEST in left({TEST: measured(labels, patients)}, order, Limits(minimum_patients=4))


def test_one_is_no_minimum(order: Order) -> None:
    """A minimum of one suppresses nothing, not even where a class has nobody."""
    parts = {TEST: measured(*people(1, 0)), ("mr", "test"): measured(*people(0, 1, 0), n_classes=3)}
    assert set(left(parts, order, Limits(minimum_patients=1))) == set(parts)


def test_nothing_is_had_by_subtraction_between_tasks(order: Order) -> None:
    """Of two tasks, one inside the other but for few patients, only one is reported."""
    ct = measured(*people(20, 20, name="ct"))
    for lacking, both in ((0, True), (1, False), (4, False), (5, True)):
        labels = [0] * 9 + [1] * (20 - lacking) + [2] * 9
        others = [f"other{i}" for i in range(18)]
        patients = others[:9] + [f"ct{i}" for i in range(lacking, 20)] + others[9:]
        mr = measured(labels, patients, n_classes=3)
        kept = left({TEST: ct, ("mr", "test"): mr}, order, Limits())
        assert set(kept) == ({TEST, ("mr", "test")} if both else {TEST})


def test_all_patients_of_a_task_count_as_one_number_too(order: Order) -> None:
    """Two tasks of the same patients but for one differ by that one in their totals."""
    ct = measured([0, 1] * 20, [f"p{i}" for i in range(40)])
    mr = measured([0, 1, 2] * 13, [f"p{i}" for i in range(39)], n_classes=3)
    assert set(left({TEST: ct, ("mr", "test"): mr}, order, Limits())) == {TEST}
    elsewhere = measured([0, 1, 2] * 13, [f"q{i}" for i in range(39)], n_classes=3)
    assert len(left({TEST: ct, ("mr", "test"): elsewhere}, order, Limits())) == 2


def test_what_is_no_state_is_left_for_the_door(order: Order) -> None:
    """Arrays that are no state, and states nobody knows of, stay in the reply as they are."""
    good, behind, _ = measured(*people(9, 9))
    odd: Any = {TEST: {**good, "pixels": np.zeros(3)}, ("pet", "test"): good, ("ct", "train"): 7}
    reply = Reply("a", "0" * 64, 2, metrics=odd)
    found = suppress(reply, order, Limits(), {TEST: behind, ("pet", "test"): behind})
    assert found.metrics == odd


def test_suppression_is_done_once(order: Order) -> None:
    """A reply that has been through it comes out as it went in."""
    limits = Limits(histogram_patients=4)
    parts = {
        TEST: measured(*people(30, 30)),
        ("mr", "test"): measured(*people(4, 9, 9), n_classes=3),
    }
    once = left(parts, order, limits)
    again = left({key: (once[key], parts[key][1]) for key in once}, order, limits)
    assert set(again) == set(once) == {TEST}
    assert all(np.array_equal(again[TEST][name], once[TEST][name]) for name in once[TEST])


# Histograms


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(8, 60), st.integers(1, 6)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    n_classes=st.integers(2, 3),
)
def test_auroc_stays_within_its_bound(
    sizes: list[tuple[int, int]], seed: int, n_classes: int
) -> None:
    """Merged bins or not, at one site or pooled over several, the true AUROC is in the bound."""
    study = Study.parse(STUDY)
    order = Order("evaluate", study, 1, {}, "", None)
    name = "ct" if n_classes == 2 else "mr"
    rng = np.random.default_rng(seed)
    states, scores, truth = [], [], []
    for site, (patients, k) in enumerate(sizes):
        who = [f"{p}" for p in range(patients) for _ in range(1 + int(rng.integers(3)))]
        labels = rng.integers(0, n_classes, len(who))
        part = measured(labels.tolist(), who, n_classes=n_classes, seed=seed + site)
        limits = Limits(minimum_patients=1, histogram_patients=k)
        kept = left({(name, "test"): part}, order, limits)
        if kept:
            states.append(read(kept[name, "test"], n_classes))
            scores.append(part[2])
            truth.append(labels)
    if not states:
        return
    logits, labels = np.concatenate(scores), np.concatenate(truth)
    values = metrics.compute(metrics.merge(states), 1 if n_classes == 2 else None)
    if n_classes > 2 and len(set(labels)) < n_classes:
        return
    if len(set(labels)) < 2:
        assert values["auroc"] is None
        return
    if n_classes == 2:
        expected = reference.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    else:
        odds = [logits[:, c] - np.logaddexp.reduce(np.delete(logits, c, 1), 1) for c in range(3)]
        truth_of = np.eye(3)[labels]
        areas = [reference.roc_auc_score(truth_of[:, c], odds[c]) for c in range(3)]
        expected = float(np.mean(areas))
    assert values["auroc"] is not None
    assert values["auroc_bound"] is not None
    assert abs(values["auroc"] - expected) <= values["auroc_bound"] + 1e-12


STUDY: dict[str, Any] = {
    "name": "study",
    "rounds": 1,
    "backbone": {"name": "test_resnet", "weights": "none"},
    "tasks": {
        "ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"},
        "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
    },
}


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_each_bin_in_use_holds_k_patients(k: int, order: Order) -> None:
    """Whichever images lie between two ends of merged bins, k patients have them by label."""
    rng = np.random.default_rng(k)
    patients = [f"p{p}" for p in range(300) for _ in range(1 + p % 4)]
    labels = rng.integers(0, 2, len(patients))
    part = measured(labels.tolist(), patients, seed=k)
    state = read(left({TEST: part}, order, Limits(histogram_patients=k))[TEST])
    full = read(part[0])
    low, high = (np.flatnonzero(h[0].sum(axis=0)) for h in (state.histogram, state.histogram_upper))
    assert len(low) == len(high) > 1
    assert all(end < begin for end, begin in zip(high, low[1:], strict=False))  # they do not meet
    place = np.arcsinh(np.clip(part[2][:, 1] - part[2][:, 0], -1e4, 1e4) / ranking.RESOLUTION)
    edge = np.arcsinh(ranking.LOGIT_LIMIT / ranking.RESOLUTION)
    bins = np.digitize(place, np.linspace(-edge, edge, ranking.BINS + 1)) - 1
    for begin, end in zip(low, high, strict=True):
        for label in (0, 1):
            inside = (bins >= begin) & (bins <= end) & (labels == label)
            assert state.histogram[0, label, begin] == inside.sum()
            assert inside.sum() == full.histogram[0, label, begin : end + 1].sum()
            who = {patients[i] for i in np.flatnonzero(inside)}
            assert len(who) == 0 or len(who) >= k
    assert state.histogram.sum() == state.histogram_upper.sum() == full.histogram.sum()
    counts = state.calibration[:, 0]
    assert np.all((counts == 0) | (counts >= k))


def test_merging_never_shrinks_what_is_uncertain(order: Order) -> None:
    """The bound grows with k, and the calibration error does not; counted figures stay."""
    part = measured(*people(150, 150), seed=4)
    found = [
        metrics.compute(read(left({TEST: part}, order, Limits(histogram_patients=k))[TEST]), 1)
        for k in (1, 2, 5, 20, 150)
    ]
    for one, other in pairwise(found):
        assert one["auroc_bound"] < other["auroc_bound"]  # type: ignore[operator]
        for name in ("accuracy", "sensitivity", "brier", "loss"):
            assert one[name] == other[name]
    errors = [values["calibration_error"] for values in found]
    assert errors[0] >= max(errors[1:])  # type: ignore[type-var, operator]
    assert found[-1]["auroc"] == 0.5  # everybody in one bin
    assert found[-1]["auroc_bound"] == 0.5


def test_where_bins_are_merged_no_sums_leave_that_scores_could_be_solved_from(
    order: Order,
) -> None:
    """Neither squares nor losses at other temperatures are sent, and a state with them stays."""
    part, limits = measured(*people(30, 30)), Limits(histogram_patients=5)
    kept = left({TEST: part}, order, limits)[TEST]
    state, whole = read(kept), read(part[0])
    assert part[0].keys() - kept.keys() == {"squares", "scaled_loss"}
    assert (state.loss_sum, state.brier_sum) == (whole.loss_sum, whole.brier_sum)
    assert withheld({TEST: state}, order, limits, {TEST: part[1]}) == {}
    telling = replace(state, squares=whole.squares, scaled_loss=whole.scaled_loss)
    assert TEST in withheld({TEST: telling}, order, limits, {TEST: part[1]})


def test_bins_as_they_are_need_no_merging(order: Order) -> None:
    """With k of one the state goes as it is, to the byte."""
    part = measured(*people(30, 30))
    kept = left({TEST: part}, order, Limits())[TEST]
    assert set(kept) == set(part[0])
    assert all(np.array_equal(kept[name], part[0][name]) for name in kept)


def test_too_few_for_one_bin_leave_none(order: Order) -> None:
    """Where a label has fewer than k patients in all, its state stays here."""
    part = measured(*people(30, 7))
    assert TEST in left({TEST: part}, order, Limits(histogram_patients=7))
    assert left({TEST: part}, order, Limits(histogram_patients=8)) == {}


# Numbers


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, 0), (1, 5), (2, 5), (5, 5), (7, 5), (8, 10), (12, 10), (13, 15), (1000, 1000)],
)
def test_rounded_numbers_are_fives(count: int, said: int) -> None:
    """The nearest multiple of five is said, none stays none; exact numbers are said exactly."""
    assert stated(count, Limits(patients="rounded")) == said
    assert stated(count, Limits()) == count


def test_steps_are_rounded_with_the_images_that_they_count(order: Order) -> None:
    """Steps of a training are images in batches, and stated like them; nothing else changes."""
    training = Training(steps=13, loss=0.5, seconds=2.0, evaluation_seconds=1.0)
    reply = Reply("a", "0" * 64, 2, training=training, weights={"shared": 3.0})
    assert suppress(reply, order, Limits(), {}) == reply
    rounded = training.model_copy(update={"steps": 15})
    found = suppress(reply, order, Limits(patients="rounded"), {})
    assert found == reply._replace(training=rounded)


def test_who_stands_behind_is_counted_by_class_and_patient() -> None:
    """A patient with images of two classes counts in both."""
    found = behind_of([0, 1, 1, 2, 2, 2], ["a", "a", "b", "b", "b", "c"], 4)
    assert found.classes == (Counter("a"), Counter("ab"), Counter("bbc"), Counter())
