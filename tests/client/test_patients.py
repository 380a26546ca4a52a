"""Laws of figures in which each patient counts once; the reference is a sum by hand."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn import metrics as reference

from client.dataset import Images, TaskData
from client.evaluate import measured
from client.patients import How, by_patient, cases_of, have_several, who_stands_behind
from client.suppression import Behind, behind_of
from common import metrics, metrics_wire
from common.held_out import OF_PATIENTS
from common.study import Study

FLOAT32 = float(np.finfo(np.float32).max)
HOWS: tuple[How, How] = ("mean", "max")


def images_of(labels: list[int], patients: list[str]) -> Images:
    """Return images of which only labels and patients count."""
    pixels = torch.zeros(len(labels), 1, 1, 1, dtype=torch.float16)
    return Images(pixels, torch.tensor(labels), tuple(patients))


def drawn(n_patients: int, n_classes: int, seed: int = 0) -> tuple[Any, Any, list[str]]:
    """Return logits, labels and patients of one to four images each, in no order."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    labels = patients % n_classes
    logits = (rng.normal(size=(len(labels), n_classes)) + np.eye(n_classes)[labels]) * 2
    mixed = rng.permutation(len(labels))
    names = [f"{patients[i]:x}" for i in mixed]
    return logits[mixed].astype(np.float32), labels[mixed], names


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_patients_prediction_is_that_of_the_images_together(how: How, n_classes: int) -> None:
    """Mean of the probabilities, or the likeliest of the positive class, or of each, by hand."""
    logits, labels, patients = drawn(20, n_classes)
    positive = 1 if n_classes == 2 else None
    said, truth = by_patient(logits, labels, patients, how, positive)
    shares, owners = softmax(logits.astype(float), axis=1), np.array(patients)
    expected = []
    for patient in sorted(set(patients)):
        own = shares[owners == patient]
        if how == "mean":
            expected.append(own.sum(axis=0) / len(own))
        elif positive is not None:
            expected.append(own[own[:, positive].argmax()])
        else:
            expected.append(own.max(axis=0) / own.max(axis=0).sum())
    np.testing.assert_allclose(softmax(said, axis=1), expected, rtol=1e-9)
    assert truth.tolist() == [int(p, 16) % n_classes for p in sorted(set(patients))]


@pytest.mark.parametrize("how", HOWS)
def test_figures_of_patients_are_scikit_learns(how: How, make_study: Callable[..., Study]) -> None:
    """What the state computes to is what scikit-learn says of each patient's own probability."""
    logits, labels, patients = drawn(150, 2, seed=3)
    task = make_study().tasks["ct"].model_copy(update={"per_patient": how})
    images = images_of(labels.tolist(), patients)
    of_images, state = measured(logits, images, task)
    assert state is not None
    assert (state.n_patients, state.n_images) == (150, 150)
    assert (of_images.n_patients, of_images.n_images) == (150, len(labels))
    shares, owners, names = softmax(logits.astype(float), axis=1)[:, 1], np.array(patients), []
    truth, score = [], []
    for patient in set(patients):
        names.append(patient)
        truth.append(labels[owners == patient].max())
        score.append(getattr(shares[owners == patient], how)())
    found = metrics.compute(state, 1)
    assert found["accuracy"] == reference.accuracy_score(truth, np.array(score) > 0.5)
    assert found["brier"] == pytest.approx(reference.brier_score_loss(truth, score))
    assert found["loss"] == pytest.approx(reference.log_loss(truth, score))
    auroc, bound = found["auroc"], found["auroc_bound"]
    assert auroc is not None
    assert bound is not None
    assert abs(auroc - reference.roc_auc_score(truth, score)) <= bound + 1e-12


