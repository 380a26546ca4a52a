"""Photographs of the fundus: where the retina's disc is, a crop to it, and Ben Graham's form.

Shapes: H height, W width, S side of a square. Positions are those of pixel centres: the first
pixel of a row lies at 0.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

SIDE = 512
"""The disc is looked for in an image of at most so many pixels a side."""
BLACK = 1.5 / 255
"""What surrounds the retina is at least this dark; noise and JPEG leave more than 0 there."""
SHARE_OF_LIT = 0.2
"""The retina is brighter than so much of what its lit part is."""
LIT = 70
"""The percentile, of the pixels that are not black, that stands for the lit part of the retina."""
SMOOTHING = 1 / 320
"""Standard deviation of the blur before that, as a share of the image's longer side."""
LETTERING = 0.05
"""Letters, and the notch of the camera, are thinner than so much of the image's longer side."""
LEAST_FILLED = 0.75
"""A disc fills at least so much of its circle as far as that lies within the image."""
LEAST_RADIUS = 0.25
"""A disc has at least so much of the image's shorter side as its radius."""

GREY = 128 / 255
"""Of Ben Graham: what stands for no difference from the mean."""
KEPT = 0.9
"""Of Ben Graham: share of the radius that is kept; the rim beyond is bright by its edge alone."""
BLURRED_RADIUS = 300
"""Of Ben Graham: the radius, in pixels, of the images that he blurred."""


class Disc(NamedTuple):
    """The circle of the retina, in pixels; it may reach beyond the image."""

    x: float
    y: float
    radius: float


def retina_of(image: Pixels) -> Disc | None:
    """Find the disc of the retina, also where the image cuts it off or half of it is dark.

    What is brighter than a share of the lit retina, without what is thin and without all but its
    largest part, gets the smallest circle that holds it.

    Args:
        image: Intensities in [0, 1], shape (H, W) or (H, W, 3).

    Returns:
        The disc; None where there is none to be seen, as in an image that is cropped already.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    bright_HW = small if small.ndim == 2 else small.max(axis=2)  # noqa: PLR2004 - grey
    smooth_HW = cv2.GaussianBlur(bright_HW, (0, 0), SMOOTHING * max(size))
    lit = _largest_part(smooth_HW.astype(np.float32))
    if lit is None:
        return None
    (x, y), radius = cv2.minEnclosingCircle(cv2.findNonZero(lit))
    if not _plausible(lit, x, y, radius):
        return None
    return Disc((x + 0.5) / scale - 0.5, (y + 0.5) / scale - 0.5, (radius + 0.5) / scale)


def _largest_part(bright_HW: Pixels) -> NDArray[np.uint8] | None:
    """Return the largest part that is lit, 1 where it is; None where nothing is."""
    seen = bright_HW[bright_HW > BLACK]
    if not seen.size:
        return None
    least = max(SHARE_OF_LIT * float(np.percentile(seen, LIT)), BLACK)
    lit = (bright_HW > least).astype(np.uint8)
    width = round(LETTERING * max(lit.shape)) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    lit = cv2.morphologyEx(lit, cv2.MORPH_OPEN, kernel).astype(np.uint8)
    parts, labels, statistics, _ = cv2.connectedComponentsWithStats(lit)
    if parts == 1:  # the background alone
        return None
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    return np.equal(labels, largest).astype(np.uint8)


def _plausible(lit: NDArray[np.uint8], x: float, y: float, radius: float) -> bool:
    """Say whether a circle is a disc's: filled, not tiny, and not around the whole image."""
    height, width = lit.shape
    circle = cv2.circle(np.zeros_like(lit), (round(x), round(y)), round(radius), 1, thickness=-1)
    corners = np.hypot([x, x, width - 1 - x, width - 1 - x], [y, height - 1 - y] * 2)
    return bool(
        lit.sum() >= LEAST_FILLED * circle.sum()
        and radius >= LEAST_RADIUS * min(height, width)
        and corners.max() > radius + 1
    )


