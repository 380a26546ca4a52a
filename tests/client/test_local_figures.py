"""Laws of what a site says of one model on its own held-out patients."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from client.dataset import Images, Origin, TaskData
from client.local_figures import TaskFigures, figures_of_task, image_cases, patient_cases
from client.manifest import Row
from client.pictures import Facts
from common.study import Task

TWO = Task(modality="CT", classes=["normal", "ill"], positive="ill")
THREE = Task(modality="MR", classes=["none", "mild", "severe"])
Numbers = np.ndarray


def images_of(labels: list[int], patients: list[str], sexes: str = "FM") -> Images:
    origins = tuple(
        Origin(
            Row(i + 2, Path(f"scan-{i}.png"), label, who, who, sex=sexes[int(who) % len(sexes)]),
            "",
            Facts(),
        )
        for i, (label, who) in enumerate(zip(labels, patients, strict=True))
    )
    pixels = torch.zeros(len(labels), 1, 2, 2)
    return Images(pixels, torch.tensor(labels, dtype=torch.int64), tuple(patients), origins)


def site(
    patients: int, task: Task, *, images: int = 2, seed: int = 0
) -> tuple[dict[str, Numbers], TaskData]:
    """Return logits and images of both held-out splits; classes take turns among patients."""
    rng = np.random.default_rng(seed)
    k, splits, logits = len(task.classes), {}, {}
    for split in ("validation", "test"):
        names = [str(i) for i in range(patients) for _ in range(images)]
        labels = [int(who) // 2 % k for who in names]
        splits[split] = images_of(labels, names)
        logits[split] = (2 * np.eye(k)[labels] + rng.normal(size=(len(labels), k)) * 2).astype(
            np.float32
        )
    return logits, TaskData({**splits, "train": splits["test"]}, 0)


def figured(logits: dict[str, Numbers], data: TaskData, task: Task) -> TaskFigures:
    found = figures_of_task(logits, data, task, minimum=5, each_image=False, seed=3)
    json.dumps(asdict(found), allow_nan=False)
    return found


def test_images_and_patients_are_counted_apart() -> None:
    """Both have figures of their own, that of patients of one prediction for each."""
    logits, data = site(40, TWO)
    found = figured(logits, data, TWO)
    assert (found.of_images.cases, found.of_images.patients) == (80, 40)
    assert found.of_patients is not None
    assert (found.of_patients.cases, found.of_patients.patients) == (40, 40)
    test = data.splits["test"]
    odds = logits["test"][:, 1] - logits["test"][:, 0]
    expected = roc_auc_score(test.labels.numpy(), odds)
    assert found.of_images.metrics["auroc"].value == pytest.approx(expected)
    cases = patient_cases(logits["test"], test, TWO)
    assert found.of_patients.metrics["auroc"].value == pytest.approx(
        roc_auc_score(cases.labels, cases.logits[:, 1] - cases.logits[:, 0])
    )
    assert sum(map(sum, found.of_images.confusion)) == 80
    assert found.of_images.by_class == (40, 40)


def test_one_image_each_needs_no_second_count() -> None:
    """Where patients and images are the same there are figures of images alone."""
    logits, data = site(40, TWO, images=1)
    assert figured(logits, data, TWO).of_patients is None


def test_owners_are_numbered_alike() -> None:
    """A patient's images and the patient's case have the same number, in any order of rows."""
    images = images_of([0, 2, 1, 1, 2], ["7", "3", "7", "5", "3"])
    logits = np.arange(15, dtype=np.float32).reshape(5, 3)
    assert image_cases(logits, images, THREE).owners.tolist() == [2, 0, 2, 1, 0]
    cases = patient_cases(logits, images, THREE)
    pairs = sorted(zip(cases.owners.tolist(), cases.labels.tolist(), strict=True))
    assert pairs == [(0, 2), (1, 1), (2, 0), (2, 1)]


def test_thresholds_are_chosen_on_validation() -> None:
    """Other test images leave every threshold where it was."""
    logits, data = site(40, TWO)
    other, _ = site(40, TWO, seed=9)
    points = [
        figured({**logits, "test": test}, data, TWO).of_images.classes["ill"].operating_points
        for test in (logits["test"], other["test"])
    ]
    assert points[0] is not None
    assert points[1] is not None
    assert set(points[0]) == {"youden", "sensitivity", "specificity"}
    for rule, point in points[0].items():
        assert point["threshold"] == points[1][rule]["threshold"]
    assert points[0] != points[1]


def test_temperature_mends_a_sure_model() -> None:
    """Logits ten times too large have a large temperature, and with it less loss on test images."""
    logits, data = site(60, TWO)
    found = figured({split: 10 * values for split, values in logits.items()}, data, TWO)
    mended = found.of_images.temperature
    assert mended is not None
    assert mended.value > 5
    assert mended.loss[1] < mended.loss[0] / 2
    assert mended.calibration_error[1] < mended.calibration_error[0]


def test_several_classes_are_told_apart() -> None:
    """Each class has its curves and its AUROC against the rest; their mean is the macro figure."""
    logits, data = site(60, THREE)
    found = figured(logits, data, THREE).of_images
    assert list(found.classes) == THREE.classes
    each = [of.metrics["auroc"].value for of in found.classes.values()]
    assert found.metrics["auroc"].value == pytest.approx(np.mean(np.array(each, float)))
    assert all(of.roc and of.precision_recall and of.decision for of in found.classes.values())


def test_subgroups_are_those_of_the_patients() -> None:
    """Sex comes from the table; a site that knows no scanner has no table of scanners."""
    logits, data = site(40, TWO)
    found = figured(logits, data, TWO).subgroups
    assert set(found) == {"sex"}
    assert [line.patients for line in found["sex"]] == [(10, 10), (10, 10)]


def test_each_case_is_listed_for_the_hospital() -> None:
    """Every test image has its file, its patient's hash, its label and its probabilities."""
    logits, data = site(10, TWO)
    cases = figured(logits, data, TWO).cases
    assert [case.file for case in cases] == [f"scan-{i}.png" for i in range(20)]
    for case, values in zip(cases, logits["test"], strict=True):
        share = np.exp(values.astype(float)) / np.exp(values.astype(float)).sum()
        assert case.probabilities == pytest.approx(tuple(share))
        assert case.said == TWO.classes[int(values.argmax())]


