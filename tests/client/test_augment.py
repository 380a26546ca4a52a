"""Laws of the random changes of training images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from client.augment import _deformation, _moved, augmented
from client.config import SiteConfig
from client.evaluate import evaluate
from client.site import Site
from common import metrics_wire
from common.arrays import digest
from common.imaging import VARIED, Augmentation, Varied, varied
from common.messages import Order, Reply
from common.models import build_model
from common.study import Study

NOTHING = Varied(0, 0, flip=False, contrast=0, brightness=0, elastic=0, noise=0)
MOST = Varied(180, 0.5, flip=True, contrast=1, brightness=1, elastic=100, noise=0.5)
STRONG: dict[str, Any] = {"rotation": 90, "zoom": 0.3, "flip": True, "elastic": 30, "noise": 0.1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, channels: int = 1, *, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(9))


def smooth(count: int = 4, *, height: int = 48, width: int = 48) -> Tensor:
    """Images that resampling hardly blurs."""
    coarse = pictures(count, 1, height=4, width=4)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def turned(x_BCHW: Tensor, angle: float, zoom: float = 1.0) -> Tensor:
    """Move images by a rotation in degrees and a zoom that are given."""
    by = NOTHING._replace(rotation=180, zoom=0.5)
    spread = torch.tensor([[angle / 180], [2 * (zoom - 1)], [0.0]]).expand(3, len(x_BCHW))
    return _moved(x_BCHW, by, spread, None)


# Each change by itself


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_allowed_changes_nothing(channels: int) -> None:
    """With all zeros an image stays what it is, to the last bit."""
    x_BCHW = pictures(channels=channels).half()
    assert torch.equal(augmented(x_BCHW, NOTHING, seeded()), x_BCHW.float())


@pytest.mark.parametrize("quarter", [-1, 1, 2])
def test_a_quarter_turn_moves_pixels_onto_pixels(quarter: int) -> None:
    """A turn by 90 degrees is numpy's: rows become columns, and no value changes."""
    x_BCHW = pictures()
    found = turned(x_BCHW, -90 * quarter)
    assert torch.allclose(found, torch.rot90(x_BCHW, quarter, dims=(2, 3)), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 56)])
@pytest.mark.parametrize(("angle", "zoom"), [(0, 1.3), (17, 1.0), (-30, 0.8), (120, 1.2)])
def test_the_affine_map_is_torchvisions(height: int, width: int, angle: float, zoom: float) -> None:
    """Away from the edges, rotation and zoom give what torchvision's affine gives."""
    x_BCHW = smooth(height=height, width=width)
    expected = V.affine(
        x_BCHW, angle, [0, 0], zoom, [0, 0], interpolation=InterpolationMode.BILINEAR
    )
    inside = V.affine(torch.ones_like(x_BCHW), angle, [0, 0], zoom, [0, 0], fill=[0.0]) > 0
    inside[..., :2, :] = inside[..., -2:, :] = inside[..., :2] = inside[..., -2:] = False
    inside = -torch.nn.functional.max_pool2d(-inside.float(), 5, 1, 2) > 0  # off the cut corners
    found = turned(x_BCHW, angle, zoom)
    assert inside.float().mean() > 0.3
    assert torch.allclose(found[inside], expected[inside], atol=1e-4)


def test_a_zoom_stretches_a_ramp() -> None:
    """On a ramp from the centre, a zoom by s divides each value's distance from the centre by s."""
    places = (torch.arange(64) + 0.5) / 64 - 0.5
    ramp = (0.5 + places).expand(1, 1, 64, 64)
    assert torch.allclose(turned(ramp, 0, 1.25), 0.5 + places.expand(1, 1, 64, 64) / 1.25)


