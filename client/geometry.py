"""Where a pixel of an image comes to lie in what the network sees of it, and back.

It follows the steps of ``client/preprocess.py`` that move pixels: the crop to the retina, the
mirror, and the resize. Shapes: H height and W width of an image, S the study's image size.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from client.fundus import retina_of
from common.imaging import Preparation, prepared

Floats = NDArray[np.float32]


class Geometry(NamedTuple):
    """How one image was cut, mirrored and resized; all in pixels."""

    height: int
    width: int
    """Of the image, as of H and W."""
    crop: tuple[int, int, int, int]
    """Left, top, width and height of what is cut out; it may reach beyond the image."""
    mirrored: bool
    """Whether left and right are exchanged after the crop."""
    inner: tuple[int, int, int, int]
    """Left, top, width and height of what the crop becomes within the square."""
    size: int
    """Side of the square, S."""


def geometry_of(
    image: Floats,
    size: int,
    preparation: Preparation | None = None,
    modality: str = "other",
    laterality: str = "",
) -> Geometry:
    """Return the geometry of what ``preprocess.prepare`` makes of an image.

    Args:
        image: Values in [0, 1], shape (H, W) or (H, W, 3).
        size: Height and width of the prepared image.
        preparation: What the task asks for; None is the resize alone.
        modality: The task's.
        laterality: L where the image is known to be of a left eye.
    """
    steps = prepared(preparation, modality)
    height, width = image.shape[:2]
    crop = (0, 0, width, height)
    disc = retina_of(image) if steps.crop == "retina" else None
    if disc is not None:
        side = max(1, round(2 * disc.radius))  # as fundus.cropped
        crop = (round(disc.x + 0.5 - disc.radius), round(disc.y + 0.5 - disc.radius), side, side)
    mirror = bool(steps.mirror) and laterality == "L"
    inner = _padding(crop[3], crop[2], size) if steps.aspect == "pad" else (0, 0, size, size)
    return Geometry(height, width, crop, mirror, inner, size)


def to_network(plane: NDArray[np.bool_] | Floats, geometry: Geometry) -> Floats:
    """Bring a mask of an image, or a map over it, to where the network sees it.

    Args:
        plane: Shape (H, W), a mask or values in [0, 1].
        geometry: Of that image.

    Returns:
        The share of each pixel that is marked, in [0, 1], shape (S, S).
    """
    left, top, width, height = geometry.crop
    cut = np.zeros((height, width), np.float32)
    rows, columns = _overlap(top, height, geometry.height), _overlap(left, width, geometry.width)
    cut[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = plane[
        rows, columns
    ]
    if geometry.mirrored:
        cut = np.ascontiguousarray(cut[:, ::-1])
    x, y, inner_width, inner_height = geometry.inner
    shrinks = inner_width < width or inner_height < height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    square = np.zeros((geometry.size, geometry.size), np.float32)
    square[y : y + inner_height, x : x + inner_width] = cv2.resize(
        cut, (inner_width, inner_height), interpolation=how
    )
    return square


def to_image(plane_SS: Floats, geometry: Geometry) -> Floats:
    """Lay a map of what the network saw over the image itself; 0 where it saw nothing.

    Args:
        plane_SS: Values in [0, 1], of any square size: a map at the network's grid will do.
        geometry: Of the image.

    Returns:
        Values in [0, 1], shape (H, W), by bilinear interpolation between the centres of cells.
    """
    left, top, width, height = geometry.crop
    x, y, inner_width, inner_height = geometry.inner
    cells = len(plane_SS) / geometry.size
    # From the centre of a pixel of the crop to a place among the centres of the map's cells.
    columns = ((np.arange(width) + 0.5) * inner_width / width + x) * cells - 0.5
    rows = ((np.arange(height) + 0.5) * inner_height / height + y) * cells - 0.5
    if geometry.mirrored:
        columns = columns[::-1]
    grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    cut = cv2.remap(
        plane_SS.astype(np.float32), *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    found = np.zeros((geometry.height, geometry.width), np.float32)
    inside = _overlap(top, height, geometry.height), _overlap(left, width, geometry.width)
    found[inside] = cut[
        inside[0].start - top : inside[0].stop - top,
        inside[1].start - left : inside[1].stop - left,
    ]
    return found


def _padding(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Return where an image resized in proportion lies in the square, as ``preprocess`` pads it."""
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (size - inner_width) // 2, (size - inner_height) // 2, inner_width, inner_height


def _overlap(start: int, length: int, bound: int) -> slice:
    """Return the part of a stretch that lies within [0, bound); it may be empty."""
    first = min(max(start, 0), bound)
    return slice(first, max(first, min(start + length, bound)))