def test_a_patient_is_positive_if_an_image_is() -> None:
    """With a positive class one image is enough; without one, each label makes a case."""
    patients = ["a", "b", "a", "c", "b"]
    labels, logits = np.array([0, 1, 1, 0, 1]), np.zeros((5, 2))
    assert by_patient(logits, labels, patients, "mean", 1)[1].tolist() == [1, 1, 0]
    assert by_patient(logits, labels, patients, "mean", 0)[1].tolist() == [0, 1, 0]
    logits = np.array([[0.0, 1.0, 2.0], [3, 0, 0], [0, 1, 2], [0, 0, 7], [3, 0, 0]])
    said, truth = by_patient(logits, np.array([0, 1, 2, 0, 1]), patients, "max", None)
    assert truth.tolist() == [0, 2, 1, 0]
    assert said.argmax(axis=1).tolist() == [2, 2, 0, 2]
    assert np.array_equal(said[0], said[1])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_image_speaks_for_its_patient(how: How, n_classes: int) -> None:
    """With one image of each patient nothing changes but the order."""
    logits = np.random.default_rng(1).normal(size=(9, n_classes)).astype(np.float32)
    positive = 1 if n_classes == 2 else None
    labels, patients = np.arange(9) % n_classes, [f"{9 - i}" for i in range(9)]
    said, truth = by_patient(logits, labels, patients, how, positive)
    np.testing.assert_allclose(log_softmax(said, 1), log_softmax(logits[::-1], 1), atol=1e-6)
    assert truth.tolist() == labels[::-1].tolist()


@pytest.mark.parametrize("how", HOWS)
@given(
    rows=st.lists(
        st.tuples(
            *[st.floats(-FLOAT32, FLOAT32, width=32)] * 3, st.integers(0, 2), st.integers(0, 3)
        ),
        min_size=1,
        max_size=12,
    ),
    n_classes=st.integers(2, 3),
)
def test_no_finite_logits_are_too_large(
    how: How, rows: list[tuple[float, float, float, int, int]], n_classes: int
) -> None:
    """Whatever a network says, the patients' logits are finite and make a sound state."""
    positive = 1 if n_classes == 2 else None
    logits = np.array([row[:n_classes] for row in rows], np.float32)
    labels = np.array([row[3] % n_classes for row in rows])
    patients = [f"{row[4]}" for row in rows]
    said, truth = by_patient(logits, labels, patients, how, positive)
    state = metrics.update(metrics.zero(n_classes, positive), said, truth, positive)
    state = metrics.with_patients(state, len(set(patients)))
    sent = metrics_wire.from_arrays(metrics_wire.to_arrays(state), n_classes, positive)
    assert sent.n_images == len(truth) >= sent.n_patients == len(set(patients))
    cases = cases_of(behind_of(labels.tolist(), patients, n_classes), positive)
    assert [len(c) for c in cases.classes] == state.confusion.sum(axis=1).tolist()


def test_what_is_nearly_certain_keeps_its_rank() -> None:
    """Means of probabilities that a float64 cannot tell from one are still ranked."""
    logits = np.array([[0, 60.0], [0, 70], [0, 80], [0, 90]])
    said, _ = by_patient(logits, np.ones(4, int), ["a", "a", "b", "b"], "mean", 1)
    odds = said[:, 1] - said[:, 0]
    by_hand = np.log(2) - np.logaddexp([-60, -80], [-70, -90])
    np.testing.assert_allclose(odds, by_hand, rtol=1e-12)


def test_who_is_behind_is_counted_once() -> None:
    """Each patient is one case: the positive ones, and those with no positive image."""
    images = behind_of([0, 1, 1, 0, 0], ["a", "a", "b", "c", "c"], 2)
    assert cases_of(images, 1) == Behind((Counter("c"), Counter("ab")))
    assert cases_of(images, 0) == Behind((Counter("ac"), Counter("b")))
    many = behind_of([0, 1, 2, 2], ["a", "a", "b", "b"], 3)
    assert cases_of(many, None) == Behind((Counter("a"), Counter("a"), Counter("b")))


def test_patients_are_another_count_only_with_several_images(
    make_study: Callable[..., Study],
) -> None:
    """Where each patient of a split has one image, images alone are measured."""
    one = images_of([0, 1, 1], ["a", "b", "c"])
    two = images_of([0, 1, 1], ["a", "b", "b"])
    none = images_of([], [])
    assert [have_several(images) for images in (one, two, none)] == [False, True, False]
    study = make_study()
    data = TaskData({"train": two, "validation": one, "test": two}, 0)
    found = who_stands_behind(study, {"ct": data})
    assert set(found) == {("ct", "validation"), ("ct", "test"), ("ct", OF_PATIENTS["test"])}
    assert found["ct", OF_PATIENTS["test"]] == Behind((Counter("a"), Counter("b")))
    logits = np.zeros((3, 2))
    assert measured(logits, one, study.tasks["ct"]).of_patients is None
    assert measured(logits, two, study.tasks["ct"]).of_patients is not None
