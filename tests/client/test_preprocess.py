"""Laws of preparing an image for the network."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from client.preprocess import normalise, prepare

SHAPES = [(50, 50), (97, 64), (20, 33), (50, 41, 3), (17, 90, 3)]


def picture(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 64])
def test_the_form_is_always_the_same(shape: tuple[int, ...], size: int) -> None:
    """Any image becomes a square of half floats in [0, 1], with one channel or three."""
    x_CHW = prepare(picture(shape), size)
    assert x_CHW.shape == (1 if len(shape) == 2 else 3, size, size)
    assert x_CHW.dtype == torch.float16
    assert 0 <= x_CHW.min() <= x_CHW.max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_stays_constant(shape: tuple[int, ...], value: float) -> None:
    """Resizing neither darkens an edge nor brightens a middle."""
    x_CHW = prepare(np.full(shape, value, np.float32), 32)
    assert bool((x_CHW - value).abs().max() <= 2**-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [24, 32, 64])
def test_resizing_is_pillows(shape: tuple[int, ...], size: int) -> None:
    """Every channel is Pillow's antialiased bilinear result within 1e-3."""
    image = picture(shape)
    channels = np.moveaxis(np.atleast_3d(image), 2, 0)
    expected = [
        Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR)
        for channel in channels
    ]
    found = prepare(image, size).numpy().astype(np.float64)
    assert np.abs(found - np.stack([np.asarray(e) for e in expected])).max() < 1e-3


def test_an_image_of_the_right_size_is_only_rounded() -> None:
    """Where nothing is to resize, the values are the image's own, to half precision."""
    image = picture((32, 32))
    assert np.array_equal(prepare(image, 32)[0].numpy(), image.astype(np.float16))


def test_memory_layout_does_not_matter() -> None:
    """A turned view gives what its copy gives."""
    view = picture((40, 50, 3))[::-1, ::-1].transpose(1, 0, 2)
    assert torch.equal(prepare(view, 32), prepare(view.copy(), 32))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_is_arithmetic(channels: int) -> None:
    """Each of three channels is (x - mean) / std; grey gives the same x to all of them."""
    x_BCHW = torch.from_numpy(picture((2, channels, 5, 6))).to(torch.float16)
    mean, std = np.array([0.1, 0.5, 0.7]), np.array([0.2, 0.3, 2.0])
    found = normalise(x_BCHW, *(torch.tensor(v).float().view(3, 1, 1) for v in (mean, std)))
    assert found.shape == (2, 3, 5, 6)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    x = x_BCHW.numpy().astype(np.float64)
    for c in range(3):
        by_hand = (x[:, c if channels == 3 else 0] - mean[c]) / std[c]
        assert np.abs(found[:, c].numpy() - by_hand).max() < 1e-6
