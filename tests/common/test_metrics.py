"""Laws of the metric states; the reference is scikit-learn on the pooled scores."""

from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from common import metrics, ranking
from common.errors import ReplyError
from common.metrics import MetricState, compute, merge, told, untold, update, zero
from common.metrics_wire import from_arrays, to_arrays
from common.temperature import AT_ONE

Batch = tuple[NDArray[Any], NDArray[Any]]
Wire = dict[str, NDArray[Any]]


def state_of(batch: Batch, positive: int | None, n_patients: int = 0) -> MetricState:
    logits, labels = batch
    state = update(zero(logits.shape[1], positive), logits, labels, positive)
    return metrics.with_patients(state, n_patients)


def two_class(
    n: int,
    *,
    seed: int,
    prevalence: float = 0.4,
    distance: float = 1.5,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Batch:
    """Unit normals at this distance; their log-odds are right but for scale and shift."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < prevalence).astype(np.int64)
    x = random.normal(distance * (labels - 0.5))
    log_odds = scale * (distance * x + np.log(prevalence / (1 - prevalence))) + shift
    base = random.normal(size=n)
    return np.stack([base, base + log_odds], axis=1), labels


def multi_class(n: int, *, seed: int, n_classes: int = 4) -> Batch:
    random, share = np.random.default_rng(seed), np.arange(1, n_classes + 1)
    labels = random.choice(n_classes, n, p=share / share.sum())
    return 2 * random.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[labels], labels


def joined(batches: list[Batch]) -> Batch:
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def probabilities(logits: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def assert_same(one: MetricState, other: MetricState, tolerance: float = 0.0) -> None:
    for field in fields(MetricState):
        a, b = np.asarray(getattr(one, field.name)), np.asarray(getattr(other, field.name))
        assert a.shape == b.shape
        if a.dtype.kind == "i":
            assert np.array_equal(a, b), field.name
        else:
            assert np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True), field.name


HARD: dict[str, list[Batch]] = {
    "calibrated": [two_class(400, seed=s) for s in range(5)],
    "tiny sites": [two_class(40, seed=s) for s in range(4)],
    "prevalence": [
        two_class(400, seed=s, prevalence=p) for s, p in enumerate((0.05, 0.2, 0.35, 0.5, 0.6))
    ],
    "shift": [two_class(400, seed=s, shift=d) for s, d in enumerate((-2, -1, 0, 1, 2))],
    "over-confident": [two_class(400, seed=s, scale=8) for s in range(5)],
    "barely trained": [two_class(100, seed=s, scale=0.03) for s in range(4)],
    "rare and shifted": [two_class(400, seed=s, prevalence=0.02, shift=-6) for s in range(5)],
    "sharp": [two_class(400, seed=s, distance=0.7, scale=20) for s in range(5)],
}


@pytest.mark.parametrize("case", HARD)
def test_auroc_is_near_and_within_its_bound(case: str) -> None:
    """Merged over sites, AUROC is that of the pooled log-odds to 0.003 and to its own bound."""
    logits, labels = joined(HARD[case])
    values = compute(merge([state_of(batch, 1) for batch in HARD[case]]), 1)
    auroc, bound = values["auroc"], values["auroc_bound"]
    assert auroc is not None
    assert bound is not None
    error = abs(auroc - reference.roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert error <= bound + 1e-12
    assert error <= 0.003


@pytest.mark.parametrize("scale", [20, 200])
@pytest.mark.parametrize("distance", [0.7, 1.0, 1.5, 3.0])
def test_auroc_of_a_network_that_is_sure_is_near(distance: float, scale: float) -> None:
    """Log-odds of hundreds and thousands cost AUROC no more than 0.003 either."""
    logits, labels = two_class(2000, seed=21, distance=distance, scale=scale)
    log_odds = logits[:, 1] - logits[:, 0]
    values = compute(state_of((logits, labels), 1), 1)
    assert values["auroc"] is not None
    assert values["auroc_bound"] is not None
    error = abs(values["auroc"] - reference.roc_auc_score(labels, log_odds))
    assert error <= min(values["auroc_bound"], 0.003)


@pytest.mark.parametrize("distance", [1.0, 3.0])
def test_auroc_keeps_its_bound_where_most_log_odds_are_beyond_the_limit(distance: float) -> None:
    """However many log-odds share the outermost bins, the error stays within the bound."""
    logits, labels = two_class(2000, seed=21, distance=distance, scale=8000)
    log_odds = logits[:, 1] - logits[:, 0]
    assert np.mean(np.abs(log_odds) > ranking.LOGIT_LIMIT) > 0.2
    values = compute(state_of((logits, labels), 1), 1)
    assert values["auroc"] is not None
    assert values["auroc_bound"] is not None
    error = abs(values["auroc"] - reference.roc_auc_score(labels, log_odds))
    assert error <= values["auroc_bound"] <= 0.04


@pytest.mark.parametrize("case", ["calibrated", "prevalence", "shift", "over-confident"])
def test_average_precision_is_near(case: str) -> None:
    """Merged over sites, average precision is that of the pooled log-odds to 0.01."""
    logits, labels = joined(HARD[case])
    value = compute(merge([state_of(batch, 1) for batch in HARD[case]]), 1)["average_precision"]
    expected = reference.average_precision_score(labels, logits[:, 1] - logits[:, 0])
    assert value == pytest.approx(expected, abs=0.01)


def test_ranking_metrics_are_exact_on_binned_scores() -> None:
    """On scores that are bin centres, AUROC and average precision are scikit-learn's exactly."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    log_odds = (random.integers(-20, 20, 300) + 8 * labels + 0.5) * (60 / ranking.BINS)
    logits = np.stack([np.zeros(300), log_odds], axis=1)
    values = compute(state_of((logits, labels), 1), 1)
    assert values["auroc"] == pytest.approx(reference.roc_auc_score(labels, log_odds), abs=1e-12)
    expected = reference.average_precision_score(labels, log_odds)
    assert values["average_precision"] == pytest.approx(expected, abs=1e-12)


def test_multi_class_ranking_is_macro_one_against_rest() -> None:
    """AUROC and average precision are means over the classes, each against the rest."""
    logits, labels = multi_class(600, seed=1)
    values, odds, truth = compute(state_of((logits, labels), None), None), [], np.eye(4)[labels]
    for k in range(4):
        p = probabilities(logits)[:, k]
        odds.append(np.log(p) - np.log1p(-p))
    scores = np.stack(odds, axis=1)
    expected = reference.roc_auc_score(truth, scores, average="macro")
    assert values["auroc"] == pytest.approx(expected, abs=0.003)
    assert values["auroc_bound"] is not None
    assert abs(values["auroc"] - expected) <= values["auroc_bound"]
    expected = reference.average_precision_score(truth, scores, average="macro")
    assert values["average_precision"] == pytest.approx(expected, abs=0.01)


def test_a_two_class_task_without_positive_class_is_macro_too() -> None:
    """With no positive class both classes count, and their AUROCs are one number."""
    batch = two_class(300, seed=3)
    both, one = compute(state_of(batch, None), None), compute(state_of(batch, 1), 1)
    assert both["auroc"] == pytest.approx(one["auroc"], abs=1e-3)
    assert both["sensitivity"] == both["balanced_accuracy"] == one["balanced_accuracy"]


@pytest.mark.parametrize("positive", [0, 1])
def test_counted_metrics_of_the_positive_class(positive: int) -> None:
    """Counted metrics of a two-class task are scikit-learn's for the positive class."""
    logits, labels = two_class(500, seed=4)
    predicted, values = (
        logits.argmax(axis=1),
        compute(state_of((logits, labels), positive), positive),
    )
    recall = reference.recall_score
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "precision": reference.precision_score(labels, predicted, pos_label=positive),
        "sensitivity": recall(labels, predicted, pos_label=positive),
        "specificity": recall(labels, predicted, pos_label=1 - positive),
        "f1": reference.f1_score(labels, predicted, pos_label=positive),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-15)