def test_a_test_set_of_one_class_is_told() -> None:
    """Without an ill patient there is no AUROC, no curve and no threshold, and the notes say so."""
    logits, data = site(40, TWO)
    healthy = {
        split: images_of([0] * 20, [str(i) for i in range(20)]) for split in ("validation", "test")
    }
    data = TaskData({**healthy, "train": healthy["test"]}, 0)
    found = figured({split: values[:20] for split, values in logits.items()}, data, TWO)
    assert found.of_images.metrics["auroc"].value is None
    assert found.of_images.metrics["sensitivity"].value is None
    assert found.of_images.metrics["specificity"].value is not None
    of = found.of_images.classes["ill"]
    assert of.operating_points is None
    assert of.roc is None
    assert "No test patient has the class ill." in found.notes
    assert "No validation patient has the class ill." in found.notes


@pytest.mark.parametrize("task", [TWO, THREE])
def test_no_patients_give_no_figure(task: Task) -> None:
    """Empty splits are told; no figure is made up."""
    nobody = images_of([], [])
    data = TaskData({"train": nobody, "validation": nobody, "test": nobody}, 0)
    blank = np.zeros((0, len(task.classes)), np.float32)
    found = figured({"validation": blank, "test": blank}, data, task)
    assert {e.value for e in found.of_images.metrics.values()} == {None}
    assert found.of_images.temperature is None
    assert "There are no test patients." in found.notes


def test_few_patients_and_unknown_ones_are_told() -> None:
    """Below the site's minimum, and where each image counts as a patient, a note says so."""
    logits, data = site(4, TWO, images=1)
    found = figures_of_task(logits, data, TWO, minimum=5, each_image=True, seed=3)
    text = " ".join(found.notes)
    assert "Patients are not known" in text
    assert "fewer test patients than the site's minimum of 5" in text
    assert found.of_images.metrics["accuracy"].low is None
