"""Laws of ``client/overlay``: the image stays itself under the map, and the words are legible."""

import io

import numpy as np
import pytest
from PIL import Image

from client.overlay import LEAST_WIDTH, OPACITY, blended, overlay

WORDS = ("melanoma, probability 0.93", "Line 17 of the manifest; labelled melanoma.")


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("shape", [(320, 320), (2000, 1600), (60, 80), (240, 700, 3)])
def test_the_image_keeps_its_own_resolution(shape: tuple[int, ...]) -> None:
    """Where the map is 0, each pixel of the overlay is the image's; bar and words stand beside."""
    image = np.random.default_rng(0).random(shape, np.float32)
    height, width = shape[:2]
    found = opened(overlay(image, np.zeros((height, width), np.float32), WORDS))
    assert found.shape[0] > height
    assert found.shape[1] >= max(LEAST_WIDTH, width + 14)
    levels = np.rint(255 * (image if image.ndim == 3 else image[..., None].repeat(3, 2)))
    np.testing.assert_array_equal(found[:height, :width], levels)


@pytest.mark.parametrize("side", [320, 2000])
def test_words_are_legible_beside_small_and_large_images(side: int) -> None:
    """The darkest rows of the words are as high as a letter, in proportion to the image."""
    blank = np.ones((side, side), np.float32)
    found = opened(overlay(blank, np.zeros_like(blank), WORDS))
    below = (found[side:].min(axis=2) < 100).any(axis=1)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[0, below, 0])))[::2]
    assert runs.max() >= max(10, side / 70)


def test_the_map_fades_to_nothing() -> None:
    """At its highest the map covers a share of the image; half-way, half of that share."""
    image = np.zeros((1, 3), np.float32)
    found = blended(image, np.array([[0, 0.5, 1]], np.float32)).astype(float)
    assert found[0, 0].sum() == 0
    assert found[0, 2] == pytest.approx(OPACITY * np.array([253, 231, 37]), abs=3)
    assert found[0, 1].sum() < found[0, 2].sum()


def test_a_mask_gets_an_outline_and_nothing_else() -> None:
    """White within black around the mark; its middle, and what is far from it, stay."""
    image = np.full((300, 300), 0.5, np.float32)
    mask = np.zeros((300, 300), np.bool_)
    mask[100:200, 120:220] = True
    plain, marked = (
        opened(overlay(image, np.zeros_like(image), WORDS, some)) for some in (None, mask)
    )
    assert (marked[100, 120:220] == 255).all()
    changed = (plain != marked).any(axis=2)
    assert not changed[105:195, 125:215].any()
    assert not changed[:95].any()
    assert not changed[205:].any()
