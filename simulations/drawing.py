"""Brushes for phantoms: smooth outlines, painted polygons, random fields, a scanner's blur.

Points are (x, y) in pixels, x to the right and y down; pictures are (H, W) arrays. Shapes are
painted on a canvas ``FINE`` times finer than the picture, which gives edges their partial volume.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from common.seeds import stream

Points: TypeAlias = NDArray[np.float64]
Field: TypeAlias = NDArray[np.floating]
Mask: TypeAlias = NDArray[np.bool_]
Pixels: TypeAlias = NDArray[np.int16] | NDArray[np.uint16] | NDArray[np.uint8]

FINE = 2


@dataclass(frozen=True)
class Phantom:
    """One synthetic image.

    Attributes:
        pixels: CT: (H, W) int16 in Hounsfield units. MR: (H, W) uint16 of no unit. Fundus:
            (H, W, 3) uint8, red, green, blue.
        mask: (H, W), where the lesion lies; all False when there is none.
        label: The class that a reader would give.
    """

    pixels: Pixels
    mask: Mask
    label: str


@dataclass(frozen=True)
class Scanner:
    """What differs from site to site.

    Attributes:
        name: Manufacturer's model, as DICOM's (0008,1090) gives it.
        noise: Standard deviation of the noise, 1 for a usual device.
        blur: Standard deviation of the point spread function, in pixels.
        gain: Factor on MR's and a camera's signal; on CT, where units are absolute, how much
            of the contrast medium shows.
        bias: Strength in [0, 1] of MR's shading, of a lens's vignette, of CT's cupping.
        tint: Factors on a camera's red, green and blue.
    """

    name: str
    noise: float
    blur: float
    gain: float
    bias: float
    tint: tuple[float, float, float]


def generators(patient: int, view: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return a generator of what a patient's images share, and one of what is this view's own."""
    anatomy = np.random.default_rng(stream(patient, "anatomy"))
    return anatomy, np.random.default_rng(stream(patient, "view", view))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with this probability."""
    return bool(rng.random() < probability)


def ellipse(
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    angle: float = 0.0,
    power: float = 2.0,
    points: int = 64,
) -> Points:
    """Return the outline of an ellipse turned by ``angle`` radians; ``power`` 3 is boxier."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    cos, sin = np.cos(turn), np.sin(turn)
    x = radii[0] * np.sign(cos) * np.abs(cos) ** (2 / power)
    y = radii[1] * np.sign(sin) * np.abs(sin) ** (2 / power)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([centre[0] + c * x - s * y, centre[1] + s * x + c * y], axis=1)


def blob(
    rng: np.random.Generator,
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    angle: float = 0.0,
    rough: float = 0.15,
) -> Points:
    """Return an ellipse whose radius wavers by about the share ``rough``, smoothly."""
    outline = ellipse((0.0, 0.0), radii, angle=angle)
    turn = np.linspace(0, 2 * np.pi, len(outline), endpoint=False)
    order = np.arange(2, 7)
    size = rng.normal(0, 1, order.size) * rough / np.sqrt(order)
    phase = rng.uniform(0, 2 * np.pi, order.size)
    waver = 1 + (size * np.cos(np.outer(turn, order) + phase)).sum(axis=1)
    return np.asarray(outline * np.clip(waver, 0.5, 1.6)[:, None] + np.asarray(centre))


def rounded(corners: Points, *, rounds: int = 3) -> Points:
    """Return a closed smooth curve near these corners (Chaikin's corner cutting, 1974)."""
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        cuts = (0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following)
        corners = np.stack(cuts, axis=1).reshape(-1, 2)
    return corners


