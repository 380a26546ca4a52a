"""Does a map point at what a clinician marked? Four figures of one image, none of which is enough.

Shapes: H height and W width of the image.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from client.images import read_mask
from client.manifest import Row
from common.errors import ImageError

Mask = NDArray[np.bool_]
THRESHOLD = 0.5
"""A map is marked where it has at least so much of its highest value."""
TOLERANCE = 15
"""Pixels that a highest point may lie beside the mark, in an image whose longer side is 500: the
pointing game's own margin in images of such a size (Zhang et al. 2018)."""


class Localisation(NamedTuple):
    """How a map lies against a mark."""

    pointing: bool
    """Whether the map's highest point lies in the mark, or within the tolerance of it (the pointing
    game, Zhang et al. 2018)."""
    energy: float
    """Share of the map's sum that lies within the mark, in [0, 1] (Wang et al. 2020)."""
    iou: float
    """Intersection over union of mark and thresholded map, in [0, 1]."""
    dice: float
    """Twice the intersection over the sum of both areas, in [0, 1]."""
    area: float
    """Share of the image that is marked, in [0, 1]: the energy of a map that is the same
    everywhere."""
    chance: float
    """Share of the image in which a point would be counted as a hit, in [0, 1]."""


def mark_of(row: Row, height: int, width: int) -> Mask | None:
    """Return what the manifest marks in an image, by the mask or else by the box; None if nothing.

    Args:
        row: The image's row.
        height: Of the image.
        width: Of the image.

    Raises:
        ImageError: The mask cannot be read or has another size than the image, or the box lies
            beyond it.
    """
    if row.mask is not None:
        mask = read_mask(row.mask)
        if mask.shape != (height, width):
            raise ImageError(
                f"{row.mask}: the mask in line {row.line} has {mask.shape[0]} x {mask.shape[1]} "
                f"pixels, its image {height} x {width}.",
                remedy="Draw or export the mask at the size of its image, or empty the cell.",
            )
        return mask
    if row.box is None:
        return None
    x, y, across, down = row.box
    if x + across > width or y + down > height:
        raise ImageError(
            f"{row.path}: the box in line {row.line} reaches beyond its image of {height} x "
            f"{width} pixels.",
            remedy="Give the box as x, y, width and height in the image's own pixels.",
        )
    mask = np.zeros((height, width), np.bool_)
    mask[y : y + down, x : x + across] = True
    return mask


def localised(map_HW: NDArray[np.float32], mask_HW: Mask) -> Localisation | None:
    """Compare a map with a mark.

    Args:
        map_HW: In [0, 1], over the image itself.
        mask_HW: What is marked.

    Returns:
        None where nothing is marked, or where the map is 0 everywhere: neither says a thing.
    """
    total = float(map_HW.sum(dtype=np.float64))
    if not mask_HW.any() or total <= 0:
        return None
    near = _widened(mask_HW)
    marked = map_HW >= THRESHOLD * map_HW.max()
    both = int((marked & mask_HW).sum())
    each = int(marked.sum()) + int(mask_HW.sum())
    return Localisation(
        pointing=bool(near[np.unravel_index(int(map_HW.argmax()), map_HW.shape)]),
        energy=float(map_HW[mask_HW].sum(dtype=np.float64)) / total,
        iou=both / (each - both),
        dice=2 * both / each,
        area=float(mask_HW.mean()),
        chance=float(near.mean()),
    )


def _widened(mask_HW: Mask) -> Mask:
    """Return a mark and what is within the tolerance of it."""
    distance = cv2.distanceTransform((~mask_HW).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(distance <= TOLERANCE * max(mask_HW.shape) / 500, np.bool_)
