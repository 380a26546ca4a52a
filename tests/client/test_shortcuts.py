"""Laws of shortcuts: told on what tells the label, silent on chance, one vote a patient."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from client.shortcuts import LEAST_ACCURACY, shortcuts

RNG = np.random.default_rng(0)


def found(labels: list[int], patients: list[str], column: list[str]) -> list[tuple[int, float]]:
    return [(s.label, s.accuracy) for s in shortcuts(labels, patients, {"scanner": column})]


def patients_of(n: int, each: int = 1) -> list[str]:
    return [f"p{i // each}" for i in range(n)]


def test_a_column_that_is_the_label_is_told() -> None:
    """Where each scanner has one class, the accuracy is 1, and each value tells."""
    labels = [0, 1] * 30
    column = ["A" if label else "B" for label in labels]
    (told,) = shortcuts(labels, patients_of(60), {"scanner": column})
    assert (told.column, told.label, told.accuracy) == ("scanner", 1, 1.0)
    assert told.shares == {"A": (1.0, 30), "B": (0.0, 30)}
    assert told.telling == {"A", "B"}


@pytest.mark.parametrize("seed", range(20))
def test_chance_is_silent(seed: int) -> None:
    """Columns that know nothing of the label are not told, few patients or many."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 200))
    labels = rng.integers(0, 2, n).tolist()
    column = rng.choice(["A", "B", "C", "D"], n).tolist()
    assert found(labels, patients_of(n), column) == []


def test_the_accuracy_is_that_of_the_rule() -> None:
    """With many patients it is scikit-learn's balanced accuracy of the majority's rule."""
    labels = (RNG.random(2000) < 0.3).astype(int)
    column = np.where(RNG.random(2000) < 0.85, labels, 1 - labels)
    ((label, accuracy),) = found(labels.tolist(), patients_of(2000), [f"v{c}" for c in column])
    assert label == 1
    assert accuracy == pytest.approx(balanced_accuracy_score(labels, column), abs=1e-9)


def test_a_value_of_each_patient_tells_nothing_new() -> None:
    """A column that names the patient fits all rows, and no patient that it has not seen."""
    labels = [0] * 40 + [1] * 40
    patients = patients_of(80, 4)
    assert found(labels, patients, patients) == []


def test_patients_count_once() -> None:
    """One patient with a thousand images on a scanner of its own makes no shortcut."""
    labels = [0, 1] * 20 + [1] * 1000
    patients = [*patients_of(40), *["many"] * 1000]
    column = ["A", "A", "B", "B"] * 10 + ["C"] * 1000
    assert found(labels, patients, column) == []


def test_one_class_of_several_is_enough() -> None:
    """A class that comes from a place of its own is told, whatever of the others."""
    labels = [0, 1, 2, 3] * 20
    column = ["elsewhere" if label == 2 else "here" for label in labels]
    assert found(labels, patients_of(80), column) == [(2, 1.0)]


@pytest.mark.parametrize("labels", [[0] * 30, [0] * 26 + [1] * 4, [0, 1]])
def test_too_few_patients_say_nothing(labels: list[int]) -> None:
    """A class, or the rest, with fewer than five patients cannot be told."""
    assert found(labels, patients_of(len(labels)), [str(label) for label in labels]) == []


def test_one_value_tells_nothing() -> None:
    """A column of one value is no column."""
    assert found([0, 1] * 30, patients_of(60), [""] * 60) == []


def test_a_weak_hint_is_no_shortcut() -> None:
    """Below the bound nothing is said, however many patients there are."""
    labels = np.array([0, 1] * 1000)
    column = np.where(RNG.random(2000) < LEAST_ACCURACY - 0.05, labels, 1 - labels)
    assert found(labels.tolist(), patients_of(2000), [f"v{c}" for c in column]) == []