def test_counted_metrics_of_many_classes() -> None:
    """Counted metrics of a multi-class task are scikit-learn's macro averages."""
    logits, labels = multi_class(500, seed=5)
    predicted, values = logits.argmax(axis=1), compute(state_of((logits, labels), None), None)
    confusion = reference.multilabel_confusion_matrix(labels, predicted)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "precision": reference.precision_score(labels, predicted, average="macro"),
        "sensitivity": reference.recall_score(labels, predicted, average="macro"),
        "specificity": (confusion[:, 0, 0] / confusion[:, 0].sum(axis=1)).mean(),
        "f1": reference.f1_score(labels, predicted, average="macro"),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-15)


def test_macro_averages_leave_out_what_is_undefined() -> None:
    """A class that is neither present nor predicted changes no macro average."""
    logits, labels = multi_class(300, seed=6, n_classes=3)
    wider = np.concatenate([logits, np.full((300, 1), -50.0)], axis=1)
    three, four = (compute(state_of((x, labels), None), None) for x in (logits, wider))
    for name in ("precision", "sensitivity", "f1", "balanced_accuracy", "auroc"):
        assert four[name] == pytest.approx(three[name], abs=1e-12), name


def test_confusion_counts_are_exact() -> None:
    """The confusion matrix is scikit-learn's, count by count."""
    logits, labels = multi_class(400, seed=7)
    expected = reference.confusion_matrix(labels, logits.argmax(axis=1))
    assert np.array_equal(state_of((logits, labels), None).confusion, expected)