def test_a_flip_is_a_mirror_for_about_half() -> None:
    """With flips alone each image is itself or its mirror image, about half of them the one."""
    x_BCHW = pictures(200, height=8, width=8)
    found = augmented(x_BCHW, NOTHING._replace(flip=True), seeded())
    same = torch.isclose(found, x_BCHW, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(found, x_BCHW.flip(3), atol=1e-5).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 70 < int(same.sum()) < 130


@pytest.mark.parametrize("which", ["contrast", "brightness"])
def test_contrast_and_brightness_are_torchvisions(which: str) -> None:
    """Each image is torchvision's by a factor of its own, within the share that is allowed."""
    x_BCHW = 0.3 + 0.2 * pictures(100)  # so that nothing is cut off
    found = augmented(x_BCHW, NOTHING._replace(**{which: 0.3}), seeded())
    factors = []
    for before, after in zip(x_BCHW, found, strict=True):
        spread = before - before.mean() if which == "contrast" else before
        changed = after - before.mean() if which == "contrast" else after
        factor = ((spread * changed).sum() / spread.square().sum()).item()
        adjust = V.adjust_contrast if which == "contrast" else V.adjust_brightness
        assert torch.allclose(after, adjust(before, factor), atol=1e-5)
        factors.append(factor)
    assert 0.7 <= min(factors) < 0.75
    assert 1.25 < max(factors) <= 1.3


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    """On grey, noise has mean zero and the standard deviation of the study."""
    grey = torch.full((8, 3, 64, 64), 0.5)
    noise = augmented(grey, NOTHING._replace(noise=0.05), seeded()) - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(noise.mean().item()) < 1e-3


def test_a_deformation_is_smooth_and_of_the_size_that_is_asked_for() -> None:
    """At a control point it deviates by the share of the side; neighbours move alike."""
    found = _deformation(torch.Size((500, 1, 65, 65)), 0.03, seeded())
    at_points = found[:, ::16, ::16]
    assert at_points.std().item() == pytest.approx(2 * 0.03, rel=0.02)
    assert found.diff(dim=1).abs().max() < 0.03
    assert found[0].std() > 0


# All changes together


@pytest.mark.parametrize("modality", VARIED)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("most", [False, True])
def test_the_form_stays(modality: str, channels: int, *, most: bool) -> None:
    """Whatever is allowed, an image keeps its shape and its values lie in [0, 1]."""
    x_BCHW = pictures(8, channels, height=24, width=40).half()
    x_BCHW[0], x_BCHW[1] = 0, 1
    found = augmented(x_BCHW, MOST if most else varied(Augmentation(), modality), seeded())
    assert found.shape == x_BCHW.shape
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert bool((found[2:] != x_BCHW[2:]).flatten(1).any(1).all())


def test_an_even_image_shows_no_edge() -> None:
    """No movement brings in a brightness that is not in the image."""
    grey = torch.full((16, 1, 32, 32), 0.5)
    found = augmented(grey, MOST._replace(brightness=0, noise=0), seeded())
    assert torch.allclose(found, grey, atol=1e-6)


def test_the_same_generator_gives_the_same_bits() -> None:
    """A seed fixes every change; another seed gives others; the global generator is the default."""
    x_BCHW = pictures()
    found = [augmented(x_BCHW, MOST, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(augmented(x_BCHW, MOST), found[0])


def test_no_image_weighs_in_the_change_of_another() -> None:
    """An image is varied the same whatever else is in its batch."""
    one, other = pictures(), pictures()
    other[1:] = 1 - other[1:]
    found = [augmented(x_BCHW, MOST, seeded())[0] for x_BCHW in (one, other)]
    assert torch.equal(*found)


def test_what_one_change_may_leaves_the_others_draws() -> None:
    """Whether rotation is allowed does not change by how much brightness is."""
    grey = torch.full((8, 1, 16, 16), 0.4)
    by = NOTHING._replace(brightness=0.2)
    alone = augmented(grey, by, seeded())
    assert torch.allclose(augmented(grey, by._replace(rotation=30), seeded()), alone, atol=1e-6)


# At a site


def varying(study: Study, **changes: Any) -> Study:
    """Return a study whose tasks all vary their training images."""
    asked = Augmentation(**changes)
    tasks = {n: task.model_copy(update={"augmentation": asked}) for n, task in study.tasks.items()}
    return study.model_copy(update={"tasks": tasks})


def reply_of(config: SiteConfig, order: Order) -> Reply:
    reply = Site(config).answer(order).reply
    assert not reply.refusal
    return reply


def digests(reply: Reply) -> dict[str, str]:
    return {group: digest(arrays) for group, arrays in reply.groups.items()}


@pytest.mark.parametrize("train", ["all", "head"])
def test_a_site_trains_the_same_from_one_seed(
    train: str,
    make_study: Callable[..., Study],
    make_hospital: Callable[..., SiteConfig],
    make_order: Callable[..., Order],
) -> None:
    """Two runs of a round agree to the last bit; without augmentation, and later, they differ."""
    plain = make_study(training={"train": train})
    study, config = varying(plain, **STRONG), make_hospital()
    orders = [make_order(s, number=n) for s, n in ((study, 1), (study, 1), (plain, 1), (study, 2))]
    first, again, without, later = (digests(reply_of(config, order)) for order in orders)
    assert first == again
    assert first != without
    assert first != later


@pytest.mark.parametrize("train", ["all", "head"])
def test_held_out_images_are_never_varied(
    train: str,
    make_study: Callable[..., Study],
    make_hospital: Callable[..., SiteConfig],
    make_order: Callable[..., Order],
) -> None:
    """Validation and test are measured on the images as they were prepared."""
    study, config = varying(make_study(training={"train": train}), **STRONG), make_hospital()
    order = make_order(study, "evaluate")
    site = Site(config)
    found = site.answer(order).reply.metrics
    for split in ("validation", "test"):
        images = site.prepare(study).tasks["ct"].splits[split]
        state = evaluate(
            build_model(study), images, "ct", study.tasks["ct"], device=torch.device("cpu")
        )
        expected = metrics_wire.to_arrays(state.of_images)
        assert found["ct", split].keys() == expected.keys()
        for name, values in expected.items():
            assert found["ct", split][name] == pytest.approx(values, rel=1e-5), name
