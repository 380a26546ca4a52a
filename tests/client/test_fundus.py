"""Laws of what is done to photographs of the fundus."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from client.fundus import GREY, Disc, ben_graham, cropped, mirrored, retina_of

Pixels = NDArray[np.float32]


def photograph(
    disc: Disc, shape: tuple[int, int] = (300, 400), *, lit: float = 0.6, noise: float = 0.0
) -> Pixels:
    """Draw a reddish disc on black, darker to one side, with noise all over."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = np.hypot(rows - disc.y, columns - disc.x) <= disc.radius
    shade = 1 - 0.5 * np.clip((columns - disc.x) / disc.radius, 0, 1)
    image = (lit * inside * shade)[..., None] * np.array([1.0, 0.6, 0.3])
    return np.clip(image + noise * rng.normal(size=image.shape), 0, 1).astype(np.float32)


def assert_found(image: Pixels, disc: Disc) -> None:
    found = retina_of(image)
    assert found is not None
    assert found.radius == pytest.approx(disc.radius, rel=0.02)
    assert np.hypot(found.x - disc.x, found.y - disc.y) < 0.02 * disc.radius


@pytest.mark.parametrize(
    ("disc", "shape"),
    [
        (Disc(200, 150, 120), (300, 400)),
        (Disc(150, 160, 130), (300, 400)),
        (Disc(500, 400, 350), (800, 1050)),  # looked for in a smaller image
        (Disc(200, 150, 190), (300, 400)),  # cut at the top and the bottom
        (Disc(160, 160, 195), (320, 320)),  # cut on all four sides
        (Disc(230, 150, 145), (300, 360)),  # cut at one side
        (Disc(90, 120, 80), (300, 400)),  # an eighth of the image
    ],
)
@pytest.mark.parametrize(("lit", "noise"), [(0.9, 0.003), (0.6, 0.0), (0.06, 0.001)])
def test_the_disc_is_found(disc: Disc, shape: tuple[int, int], lit: float, noise: float) -> None:
    """Centre and radius are right within 2 % of the radius, in bright and in dark photographs."""
    assert_found(photograph(disc, shape, lit=lit, noise=noise), disc)


def test_noise_is_not_taken_for_a_retina() -> None:
    """Where the black is noise of 0.02, a disc of a third of the image is found all the same."""
    disc = Disc(200, 150, 120)
    assert_found(photograph(disc, lit=0.9, noise=0.02), disc)


def test_a_grey_photograph_has_the_same_disc() -> None:
    """Without colour the disc is found just as well."""
    disc = Disc(200, 150, 120)
    assert_found(photograph(disc).max(axis=2), disc)


def test_lettering_does_not_count() -> None:
    """Letters at the border and the camera's notch leave the disc where it is."""
    disc = Disc(200, 150, 120)
    image = photograph(disc)
    for left in range(5, 70, 8):
        image[10:20, left : left + 3] = 1  # letters
    image[100:108, 315:327] = 0.5  # a notch at the rim
    assert_found(image, disc)


def test_a_crescent_of_glare_does_not_hide_the_rest() -> None:
    """Where one edge is far brighter, the dim rest of the disc still belongs to it."""
    disc = Disc(160, 160, 150)
    image = photograph(disc, (320, 320), lit=0.08)
    image[:, :50] *= 10
    assert_found(image, disc)


@pytest.mark.parametrize("shape", [(200, 200), (120, 300), (7, 5), (1, 1)])
def test_a_cropped_image_has_no_disc(shape: tuple[int, int]) -> None:
    """Where no black surrounds the retina, there is no disc to be cut out."""
    image = np.random.default_rng(1).uniform(0.3, 0.9, (*shape, 3)).astype(np.float32)
    assert retina_of(image) is None


def test_what_is_no_disc_is_none() -> None:
    """Black, letters alone, a thin bar and a triangle are not taken for a retina."""
    black = np.zeros((200, 300, 3), np.float32)
    letters, bar, triangle = black.copy(), black.copy(), black.copy()
    letters[10:20, 10:60:6] = 1
    bar[90:110] = 0.8
    triangle[np.tri(200, 300, dtype=bool)] = 0.8
    for image in (black, letters, bar, triangle):
        assert retina_of(image) is None