def test_brier_and_loss_of_a_positive_class() -> None:
    """Brier score and loss of a two-class task are scikit-learn's to 1e-9."""
    logits, labels = two_class(500, seed=8)
    values, p = compute(state_of((logits, labels), 1), 1), probabilities(logits)
    assert values["brier"] == pytest.approx(reference.brier_score_loss(labels, p[:, 1]), abs=1e-9)
    assert values["loss"] == pytest.approx(reference.log_loss(labels, p), abs=1e-9)


def test_brier_and_loss_of_many_classes() -> None:
    """Brier score (summed over the classes) and loss are scikit-learn's to 1e-9."""
    logits, labels = multi_class(500, seed=9)
    values, p = compute(state_of((logits, labels), None), None), probabilities(logits)
    expected = reference.brier_score_loss(labels, p, scale_by_half=False)
    assert values["brier"] == pytest.approx(expected, abs=1e-9)
    assert values["loss"] == pytest.approx(reference.log_loss(labels, p), abs=1e-9)


def test_calibration_error_by_hand() -> None:
    """The calibration error is the mean gap of accuracy and confidence, weighted by the bin."""
    logits, labels = multi_class(500, seed=10)
    p = probabilities(logits)
    confidence, correct, expected = p.max(axis=1), p.argmax(axis=1) == labels, 0.0
    for lower in range(15):
        inside = (confidence > lower / 15) & (confidence <= (lower + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    value = compute(state_of((logits, labels), None), None)["calibration_error"]
    assert value == pytest.approx(expected, abs=1e-12)


def test_float32_logits_count_as_they_are() -> None:
    """Half and single precision logits give the state of the same numbers in double."""
    logits, labels = two_class(200, seed=11)
    for kind in (np.float16, np.float32):
        narrow = logits.astype(kind)
        assert_same(state_of((narrow, labels), 1), state_of((narrow.astype(np.float64), labels), 1))


@pytest.mark.parametrize("positive", [1, None])
def test_extreme_logits_are_safe(positive: int | None) -> None:
    """Logits of 1e4 and of float32's maximum give finite metrics and a state that travels."""
    high = float(np.finfo(np.float32).max)
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [high, -high], [0.0, 0.0]])
    state = state_of((logits, np.array([0, 1, 1, 1, 0])), positive)
    values = compute(state, positive)
    assert all(value is not None and np.isfinite(value) for value in values.values())
    assert values["accuracy"] == pytest.approx(3 / 5)
    assert_same(from_arrays(to_arrays(state), 2, positive), state)


def test_a_single_class_has_no_auroc() -> None:
    """With one class only, what needs the other is None and nothing is NaN."""
    logits, _ = two_class(50, seed=12)
    negatives = compute(state_of((logits, np.zeros(50, np.int64)), 1), 1)
    undefined = {name for name, value in negatives.items() if value is None}
    assert undefined == {"sensitivity", "auroc", "auroc_bound", "average_precision"}
    positives = compute(state_of((logits, np.ones(50, np.int64)), 1), 1)
    undefined = {name for name, value in positives.items() if value is None}
    assert undefined == {"specificity", "auroc", "auroc_bound"}


@pytest.mark.parametrize("positive", [1, None])
def test_no_images_have_no_metrics(positive: int | None) -> None:
    """Every metric of no images is None, also after an empty batch and after the wire."""
    empty = state_of((np.zeros((0, 2)), np.zeros(0, np.int64)), positive)
    assert_same(from_arrays(to_arrays(empty), 2, positive), zero(2, positive))
    assert compute(empty, positive) == dict.fromkeys(metrics.METRICS)


