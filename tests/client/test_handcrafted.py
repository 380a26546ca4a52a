"""Laws of the features that nothing has learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.feature import hog, local_binary_pattern
from skimage.transform import resize
from torch import Tensor

from client.cache import Cache
from client.handcrafted import handcrafted_features
from client.stored_pixels import PixelWriter

EDGES = 7 * 7 * 2 * 2 * 9
"""Features of the gradients: blocks of two by two cells of nine directions."""
TEXTURES = (10, 18, 26)
"""Features of the textures of 8, 16 and 24 neighbours."""


def images(n: int = 3, *, channels: int = 1, size: int = 64, seed: int = 0) -> Tensor:
    """Return smooth noise, float16 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 16, 16, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).half()


def grey(pixels: Tensor, number: int = 0) -> NDArray[np.float32]:
    """Return one image, (S, S)."""
    values: NDArray[np.float32] = pixels[number, 0].float().numpy()
    return values


def test_features_are_scikit_images() -> None:
    """Gradients in 8 x 8 cells, and histograms of the patterns of each number of neighbours."""
    pixels = images()
    found = handcrafted_features(pixels)
    assert found.dtype == np.float32
    assert found.shape == (3, EDGES + sum(TEXTURES))
    for number in range(3):
        image = grey(pixels, number)
        edges = hog(image, 9, (8, 8), (2, 2), block_norm="L2-Hys")
        assert found[number, :EDGES] == pytest.approx(edges, abs=1e-6)
        levels = np.rint(image * 255).astype(np.uint8)
        parts = np.split(found[number, EDGES:], np.cumsum(TEXTURES)[:-1])
        for part, neighbours, radius in zip(parts, (8, 16, 24), (1, 2, 3), strict=True):
            codes = local_binary_pattern(levels, neighbours, radius, "uniform")
            expected = np.histogram(codes, np.arange(neighbours + 3), density=True)[0]
            assert part == pytest.approx(expected, abs=1e-6)
            assert part.sum() == pytest.approx(1)


@pytest.mark.parametrize("size", [32, 36, 39, 47, 63, 64, 96, 224, 299])
def test_an_image_has_as_many_features_whatever_its_size(size: int) -> None:
    """Cells grow with the image, whose side need be no multiple of eight."""
    assert handcrafted_features(images(1, size=size)).shape == (1, EDGES + sum(TEXTURES))


@pytest.mark.parametrize("size", [36, 39, 47])
def test_a_side_between_two_multiples_is_resized_to_the_larger(size: int) -> None:
    """The gradients are those of the resized image; the textures are those of the image itself."""
    image = grey(images(1, size=size))
    cell = size // 8 + 1
    found = handcrafted_features(torch.from_numpy(image)[None, None])[0]
    edges = hog(resize(image, (8 * cell, 8 * cell)), 9, (cell, cell), (2, 2), block_norm="L2-Hys")
    assert found[:EDGES] == pytest.approx(edges, abs=1e-6)
    codes = local_binary_pattern(np.rint(image * 255).astype(np.uint8), 8, 1, "uniform")
    expected = np.histogram(codes, np.arange(11), density=True)[0]
    assert found[EDGES : EDGES + 10] == pytest.approx(expected, abs=1e-6)


def test_textures_do_not_turn_with_the_image() -> None:
    """The patterns' histograms of an image that is turned by 90 degrees are nearly the same."""
    pixels = images()
    plain, turned = (handcrafted_features(x) for x in (pixels, pixels.rot90(1, (2, 3))))
    assert turned[:, EDGES:] == pytest.approx(plain[:, EDGES:], abs=0.01)
    assert np.abs(turned[:, :EDGES] - plain[:, :EDGES]).max() > 0.1


def test_edges_do_not_depend_on_brightness_and_contrast() -> None:
    """Gradients know no constant, and their blocks are normalised."""
    pixels = images().float()
    plain, other = (handcrafted_features(x)[:, :EDGES] for x in (pixels, pixels / 2 + 0.3))
    assert other == pytest.approx(plain, abs=1e-3)


def test_textures_do_not_depend_on_brightness() -> None:
    """One more on each of the 256 levels changes no pattern within the image."""
    levels = (images().float() * 200).round()
    plain, other = (handcrafted_features(x / 255)[:, EDGES:] for x in (levels, levels + 40))
    assert other == pytest.approx(plain, abs=0.05)  # outside the image it is dark


def test_textures_tell_noise_from_a_ramp() -> None:
    """Noise has many patterns that are not uniform, a ramp has none within the image."""
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    noise = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    of_ramp, of_noise = (handcrafted_features(x)[0, EDGES + 9] for x in (ramp, noise))
    assert of_ramp < 0.05
    assert of_noise > 0.2


def test_grey_in_three_channels_is_grey() -> None:
    """A colour image whose channels are alike has the features of one of them."""
    one, three = (handcrafted_features(images().expand(-1, n, -1, -1)) for n in (1, 3))
    assert three == pytest.approx(one, abs=2e-3)


def test_images_on_disk_have_the_same_features(tmp_path: Path) -> None:
    """Whether prepared images are kept in memory or in the cache's file."""
    pixels = images(5, size=32)
    writer = PixelWriter(32, Cache(tmp_path, 10**8))
    writer.add(pixels.numpy())
    assert np.array_equal(handcrafted_features(writer.done()), handcrafted_features(pixels))


def test_of_no_image_there_are_none() -> None:
    """A split may be empty."""
    assert len(handcrafted_features(images(0))) == 0
