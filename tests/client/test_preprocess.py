"""Laws of preparing an image for the network."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from client.filters import denoised, equalised
from client.fundus import ben_graham, cropped, retina_of
from client.preprocess import normalise, prepare
from common.imaging import VARIED, Preparation

SHAPES = [(50, 50), (97, 64), (20, 33), (50, 41, 3), (17, 90, 3)]


PLAIN: dict[str, Any] = {"crop": "none", "mirror": False}
"""A table that asks for nothing of what fundus photographs get by default."""


def picture(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def photograph() -> NDArray[np.float32]:
    """Draw a retina's disc, a bright spot on its right half, off the centre of a black image."""
    rows, columns = np.mgrid[:90, :120]
    image = np.zeros((90, 120, 3), np.float32)
    image[np.hypot(rows - 42, columns - 55) <= 40] = (0.6, 0.4, 0.2)
    image[np.hypot(rows - 42, columns - 75) <= 6] = (0.9, 0.8, 0.5)
    return image


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


# What a table of preparation asks for


@pytest.mark.parametrize("modality", VARIED)
@pytest.mark.parametrize("laterality", ["", "L", "R"])
@pytest.mark.parametrize("shape", [(97, 64), (50, 41, 3)])
def test_without_a_table_there_is_only_the_resize(
    modality: str, laterality: str, shape: tuple[int, ...]
) -> None:
    """An image of any modality and side becomes torchvision's resize of it, to the last bit."""
    image = picture(shape)
    x_CHW = torch.from_numpy(np.moveaxis(np.atleast_3d(image), 2, 0).copy())
    expected = F.resize(x_CHW, [32, 32], InterpolationMode.BILINEAR, antialias=True)
    found = prepare(image, 32, None, modality, laterality)
    assert torch.equal(found, expected.clamp(0, 1).half())
    table = Preparation() if modality != "fundus" else Preparation(**PLAIN)
    assert torch.equal(prepare(image, 32, table, modality, laterality), found)


def test_photographs_of_the_fundus_are_cropped_and_mirrored_by_default() -> None:
    """An empty table cuts a fundus to its disc and mirrors left eyes; other modalities stay."""
    image = photograph()
    disc = retina_of(image)
    assert disc is not None
    square, _ = cropped(image, disc)
    assert torch.equal(prepare(image, 32, Preparation(), "fundus", "R"), prepare(square, 32))
    left = prepare(image, 32, Preparation(), "fundus", "L")
    assert torch.equal(left, prepare(square[:, ::-1], 32))
    assert left[0, :, :16].max() > left[0, :, 16:].max()


def test_mirrored_twice_is_the_same() -> None:
    """A left eye that was mirrored beforehand comes out as the right eye that it looks like."""
    image, table = photograph(), Preparation(mirror=True)
    left = prepare(image[:, ::-1], 40, table, "other", "L")
    assert torch.equal(left, prepare(image, 40, table, "other", "R"))
    assert torch.equal(left, prepare(image, 40, table, "other", ""))
    assert not torch.equal(left, prepare(image, 40, table, "other", "L"))


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((40, 80), (16, 32)), ((80, 40, 3), (32, 16)), ((33, 33), (32, 32)), ((3, 90), (1, 32))],
)
def test_padding_keeps_proportions(shape: tuple[int, ...], inner: tuple[int, int]) -> None:
    """The longer side fills the square; the shorter has equally much black on both sides."""
    image = 0.1 + 0.9 * picture(shape)
    found = prepare(image, 32, Preparation(**PLAIN, aspect="pad"))
    x_CHW = torch.from_numpy(np.moveaxis(np.atleast_3d(image), 2, 0).copy()).float()
    expected = F.resize(x_CHW, list(inner), InterpolationMode.BILINEAR, antialias=True)
    top, left = (32 - inner[0]) // 2, (32 - inner[1]) // 2
    middle = found[:, top : top + inner[0], left : left + inner[1]]
    assert torch.allclose(middle.float(), expected.float(), atol=1e-3)
    assert found.count_nonzero() == middle.numel()


def test_a_crop_that_is_square_needs_no_padding() -> None:
    """After a crop to the retina, both aspects are the same."""
    found = [
        prepare(photograph(), 32, Preparation(aspect=aspect), "fundus")
        for aspect in get_args(Preparation.model_fields["aspect"].annotation)
    ]
    assert torch.equal(*found)


def test_steps_come_in_their_order() -> None:
    """Crop, Ben Graham's form, local contrast, noise filter, equalisation: as if one by one."""
    image = photograph()
    table = Preparation(
        crop="retina", ben_graham=True, local_contrast=True, denoise="median", equalise="global"
    )
    disc = retina_of(image)
    assert disc is not None
    image, disc = cropped(image, disc)
    image = denoised(equalised(ben_graham(image, disc), "clahe"), "median")
    assert torch.equal(prepare(photograph(), 32, table), prepare(equalised(image, "global"), 32))


@pytest.mark.parametrize("shape", [(45, 60), (45, 60, 3), (9, 7, 3)])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop", "retina"),
        ("mirror", True),
        ("local_contrast", True),
        ("ben_graham", True),
        ("equalise", "global"),
        ("equalise", "clahe"),
        ("denoise", "median"),
        ("denoise", "nlmeans"),
        ("aspect", "pad"),
    ],
)
def test_every_step_gives_the_same_form(shape: tuple[int, ...], key: str, value: object) -> None:
    """Whatever a table asks for, the result is a square of half floats in [0, 1]."""
    image = picture(shape)
    before = image.copy()
    found = prepare(image, 32, Preparation(**(PLAIN | {key: value})), "fundus", "L")
    assert np.array_equal(image, before)
    assert found.shape == (1 if len(shape) == 2 else 3, 32, 32)
    assert found.dtype == torch.float16
    assert 0 <= found.min() <= found.max() <= 1


def test_every_key_of_a_table_does_something() -> None:
    """Each key, set alone, changes a photograph of a left eye."""
    image = photograph()[:, :110] + 0.05 * picture((90, 110, 3))
    image[20:40, 40:60] *= 0.5
    base = prepare(image, 32, Preparation(**PLAIN), "other", "L")
    for key, value in [
        ("crop", "retina"),
        ("mirror", True),
        ("local_contrast", True),
        ("ben_graham", True),
        ("equalise", "clahe"),
        ("denoise", "nlmeans"),
        ("aspect", "pad"),
    ]:
        table = Preparation(**(PLAIN | {key: value}))
        assert not torch.equal(prepare(image, 32, table, "other", "L"), base), key
