"""Laws of ``client/geometry``: it moves pixels as the preparation does, and back."""

from itertools import product

import cv2
import numpy as np
import pytest

from client.geometry import geometry_of, to_image, to_network
from client.preprocess import prepare
from common.imaging import Preparation


def retina(height: int, width: int, *, x: float = 0.5, radius: float = 0.45) -> np.ndarray:
    """Return a disc on black with a bright spot off its centre."""
    image = np.zeros((height, width), np.float32)
    centre = round(x * width), height // 2
    side = round(radius * min(height, width))
    cv2.circle(image, centre, side, 0.5, thickness=-1)
    cv2.circle(image, (centre[0] + side // 2, centre[1] - side // 3), side // 8, 1.0, thickness=-1)
    return image


@pytest.mark.parametrize(
    ("crop", "mirror", "aspect", "side", "x"),
    list(product(("none", "retina"), (False, True), ("stretch", "pad"), ("L", "R"), (0.5, 0.35))),
)
def test_a_plane_goes_where_the_preparation_puts_the_image(
    crop: str, aspect: str, side: str, x: float, *, mirror: bool
) -> None:
    """Of every crop, mirror and padding the plane equals the prepared image to a pixel's blur."""
    image = retina(300, 420, x=x)
    steps = Preparation.model_validate({"crop": crop, "mirror": mirror, "aspect": aspect})
    expected = prepare(image, 96, steps, "fundus", side)[0].numpy()
    found = to_network(image, geometry_of(image, 96, steps, "fundus", side))
    assert np.abs(found - expected).mean() < 0.004
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.995


@pytest.mark.parametrize(("height", "width"), [(300, 420), (700, 513), (60, 80)])
@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize("side", ["L", "R"])
def test_what_the_network_sees_comes_back_to_its_place(
    height: int, width: int, aspect: str, side: str
) -> None:
    """Forward and back again a smooth image is itself, at any size, and the spot where it was."""
    image = cv2.GaussianBlur(retina(height, width), (0, 0), width / 40)
    steps = Preparation.model_validate({"mirror": True, "aspect": aspect})
    geometry = geometry_of(image, 128, steps, "fundus", side)
    back = to_image(to_network(image, geometry), geometry)
    assert back.shape == image.shape
    assert np.abs(back - image).max() < 0.12
    spots = [np.array(np.unravel_index(plane.argmax(), plane.shape)) for plane in (image, back)]
    assert np.abs(spots[0] - spots[1]).max() <= 0.03 * width


def test_a_map_at_the_grid_is_enlarged_on_the_way() -> None:
    """One cell of a 4 x 4 grid comes to lie over its quarter of each side."""
    grid = np.zeros((4, 4), np.float32)
    grid[1, 2] = 1
    image = np.random.default_rng(0).random((200, 400), np.float32)
    found = to_image(grid, geometry_of(image, 96))
    highest = np.unravel_index(found.argmax(), found.shape)
    assert np.abs(np.subtract(highest, (75, 250))).max() <= 2
    assert found[75, 250] == pytest.approx(1, abs=0.02)
    assert found[10, 10] == 0
    assert found.mean() == pytest.approx(1 / 16, rel=0.01)


def test_a_small_mark_keeps_its_share() -> None:
    """A mask of one pixel is no 0 in the network's square, but the share that it has there."""
    mask = np.zeros((400, 400), np.bool_)
    mask[100, 300] = True
    found = to_network(mask, geometry_of(np.zeros((400, 400), np.float32), 100))
    assert found.sum() * 16 == pytest.approx(1)
    assert found[25, 75] > 0