def cropped(image: Pixels, disc: Disc) -> tuple[Pixels, Disc]:
    """Cut a square around a disc; where the image ends before the disc does, it becomes black.

    Args:
        image: Shape (H, W) or (H, W, 3).
        disc: Where the retina is.

    Returns:
        The square, shape (S, S) or (S, S, 3) with S twice the radius, and where the disc is in it.
    """
    height, width = image.shape[:2]
    side = max(1, round(2 * disc.radius))
    left, top = round(disc.x + 0.5 - disc.radius), round(disc.y + 0.5 - disc.radius)
    inside = image[max(0, top) : top + side, max(0, left) : left + side]
    square = cv2.copyMakeBorder(
        np.ascontiguousarray(inside),
        max(0, -top),
        max(0, top + side - height),
        max(0, -left),
        max(0, left + side - width),
        cv2.BORDER_CONSTANT,
        value=(0, 0, 0),
    )
    return square.astype(np.float32, copy=False), Disc(disc.x - left, disc.y - top, disc.radius)


def mirrored(image: Pixels, disc: Disc | None) -> tuple[Pixels, Disc | None]:
    """Exchange left and right: a left eye then looks like a right one.

    Args:
        image: Shape (H, W) or (H, W, 3).
        disc: Where the retina is, if that is known.
    """
    moved = None if disc is None else disc._replace(x=image.shape[1] - 1 - disc.x)
    return image[:, ::-1], moved


def ben_graham(image: Pixels, disc: Disc | None) -> Pixels:
    """Take the local mean away and enlarge what is left, as in B. Graham's solution of 2015.

    Kaggle's Diabetic Retinopathy Detection, first place: 4 (image - blurred) + 128 of 255, blurred
    with a standard deviation of radius / 30; what lies beyond 0.9 of the radius becomes grey. Black
    pixels are no part of the retina, so they do not count in its means and become grey too: else
    the edge at which an image cuts the disc would be the brightest thing in it.

    Args:
        image: Intensities in [0, 1], shape (H, W) or (H, W, 3).
        disc: Where the retina is. None: half of the shorter side is the radius, and no rim is
            made grey.

    Returns:
        Intensities in [0, 1], 128 / 255 where a pixel is its neighbourhood's mean.
    """
    radius = min(image.shape[:2]) / 2 if disc is None else disc.radius
    image_HWC = image[..., None] if image.ndim == 2 else image  # noqa: PLR2004 - grey
    seen_HW = image_HWC.max(axis=2) > BLACK
    mean_HWC = _local_mean(image_HWC, seen_HW, radius)
    if disc is not None:
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        seen_HW &= np.hypot(rows - disc.y, columns - disc.x) <= KEPT * radius
    found_HWC = np.clip(4 * (image_HWC - mean_HWC) + GREY, 0, 1)
    found_HWC[~seen_HW] = GREY
    found: Pixels = found_HWC.reshape(image.shape).astype(np.float32, copy=False)
    return found


def _local_mean(image_HWC: Pixels, seen_HW: NDArray[np.bool_], radius: float) -> Pixels:
    """Return the Gaussian mean around each pixel of what is seen, shape (H, W, C).

    A wide blur is the same in a small image, and takes seconds in a large one: no image is blurred
    at a larger radius than Ben Graham's were.
    """
    height, width = seen_HW.shape
    scale = min(1.0, BLURRED_RADIUS / radius)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    both_HWC = np.dstack([image_HWC * seen_HW[..., None], seen_HW]).astype(np.float32)
    small_HWC = cv2.resize(both_HWC, size, interpolation=cv2.INTER_AREA)
    sums_HWC = cv2.GaussianBlur(small_HWC, (0, 0), scale * radius / 30)
    means_HWC = sums_HWC[..., :-1] / np.maximum(sums_HWC[..., -1:], np.float32(1e-6))
    found = cv2.resize(means_HWC, (width, height), interpolation=cv2.INTER_LINEAR)
    return found.reshape(image_HWC.shape).astype(np.float32, copy=False)