def canvas(size: int, value: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a fine float canvas for a picture of ``size`` by ``size``, and its brush."""
    image = Image.new("F", (size * FINE, size * FINE), value)
    return image, ImageDraw.Draw(image)


def paint(brush: ImageDraw.ImageDraw, outline: Points, value: float) -> None:
    """Fill an outline, given in pixels of the picture, with a value."""
    brush.polygon((outline * FINE).ravel().tolist(), fill=value)


def picture(image: Image.Image) -> Field:
    """Return a fine canvas as a picture: the mean over each pixel."""
    return np.asarray(image.reduce(FINE), dtype=np.float32)


def cover(outline: Points, size: int, *, soft: float = 0.0) -> Field:
    """Return the share of each pixel that lies inside, with an edge of ``soft`` pixels."""
    share = np.zeros((size, size), dtype=np.float32)
    margin = 3 * soft + 2
    left, top = np.clip(np.floor(outline.min(axis=0) - margin), 0, size).astype(int).tolist()
    right, low = np.clip(np.ceil(outline.max(axis=0) + margin), 0, size).astype(int).tolist()
    if right <= left or low <= top:
        return share
    image = Image.new("L", ((right - left) * FINE, (low - top) * FINE), 0)
    ImageDraw.Draw(image).polygon(((outline - [left, top]) * FINE).ravel().tolist(), fill=255)
    image = image.reduce(FINE)
    if soft > 0:
        image = image.filter(ImageFilter.GaussianBlur(soft))
    share[top:low, left:right] = np.asarray(image, dtype=np.float32) / 255
    return share


def overlay(field: Field, shapes: list[tuple[Points, float]], *, strength: float = 1.0) -> Field:
    """Return the picture with these outlines filled, later ones on top; ``strength`` 0 is none."""
    size = field.shape[0]
    (values, value_brush), (shares, share_brush) = canvas(size, 0.0), canvas(size, 0.0)
    for outline, value in shapes:
        paint(value_brush, outline, value)
        paint(share_brush, outline, 1.0)
    return field + strength * (picture(values) - picture(shares) * field)


def clouds(rng: np.random.Generator, size: int, scale: float) -> Field:
    """Return a smooth random field of mean 0 and variance about 1, of grain ``scale`` pixels."""
    count = max(4, round(size / scale) + 3)
    coarse = Image.fromarray(rng.standard_normal((count, count), dtype=np.float32))
    border = count / (count - 2)  # the outermost nodes lie beyond the picture
    fine = coarse.resize((round(size * border),) * 2, Image.Resampling.BICUBIC)
    start = (fine.width - size) // 2
    field = np.asarray(fine, dtype=np.float32)[start : start + size, start : start + size]
    return np.asarray((field - field.mean()) / (field.std() + 1e-6))


@lru_cache(maxsize=4)
def frequencies(size: int) -> Field:
    """Return the radial frequency of each coefficient of ``rfft2``, in cycles per pixel."""
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    return np.asarray(np.hypot(y, x), dtype=np.float32)


def kernel_noise(rng: np.random.Generator, size: int, *, peak: float) -> Field:
    """Return noise of variance 1 as filtered back-projection leaves it.

    Its power grows with the frequency until the kernel cuts it off (Riederer and others, Physics in
    Medicine and Biology 23 (1978) 446).

    Args:
        rng: Where the noise comes from.
        size: Height and width in pixels.
        peak: Frequency of the most power, in cycles per pixel.
    """
    frequency = frequencies(size)
    gain = np.sqrt(frequency) * np.exp(-0.25 * (frequency / peak) ** 2)
    white = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    field = np.fft.irfft2(white * gain, s=(size, size))
    return np.asarray(field / field.std(), dtype=np.float32)


def blurred(field: Field, sigma: float) -> Field:
    """Return the field under a Gaussian point spread function of ``sigma`` pixels."""
    if sigma <= 0:
        return field
    size = field.shape[0]
    transfer = np.exp(-2 * (np.pi * sigma * frequencies(size)) ** 2)
    result = np.fft.irfft2(np.fft.rfft2(field) * transfer, s=(size, size))
    return result.astype(np.float32)
