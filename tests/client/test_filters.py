"""Laws of equalisation and noise filters."""

from typing import Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from client.filters import denoised, equalised

Pixels = NDArray[np.float32]
SHAPES = [(64, 48), (33, 20), (64, 48, 3), (8, 8)]


def picture(shape: tuple[int, ...], low: float = 0.2, high: float = 0.7) -> Pixels:
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def lightness(image: Pixels) -> Pixels:
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", ["global", "clahe", "median", "nlmeans"])
def test_the_form_stays(shape: tuple[int, ...], step: str) -> None:
    """A filter keeps shape, type and range, and leaves what it was given as it was."""
    image = picture(shape, 0, 1)[::-1]  # a view, turned over
    before = image.copy()
    found = (equalised if step in ("global", "clahe") else denoised)(image, step)  # type: ignore[operator]
    assert found.shape == shape
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert np.array_equal(image, before)


def test_global_equalisation_is_a_sum_by_hand() -> None:
    """A level becomes the share of the pixels up to it, those of the least level not counted."""
    image = picture((64, 48))
    levels = np.rint(image * 255).astype(int)
    counts = np.bincount(levels.ravel(), minlength=256)
    least = counts[levels.min()]
    expected = (counts.cumsum() - least) / (counts.sum() - least)
    assert np.abs(equalised(image, "global") - expected[levels]).max() <= 0.51 / 255


def test_adaptive_equalisation_is_opencvs() -> None:
    """On grey it is OpenCV's CLAHE of 8 bits, with a clip limit of 2 on 8 x 8 tiles."""
    image = picture((64, 48))
    expected = cv2.createCLAHE(2.0, (8, 8)).apply(np.rint(image * 255).astype(np.uint8))
    assert np.array_equal(np.rint(equalised(image, "clahe") * 255), expected)


def test_adaptive_equalisation_bounds_the_contrast_of_noise() -> None:
    """Faint structure becomes stronger; faint noise on an even ground does not fill the range."""
    rows = np.linspace(0, 12 * np.pi, 256, dtype=np.float32)
    waves = np.tile(0.5 + 0.03 * np.sin(rows), (256, 1))
    assert equalised(waves, "clahe").std() > 1.5 * waves.std()
    noise = (0.5 + 0.004 * np.random.default_rng(0).normal(size=(256, 256))).astype(np.float32)
    assert equalised(noise, "clahe").std() < 0.05


@pytest.mark.parametrize("how", ["global", "clahe"])
def test_equalisation_keeps_colours(how: Literal["global", "clahe"]) -> None:
    """Of a colour image the lightness alone changes."""
    image = picture((64, 48, 3), 0.35, 0.45)
    before, after = lightness(image), lightness(equalised(image, how))
    grey = equalised((before[..., 0] / 100).astype(np.float32), how)
    inside = (equalised(image, how).min(axis=2) > 0) & (equalised(image, how).max(axis=2) < 1)
    assert inside.mean() > 0.5
    assert np.abs(after[inside, 1:] - before[inside, 1:]).max() < 0.5
    assert np.abs(after[inside, 0] / 100 - grey[inside]).max() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_the_median_is_scipys(shape: tuple[int, ...]) -> None:
    """Every channel is the median of 3 x 3 pixels, edges repeated, without any rounding."""
    image = picture(shape)
    size = (3, 3, 1)[: len(shape)]
    assert np.array_equal(denoised(image, "median"), median_filter(image, size, mode="nearest"))


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
def test_non_local_means_take_noise_and_leave_edges(shape: tuple[int, ...]) -> None:
    """Noise of 0.02 falls to less than half; a step of the image stays a step."""
    clean = np.full(shape, 0.3, np.float32)
    clean[:, 32:] = 0.7
    rng = np.random.default_rng(5)
    noisy = (clean + 0.02 * rng.normal(size=shape)).astype(np.float32)
    found = denoised(noisy, "nlmeans")
    assert (found - clean).std() < 0.5 * (noisy - clean).std()
    assert np.abs(found[:, 31:33] - clean[:, 31:33]).max() < 0.1


def test_non_local_means_keep_more_than_eight_bits() -> None:
    """An even image stays within half a level of 16 bits of what it was."""
    image = np.full((40, 40), 0.123456, np.float32)
    assert np.abs(denoised(image, "nlmeans") - image).max() <= 0.51 / 65535
