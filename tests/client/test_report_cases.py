"""Laws of ``client/report_cases``: outcomes, the choice of cases, and what is seen of one."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.local_figures import Case
from client.manifest import Row
from client.pictures import Facts
from client.report_cases import (
    SIDE,
    Looked,
    Shown,
    gallery,
    overlay_of,
    picture_of,
    shown_rows,
)
from common.study import Task

TWO = Task(modality="fundus", classes=["healthy", "ill"], positive="ill")
THREE = Task(modality="CT", classes=["a", "b", "c"])


def row(line: int, label: int, patient: str = "") -> Row:
    name = patient or f"p{line}"
    return Row(line=line, path=Path(f"/d/{line}.png"), label=label, patient=name, unit=name)


def case(of: Row, task: Task, *chances: float, part: str = "") -> Case:
    said = task.classes[int(np.argmax(chances))]
    return Case(of.patient, str(of.path), part, task.classes[of.label], said, chances)


@pytest.mark.parametrize(
    ("label", "chance", "outcome"),
    [
        (1, 0.3, "true positive"),
        (0, 0.3, "false positive"),
        (1, 0.29, "false negative"),
        (0, 0.29, "true negative"),
    ],
)
def test_an_outcome_is_told_by_the_threshold(label: int, chance: float, outcome: str) -> None:
    """From the threshold on a row is positive, wherever the highest probability is."""
    one = row(2, label)
    (found,) = shown_rows([case(one, TWO, 1 - chance, chance)], [one], TWO, 0.3)
    assert (found.outcome, found.explained) == (outcome, 1)
    assert found.said == ("ill" if chance >= 0.3 else "healthy")


def test_of_several_classes_the_highest_probability_is_said() -> None:
    """A row is right or wrong, and the map is of the class that is said."""
    rows = [row(2, 0), row(3, 1)]
    cases = [case(rows[0], THREE, 0.5, 0.3, 0.2), case(rows[1], THREE, 0.1, 0.2, 0.7)]
    found = shown_rows(cases, rows, THREE, None)
    assert [(f.outcome, f.explained) for f in found] == [("right", 0), ("wrong", 2)]
    assert found[1].margin == pytest.approx(0.5)


def test_a_row_of_several_images_has_one_outcome() -> None:
    """Probabilities are averaged, or the most suspicious counts; the likeliest image is shown."""
    one = row(2, 1)
    cases = [case(one, TWO, 0.9, 0.1, part="1"), case(one, TWO, 0.4, 0.6, part="2")]
    (mean,) = shown_rows(cases, [one], TWO, 0.5)
    assert (mean.outcome, mean.part, mean.images) == ("false negative", "2", 2)
    assert mean.probabilities == pytest.approx((0.65, 0.35))
    (most,) = shown_rows(cases, [one], TWO.model_copy(update={"per_patient": "max"}), 0.5)
    assert (most.outcome, most.probabilities) == ("true positive", (0.4, 0.6))


def test_rows_that_were_not_measured_are_not_shown() -> None:
    """A row that the gate left out has no case."""
    assert shown_rows([], [row(2, 0)], TWO, 0.5) == []


def many(outcome: str, margins: list[float], patient: str = "") -> list[Shown]:
    return [
        Shown(row(10 + n, 0, patient), "healthy", "ill", outcome, 1, (0.5, 0.5), "", 1, margin)
        for n, margin in enumerate(margins)
    ]


def test_errors_come_first_and_the_surest_of_them() -> None:
    """Of each kind half are the surest and half the least sure, in an order that never changes."""
    rows = [*many("true negative", [0.5]), *many("false positive", [0.1, 0.9, 0.5, 0.7])]
    found = gallery(rows, 3, by_class=False)
    assert [(one.outcome, one.margin, sure) for one, sure in found] == [
        ("false positive", 0.9, "most sure"),
        ("false positive", 0.7, "most sure"),
        ("false positive", 0.1, "least sure"),
        ("true negative", 0.5, "most sure"),
    ]
    assert gallery(rows, 0, by_class=False) == []


def test_a_patient_stands_for_one_case_of_a_kind() -> None:
    """A patient with many images does not fill the page; of them the surest is shown."""
    found = gallery(many("true positive", [0.2, 0.8, 0.4], "same"), 5, by_class=False)
    assert [one.margin for one, _ in found] == [0.8]


def test_classes_are_kinds_of_their_own() -> None:
    """Of several classes each has as many right and wrong rows."""
    rows = [one._replace(label=label) for label in "ab" for one in many("wrong", [0.5, 0.6])]
    assert [one.label for one, _ in gallery(rows, 1, by_class=True)] == ["a", "b"]


def pixels(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_pictures_fit_the_page() -> None:
    """A large image shrinks, a small one keeps its size, grey stays grey."""
    big = Looked(np.full((960, 1920), 0.5, np.float32), None, None, Facts(), {}, None, "")
    assert pixels(picture_of(big)).shape == (SIDE // 2, SIDE, 3)
    assert np.abs(pixels(picture_of(big)) - 128).max() <= 2
    small = replace_image(big, np.full((20, 30, 3), 0.25, np.float32))
    assert pixels(picture_of(small)).shape == (20, 30, 3)
    assert overlay_of(small) == ""


def replace_image(looked: Looked, image: np.ndarray) -> Looked:
    return looked._replace(image=image)


def test_an_overlay_shows_the_map_and_the_mark() -> None:
    """Where the map is 0 the image stays; the outline of a mark is white within black."""
    image, heat = np.full((100, 100), 0.5, np.float32), np.zeros((100, 100), np.float32)
    heat[10:40, 10:40] = 1
    mask = np.zeros((100, 100), bool)
    mask[60:80, 60:80] = True
    found = pixels(overlay_of(Looked(image, heat, mask, Facts(), {}, None, "")))
    assert np.ptp(found[25, 25]) > 50
    assert np.abs(found[10:30, 70:90] - 128).max() <= 8
    assert found[59, 62:78].min() > 150
    assert found[58, 62:78].max() < 110


def test_a_tiny_mark_does_not_vanish() -> None:
    """A lesion of a few pixels in a large image still has its outline."""
    image, heat = np.zeros((2000, 2000), np.float32), np.zeros((2000, 2000), np.float32)
    mask = np.zeros((2000, 2000), bool)
    mask[1000:1003, 1000:1003] = True
    assert pixels(overlay_of(Looked(image, heat, mask, Facts(), {}, None, ""))).max() > 200


def test_a_case_is_only_ever_its_own() -> None:
    """Two labels of one file are two rows with outcomes of their own."""
    one, two = row(2, 0), replace(row(2, 1), line=3)
    cases = [case(one, TWO, 0.2, 0.8), case(two, TWO, 0.2, 0.8)]
    found = shown_rows(cases, [one, two], TWO, 0.5)
    assert [f.outcome for f in found] == ["false positive", "true positive"]