def test_metrics_come_in_the_printed_order() -> None:
    """Names come in the order of METRICS."""
    assert tuple(compute(state_of(two_class(30, seed=0), 1), 1)) == metrics.METRICS
    assert tuple(compute(zero(3, None), None)) == metrics.METRICS


@pytest.mark.parametrize("positive", [1, None])
def test_batches_add_to_the_whole(positive: int | None) -> None:
    """Batch after batch gives the state of all images at once."""
    logits, labels = two_class(333, seed=13)
    state = zero(2, positive)
    for start in range(0, 333, 32):
        end = start + 32
        state = update(state, logits[start:end], labels[start:end], positive)
    assert_same(state, state_of((logits, labels), positive), 1e-12)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 120), max_size=5),
    order=st.randoms(use_true_random=False),
    n_classes=st.integers(2, 4),
)
def test_shards_merge_to_the_whole_in_any_order(
    cuts: list[int], order: Any, n_classes: int
) -> None:
    """However images are dealt to sites, the merged state is that of all images."""
    logits, labels = multi_class_uniform(n_classes)
    edges = [0, *sorted(cuts), 120]
    shards = [state_of((logits[a:b], labels[a:b]), None, b - a) for a, b in pairwise(edges)]
    merged = merge(shards)
    assert_same(merged, state_of((logits, labels), None, 120), 1e-12)
    order.shuffle(shards)
    assert_same(merge(iter(shards)), merged)  # to the bit


def multi_class_uniform(n_classes: int) -> Batch:
    random = np.random.default_rng(n_classes)
    return 3 * random.normal(size=(120, n_classes)), random.integers(0, n_classes, 120)


def test_sums_of_squares_by_hand() -> None:
    """The squares are those of each image's loss and of what it adds to the Brier score."""
    logits, labels = multi_class(120, seed=22)
    p = probabilities(logits)
    losses = -np.log(p[np.arange(120), labels])
    briers = ((p - np.eye(4)[labels]) ** 2).sum(axis=1)
    found = state_of((logits, labels), None).squares
    assert found == pytest.approx([np.sum(losses**2), np.sum(briers**2)])


def test_the_loss_at_temperature_1_is_the_loss() -> None:
    """Of every batch the sum at temperature 1 is the sum of the losses."""
    for positive in (1, None):
        state = state_of(two_class(90, seed=23), positive)
        assert state.scaled_loss[AT_ONE] == pytest.approx(state.loss_sum, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(2, 5),
    scale=st.floats(0.001, 1e5),
    offset=st.floats(-1e6, 1e6),
    wrong=st.sampled_from((0.0, 0.1, 1.0)),
    seed=st.integers(0, 10_000),
)
def test_losses_of_any_logits_pass_the_wire(
    n: int, k: int, scale: float, offset: float, wrong: float, seed: int
) -> None:
    """However sure, right or wrong, the losses at all temperatures are such as the wire takes."""
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(n, k)) + offset).astype(np.float32)
    labels = np.where(random.random(n) < wrong, random.integers(0, k, n), logits.argmax(axis=1))
    state = state_of((logits, labels), None, n)
    assert_same(from_arrays(to_arrays(state), k, None), state)


def test_what_one_site_does_not_tell_is_not_told_of_all() -> None:
    """Left out on the wire it stays unknown, pooled too, and the rest of the state is as it was."""
    one, other = state_of(two_class(40, seed=24), 1), state_of(two_class(30, seed=25), 1)
    quiet = untold(one)
    arrays = to_arrays(quiet)
    assert to_arrays(one).keys() - arrays.keys() == {"squares", "scaled_loss"}
    assert_same(from_arrays(arrays, 2, 1), quiet)
    pooled = merge([other, from_arrays(arrays, 2, 1)])
    assert told(merge([one, other]))
    assert not told(pooled)
    assert compute(pooled, 1) == compute(merge([other, one]), 1)
    with pytest.raises(ReplyError, match="squares: is missing"):
        from_arrays({**arrays, "scaled_loss": one.scaled_loss}, 2, 1)


def test_states_are_not_changed_by_use() -> None:
    """Update, merge and compute leave the states that they are given as they were."""
    state = state_of(two_class(40, seed=14), 1)
    before = from_arrays(to_arrays(state), 2, 1)
    update(state, *two_class(40, seed=15), 1)
    merge([state, state])
    compute(state, 1)
    assert_same(state, before)


