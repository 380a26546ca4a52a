"""Laws of what a study says of its images, and of how the documents say it."""

from pathlib import Path

import pytest

from common.imaging import VARIED, WINDOWS, Augmentation, Preparation, prepared, varied

STUDY = Path(__file__).resolve().parents[2] / "docs" / "study.md"


def rows_of(first: str) -> list[str]:
    """Return the table row of the page whose first cell this is."""
    for line in STUDY.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] == f"`{first}`":
            return cells[1:]
    raise AssertionError(first)


@pytest.mark.parametrize("modality", VARIED)
def test_an_empty_table_has_the_modalitys_defaults(modality: str) -> None:
    """What an augmentation leaves out is the modality's; what it gives, zero too, is its own."""
    assert varied(Augmentation(), modality) == VARIED[modality]
    given = varied(Augmentation(rotation=0, flip=True), modality)
    assert given == VARIED[modality]._replace(rotation=0, flip=True)


@pytest.mark.parametrize("modality", VARIED)
def test_fundus_alone_is_cropped_and_mirrored_by_default(modality: str) -> None:
    """An empty table does that to photographs of the fundus; no table does nothing."""
    fundus = modality == "fundus"
    found = prepared(Preparation(), modality)
    assert (found.crop, found.mirror) == ("retina" if fundus else "none", fundus)
    plain = prepared(None, modality)
    assert (plain.crop, plain.mirror) == ("none", False)
    given = prepared(Preparation(crop="none", mirror=True), modality)
    assert (given.crop, given.mirror) == ("none", True)


@pytest.mark.parametrize("modality", VARIED)
def test_every_default_of_a_modality_is_documented(modality: str) -> None:
    """The page's row of a modality has the code's numbers, in the order of the columns."""
    *before, flip, contrast, brightness, elastic, noise = rows_of(modality)
    rotation, zoom = before
    assert {"yes": True, "no": False}[flip] == VARIED[modality].flip
    numbers = [float(cell) for cell in (rotation, zoom, contrast, brightness, elastic, noise)]
    assert numbers == [value for value in VARIED[modality] if not isinstance(value, bool)]


@pytest.mark.parametrize("name", WINDOWS)
def test_every_window_is_documented(name: str) -> None:
    """The page's row of a window has its centre and width."""
    assert tuple(float(cell) for cell in rows_of(name)) == WINDOWS[name]
