"""Laws of ``client/localisation``: four figures, each a sum by hand; marks that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.localisation import localised, mark_of
from client.manifest import Row
from common.errors import ImageError


def row(**said: Any) -> Row:
    values = {"line": 7, "path": Path("scan.png"), "label": 1, "patient": "p", "unit": "p"}
    return Row(**(values | said))


def test_a_map_within_the_mark_is_perfect() -> None:
    """Where map and mark are the same square, every figure is 1 and chance is its area."""
    mask = np.zeros((100, 100), np.bool_)
    mask[20:40, 50:80] = True
    found = localised(mask.astype(np.float32), mask)
    assert found is not None
    assert found.pointing
    assert (found.energy, found.iou, found.dice) == (1, 1, 1)
    assert found.area == pytest.approx(0.06)
    assert found.chance == pytest.approx((26 * 36 - 4) / 1e4, rel=0.02)


def test_figures_are_sums_by_hand() -> None:
    """Energy counts the map's values, overlap the pixels of at least half of the highest."""
    values = np.array([[1.0, 0.5, 0.4, 0.1]], np.float32)
    mask = np.array([[False, True, True, False]])
    found = localised(values, mask)
    assert found is not None
    assert not found.pointing
    assert found.energy == pytest.approx(0.9 / 2.0)
    assert found.iou == pytest.approx(1 / 3)
    assert found.dice == pytest.approx(2 / 4)
    assert (found.area, found.chance) == (0.5, 0.5)


def test_a_map_of_one_value_has_the_energy_of_its_area() -> None:
    """Chance level of the energy is the share of the image that is marked."""
    mask = np.random.default_rng(0).random((64, 48)) < 0.3
    found = localised(np.full((64, 48), 0.7, np.float32), mask)
    assert found is not None
    assert found.energy == pytest.approx(found.area)


def test_chance_is_how_often_a_random_point_hits() -> None:
    """Single points at random are hits as often as ``chance`` says."""
    mask = np.zeros((60, 60), np.bool_)
    mask[10:30, 20:50] = True
    rng, hits = np.random.default_rng(0), []
    for _ in range(2000):
        point = np.zeros((60, 60), np.float32)
        point[tuple(rng.integers(0, 60, 2))] = 1
        found = localised(point, mask)
        assert found is not None
        hits.append(found.pointing)
    assert np.mean(hits) == pytest.approx(found.chance, abs=0.04)


def test_nothing_is_said_of_an_empty_map_or_mark() -> None:
    """Neither has a figure: a 0 would mean something."""
    some, none = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    assert localised(none, some > 0) is None
    assert localised(some, none > 0) is None


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """The refusal has a code, names the line and both sizes, and says what to do."""
    Image.fromarray(np.full((10, 12), 255, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match="line 7 has 10 x 12") as refusal:
        mark_of(row(mask=tmp_path / "mask.png"), 20, 24)
    assert refusal.value.code == "image"
    assert "size of its image" in refusal.value.remedy
    assert str(tmp_path) not in refusal.value.public
    mask = mark_of(row(mask=tmp_path / "mask.png"), 10, 12)
    assert mask is not None
    assert mask.all()


def test_a_box_becomes_its_pixels() -> None:
    """x, y, width and height count from the upper left corner; beyond the image it is refused."""
    mask = mark_of(row(box=(2, 1, 3, 4)), 6, 8)
    assert mask is not None
    assert mask.sum() == 12
    assert mask[1:5, 2:5].all()
    assert mark_of(row(), 6, 8) is None
    with pytest.raises(ImageError, match="reaches beyond"):
        mark_of(row(box=(6, 1, 3, 4)), 6, 8)