def test_merge_refuses_what_does_not_add() -> None:
    """States of different tasks, or none at all, do not merge."""
    for states in ([], [zero(2, 1), zero(3, None)], [zero(2, 1), zero(2, None)]):
        with pytest.raises(ValueError, match="merge"):
            merge(states)


def test_patients_are_at_most_images() -> None:
    """A state of some images cannot have more patients, or fewer than none."""
    state = state_of(two_class(5, seed=0), 1)
    assert metrics.with_patients(state, 5).n_patients == 5
    for n in (-1, 6):
        with pytest.raises(ValueError, match="patients"):
            metrics.with_patients(state, n)


@pytest.mark.parametrize(
    ("logits", "labels", "positive"),
    [
        (np.zeros((2, 3)), np.array([0, 1]), 1),
        (np.zeros((2, 2)), np.array([0]), 1),
        (np.zeros((2, 2)), np.array([[0], [1]]), 1),
        (np.zeros((2, 2)), np.array([0, 2]), 1),
        (np.zeros((2, 2)), np.array([0, -1]), 1),
        (np.array([[0, np.nan], [0, 0]]), np.array([0, 1]), 1),
        (np.array([[0, np.inf], [0, 0]], np.float16), np.array([0, 1]), 1),
        (np.zeros((2, 2)), np.array([0, 1]), None),
    ],
)
def test_update_refuses_a_bad_batch(
    logits: NDArray[Any], labels: NDArray[Any], positive: int | None
) -> None:
    """Wrong shapes, foreign labels, numbers that are none and another task are refused."""
    with pytest.raises(ValueError, match=r"logit|label|task"):
        update(zero(2, 1), logits, labels, positive)


@pytest.mark.parametrize(("n_classes", "positive"), [(1, None), (2, 2), (2, -1)])
def test_a_task_needs_its_classes(n_classes: int, positive: int | None) -> None:
    """Fewer than two classes, or a positive class outside them, is refused."""
    with pytest.raises(ValueError, match="classes"):
        zero(n_classes, positive)


@pytest.mark.parametrize("positive", [1, 0, None])
def test_the_wire_loses_nothing(positive: int | None) -> None:
    """A state comes back from its wire form to the bit."""
    state = state_of(two_class(70, seed=16), positive, 30)
    assert_same(from_arrays(to_arrays(state), 2, positive), state)


def test_a_small_site_sends_little() -> None:
    """The wire form of 40 images stays below 1 kB."""
    arrays = to_arrays(state_of(two_class(40, seed=17), 1))
    assert sum(array.nbytes for array in arrays.values()) < 1000


def put(name: str, at: Any, value: float) -> Callable[[Wire], Wire]:
    def change(arrays: Wire) -> Wire:
        array = arrays[name].copy()
        array[at] = value
        return arrays | {name: array}

    return change


def add(name: str, at: Any, value: float) -> Callable[[Wire], Wire]:
    return lambda arrays: put(name, at, arrays[name][at] + value)(arrays)


def put_index_back(arrays: Wire) -> Wire:
    return arrays | {"histogram_index": arrays["histogram_index"][::-1].copy()}


def swap_labels(arrays: Wire) -> Wire:
    index = (arrays["histogram_index"] + ranking.BINS) % (2 * ranking.BINS)
    order = index.argsort()
    count = arrays["histogram_count"][order]
    return arrays | {"histogram_index": index[order], "histogram_count": count}


