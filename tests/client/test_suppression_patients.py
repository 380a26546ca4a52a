"""Laws of two states of one split: of images, and of patients who have several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from client.config import Limits
from client.patients import by_patient, cases_of
from client.suppression import Behind, behind_of, suppress, withheld
from common import metrics, metrics_wire
from common.arrays import Array
from common.held_out import OF_PATIENTS
from common.messages import Order, Reply
from common.metrics import MetricState
from common.study import Study

Key = tuple[str, str]
Part = tuple[dict[str, Array], Behind]
TEST = ("ct", "test")
OF_TEST = ("ct", OF_PATIENTS["test"])


@pytest.fixture
def order(make_study: Callable[..., Study]) -> Order:
    return Order("train", make_study(("ct", "mr")), 2, {}, "0" * 64, None)


def state_of(logits: Any, labels: Any, patients: Sequence[str]) -> dict[str, Array]:
    """Return a metric state as it leaves; a task of two classes has a positive one."""
    n_classes = logits.shape[1]
    positive = 1 if n_classes == 2 else None
    state = metrics.update(metrics.zero(n_classes, positive), logits, labels, positive)
    return metrics_wire.to_arrays(metrics.with_patients(state, len(set(patients))))


def both(
    labels: Sequence[int], patients: Sequence[str], *, task: str = "ct", split: str = "test"
) -> dict[Key, Part]:
    """Return the states of random logits by image and by patient, and who stands behind each."""
    n_classes, positive = (2, 1) if task == "ct" else (3, None)
    logits = np.random.default_rng(0).normal(size=(len(labels), n_classes))
    said, truth = by_patient(logits, np.array(labels), patients, "mean", positive)
    behind = behind_of(labels, patients, n_classes)
    return {
        (task, split): (state_of(logits, np.array(labels), patients), behind),
        (task, OF_PATIENTS[split]): (state_of(said, truth, patients), cases_of(behind, positive)),
    }


def left(parts: Mapping[Key, Part], order: Order, limits: Limits) -> Mapping[Key, Any]:
    """Return the metrics that stay in a reply with these states."""
    reply = Reply("a", "0" * 64, 2, metrics={key: part[0] for key, part in parts.items()})
    return suppress(reply, order, limits, {key: part[1] for key, part in parts.items()}).metrics


def read(arrays: Mapping[str, Array]) -> MetricState:
    return metrics_wire.from_arrays(arrays, 2, 1)


def twice(labels: Sequence[int], name: str = "p") -> list[str]:
    """Return the patients of images of which each has two, one after the other."""
    return [f"{name}{number // 2}" for number in range(len(labels))]


def test_patients_stand_and_fall_with_their_images(order: Order) -> None:
    """Both states of a split leave, or none: not where either has a class of too few."""
    plenty = [0] * 20 + [1] * 20
    assert set(left(both(plenty, twice(plenty)), order, Limits())) == {TEST, OF_TEST}
    few = [0] * 32 + [1] * 8
    assert left(both(few, twice(few)), order, Limits()) == {}
    # Ten patients, all with an image of each class: none is without a positive one.
    mixed = [0, 1] * 10
    assert left({TEST: both(mixed, twice(mixed))[TEST]}, order, Limits())
    assert left(both(mixed, twice(mixed)), order, Limits()) == {}
    parts = both(plenty, twice(plenty)) | both(few, twice(few, "q"), split="validation")
    assert set(left(parts, order, Limits())) == {TEST, OF_TEST}


def test_patients_do_not_leave_without_their_images(order: Order) -> None:
    """A state of patients alone is left out, however many there are."""
    labels = [0] * 20 + [1] * 20
    parts = both(labels, twice(labels))
    assert left({OF_TEST: parts[OF_TEST]}, order, Limits(minimum_patients=1)) == {}
    states = {OF_TEST: read(parts[OF_TEST][0])}
    behind = {OF_TEST: parts[OF_TEST][1]}
    assert "images" in withheld(states, order, Limits(), behind)[OF_TEST]


@pytest.mark.parametrize("task", ["ct", "mr"])
@pytest.mark.parametrize(("mixed", "kept"), [(0, True), (1, False), (4, False), (5, True)])
def test_few_patients_with_images_of_two_classes_are_not_counted(
    task: str,
    mixed: int,
    kept: bool,  # noqa: FBT001 - a parameter of the test
    order: Order,
) -> None:
    """The difference of both states would tell how many: then those of images leave alone."""
    labels = [0] * 40 + [1] * 40 + ([2] * 40 if task == "mr" else [])
    labels[: 2 * mixed : 2] = [1] * mixed
    found = left(both(labels, twice(labels), task=task), order, Limits())
    assert set(found) == {(task, "test")} | ({(task, OF_PATIENTS["test"])} if kept else set())
    everything = left(both(labels, twice(labels), task=task), order, Limits(minimum_patients=1))
    assert len(everything) == 2


def test_few_patients_with_images_of_one_class_alone_are_not_counted(order: Order) -> None:
    """Nor how many of the positive ones have no negative image: two, where others have both."""
    labels = [0] * 20 + [0, 1] * 10 + [1] * 4
    assert set(left(both(labels, twice(labels)), order, Limits())) == {TEST}
    labels += [1] * 6
    assert set(left(both(labels, twice(labels)), order, Limits())) == {TEST, OF_TEST}


def test_nothing_is_had_by_subtraction_from_patients_of_another_task(order: Order) -> None:
    """A task whose patients are those of another's state of patients but for few is left out."""
    labels = [0] * 20 + [1] * 20 + [0, 1] * 10  # ten patients of either class alone, ten of both
    ct = both(labels, twice(labels))
    others = [f"other{i}" for i in range(18)]
    # The patients without a positive image, less one: no class of the state of images.
    patients = others[:9] + [f"p{i}" for i in range(1, 10)] + others[9:]
    mr = both([0] * 9 + [1] * 9 + [2] * 9, patients, task="mr")["mr", "test"]
    assert set(left({TEST: ct[TEST], ("mr", "test"): mr}, order, Limits())) == {
        TEST, ("mr", "test"),
    }  # fmt: skip
    assert set(left({**ct, ("mr", "test"): mr}, order, Limits())) == {TEST, OF_TEST}


def test_bins_of_patients_hold_as_many_of_them(order: Order) -> None:
    """With merged bins each in use holds k patients in the one state as in the other."""
    patients = [f"p{p}" for p in range(200) for _ in range(1 + p % 3)]
    labels = [int(patient[1:]) % 2 for patient in patients]
    kept = left(both(labels, patients), order, Limits(histogram_patients=4))
    state = read(kept[OF_TEST])
    for table in (state.histogram, state.histogram_upper, state.calibration[:, 0]):
        assert np.all((table == 0) | (table >= 4))
    assert not np.array_equal(state.histogram, state.histogram_upper)