@pytest.mark.parametrize("channels", [0, 3])
def test_a_crop_is_the_square_around_the_disc(channels: int) -> None:
    """Within the image a crop is a slice of it; beyond, it is black."""
    rng = np.random.default_rng(2)
    image = rng.random((60, 80, channels) if channels else (60, 80), np.float32) + 0.1
    inner, disc = cropped(image, Disc(39.5, 29.5, 20))
    assert np.array_equal(inner, image[10:50, 20:60])
    assert disc == Disc(19.5, 19.5, 20)
    outer, disc = cropped(image, Disc(39.5, 29.5, 50))
    assert outer.shape[:2] == (100, 100)
    assert np.array_equal(outer[20:80, 10:90], image)
    assert outer.sum() == pytest.approx(image.sum())
    assert disc == Disc(49.5, 49.5, 50)


@pytest.mark.parametrize("disc", [None, Disc(60.0, 40.0, 30.0)])
def test_a_mirror_image_of_a_mirror_image_is_the_image(disc: Disc | None) -> None:
    """Mirrored twice, an image and its disc are what they were; mirrored once, the disc is too."""
    image = photograph(Disc(60, 40, 30), (80, 160))
    once, moved = mirrored(image, disc)
    assert np.array_equal(once, image[:, ::-1])
    if moved is not None:
        assert_found(once, moved)
    again, back = mirrored(once, moved)
    assert np.array_equal(again, image)
    assert back == disc


def test_a_crop_is_found_again() -> None:
    """The disc of a crop fills it."""
    square, _ = cropped(photograph(Disc(230, 140, 120)), Disc(230, 140, 120))
    assert_found(square, Disc(119.5, 119.5, 120))


@pytest.mark.parametrize("shape", [(60, 80), (60, 80, 3)])
def test_ben_grahams_form_is_arithmetic(shape: tuple[int, ...]) -> None:
    """Without a disc it is 4 (x - blurred x) + 128 / 255, cut to [0, 1], blurred as SciPy does."""
    image = np.random.default_rng(3).uniform(0.4, 0.6, shape).astype(np.float32)
    blurred = gaussian_filter(image.astype(float), 1.0, mode="mirror", axes=(0, 1))
    expected = np.clip(4 * (image - blurred) + 128 / 255, 0, 1)
    found = ben_graham(image, None)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 2e-3


def test_ben_grahams_form_of_a_large_image_is_the_same() -> None:
    """Where the blur is made in a smaller image, the result is that of a blur in the large one."""
    image = np.full((1300, 1300), 0.5, np.float32)
    coarse = np.random.default_rng(6).normal(0, 0.02, (65, 65))
    image += np.kron(coarse, np.ones((20, 20))).astype(np.float32)
    blurred = gaussian_filter(image.astype(float), 650 / 30, mode="mirror")
    expected = np.clip(4 * (image - blurred) + 128 / 255, 0, 1)
    inner = np.s_[100:-100, 100:-100]
    assert np.abs(ben_graham(image, None) - expected)[inner].max() < 5e-3


def test_ben_grahams_form_of_an_even_disc_is_grey() -> None:
    """An even retina is grey to its edge, also where the image cuts it, and all around it."""
    disc = Disc(199.5, 149.5, 190)
    image = np.zeros((400, 400, 3), np.float32)
    image[50:350] = photograph(disc, lit=0.0)
    rows, columns = np.mgrid[:300, :400]
    image[50:350][np.hypot(rows - 149.5, columns - 199.5) <= 190] = (0.7, 0.4, 0.2)
    found = ben_graham(image, Disc(199.5, 199.5, 190))
    assert np.abs(found - GREY).max() < 1e-4


def test_the_rim_becomes_grey() -> None:
    """Beyond 0.9 of the radius nothing of the image is left."""
    image = np.random.default_rng(4).random((200, 200, 3), np.float32)
    found = ben_graham(image, Disc(99.5, 99.5, 100))
    rows, columns = np.mgrid[:200, :200]
    beyond = np.hypot(rows - 99.5, columns - 99.5) > 90
    assert np.abs(found[beyond] - GREY).max() < 1e-6
    assert found[~beyond].std() > 0.1


@pytest.mark.parametrize("folder", ["fundus_idrid", "fundus_mexico"])
def test_real_photographs_have_discs(folder: str, shared: Path) -> None:
    """Of real photographs the disc is found; those of one camera agree on its radius."""
    files = sorted((shared / "data" / folder / "images").iterdir())[::8]
    images = [np.asarray(Image.open(file), np.float32) / 255 for file in files]
    found = [retina_of(image) for image in images]
    radii = [disc.radius / max(i.shape[:2]) for disc, i in zip(found, images, strict=True) if disc]
    assert len(radii) >= len(found) - 1
    if folder == "fundus_idrid":
        assert max(radii) < 1.05 * min(radii)
    assert min(radii) > 0.4
    assert max(radii) < 0.65