BAD: dict[str, tuple[str, Callable[[Wire], Wire]]] = {
    "missing": ("sums: is missing", lambda a: {k: v for k, v in a.items() if k != "sums"}),
    "unknown": ("names: is not known", lambda a: a | {"names": np.zeros(1)}),
    "dtype": ("counts: int32", lambda a: a | {"counts": a["counts"].astype(np.int32)}),
    "float32": ("calibration: fl", lambda a: a | {"calibration": a["calibration"].astype("f4")}),
    "byte order": ("sums: >f8", lambda a: a | {"sums": a["sums"].astype(">f8")}),
    "shape": ("confusion: int64", lambda a: a | {"confusion": np.zeros((3, 3), np.int64)}),
    "rank": (
        "histogram_index: int32",
        lambda a: a | {"histogram_index": a["histogram_index"][None]},
    ),
    "lengths": (
        "histogram_count: int32",
        lambda a: a | {"histogram_count": a["histogram_count"][1:]},
    ),
    "patients": ("counts: 41 patients", put("counts", 0, 41)),
    "no patients": ("counts: -1 patients", put("counts", 0, -1)),
    "images": ("not of all images", add("counts", 1, 1)),
    "many images": ("not of all images", put("counts", 1, 2**62)),
    "nan": ("sums: a value", put("sums", 0, np.nan)),
    "infinite": ("sums: a value", put("sums", 1, np.inf)),
    "negative loss": ("sums: a value", put("sums", 0, -1.0)),
    "huge loss": ("sums: more", put("sums", 0, 1e300)),
    "huge brier": ("sums: more", put("sums", 1, 81.0)),
    "squares nan": ("squares: negative or", put("squares", 0, np.nan)),
    "small squares": ("squares: too small", put("squares", 0, 0.01)),
    "large squares": ("squares: too large", put("squares", 1, 1e6)),
    "negative losses": ("scaled_loss: negative or", put("scaled_loss", 3, -0.5)),
    "another loss": ("scaled_loss: another loss", add("scaled_loss", 8, 1.0)),
    "a peak of losses": ("scaled_loss: no cross", add("scaled_loss", 12, 20.0)),
    "steep losses": ("scaled_loss: no cross", put("scaled_loss", 0, 1e6)),
    "negative confusion": ("confusion: a count", put("confusion", (0, 1), -1)),
    "confusion": ("confusion: not of all", add("confusion", (0, 1), 1)),
    "wrapped confusion": ("confusion: not of all", put("confusion", slice(None), 2**62)),
    "negative index": ("histogram_index: outside", put("histogram_index", 0, -1)),
    "index": ("histogram_index: outside", put("histogram_index", -1, 2 * ranking.BINS)),
    "falling": ("histogram_index: does not", put_index_back),
    "doubled": (
        "histogram_index: does not",
        lambda a: put("histogram_index", 1, a["histogram_index"][0])(a),
    ),
    "no count": ("histogram_count: not above", put("histogram_count", 0, 0)),
    "histogram": ("histogram: not of all", add("histogram_count", 0, 1)),
    "labels": ("histogram: other labels", swap_labels),
    "calibration nan": ("calibration: negative or", put("calibration", (14, 1), np.nan)),
    "negative calibration": ("calibration: negative or", put("calibration", (0, 0), -1)),
    "part of an image": ("calibration: a count", add("calibration", (14, 0), 0.5)),
    "calibration": ("calibration: not of all", add("calibration", (14, 0), 1)),
    "hits": ("calibration: other hits", add("calibration", (14, 2), -1)),
    "confidence": ("calibration: more than", add("calibration", (14, 1), 40)),
}


@pytest.mark.parametrize("case", BAD)
def test_the_wire_refuses(case: str) -> None:
    """Whatever does not fit or contradicts another sum is refused by name, with a remedy."""
    says, change = BAD[case]
    arrays = to_arrays(state_of(two_class(40, seed=18), 1, 20))
    from_arrays(arrays, 2, 1)
    with pytest.raises(ReplyError) as caught:
        from_arrays(change(arrays), 2, 1)
    assert says in caught.value.message
    assert caught.value.remedy


def test_the_wire_lists_all_faults() -> None:
    """One fault hides none of the others."""
    arrays = to_arrays(state_of(two_class(40, seed=18), 1, 20))
    for case in ("missing", "unknown", "patients", "negative confusion", "index"):
        arrays = BAD[case][1](arrays)
    with pytest.raises(ReplyError) as caught:
        from_arrays(arrays, 2, 1)
    for case in ("missing", "unknown", "patients", "negative confusion", "index"):
        assert BAD[case][0] in caught.value.message
    assert caught.value.message.count("\n") == 5


def test_the_wire_refuses_another_task() -> None:
    """A state of one task is refused as that of another."""
    arrays = to_arrays(state_of(multi_class(40, seed=19), None))
    for n_classes, positive in ((3, None), (5, None), (2, 1)):
        with pytest.raises(ReplyError, match="confusion"):
            from_arrays(arrays, n_classes, positive)
    binary = to_arrays(state_of(two_class(40, seed=20), 0))
    with pytest.raises(ReplyError, match="other labels"):
        from_arrays(binary, 2, 1)
