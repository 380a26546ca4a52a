"""Histogram equalisation and noise filters of a whole image; OpenCV does the work.

Shapes: H height, W width. A colour image is equalised by its lightness (L of CIELAB), so that its
colours stay.
"""

import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

CLIP_LIMIT = 2.0
"""Of CLAHE: no grey level of a tile counts more than so many times its even share."""
TILES = 8
"""Of CLAHE: tiles in each direction, whatever the image's size."""
STRENGTH = 0.012
"""Of non-local means: mean difference of two patches, in [0, 1], at which the one counts 1 / e in
the other's mean. It suits noise of a standard deviation of 0.01 to 0.02."""
PATCH, SEARCH = 7, 21
"""Of non-local means, in pixels: the sides of a patch, and of the square it is looked for in, those
of Buades et al. (2005)."""


def equalised(image: Pixels, how: Literal["global", "clahe"]) -> Pixels:
    """Spread the grey levels of an image, all alike or tile by tile.

    Both work in 256 levels. OpenCV equalises globally in no others; CLAHE takes 16 bits too, but
    counts 65,536 levels then, of which a tile fills none often enough for the clip limit to bind,
    and bare noise becomes full contrast.

    Args:
        image: Intensities in [0, 1], shape (H, W) or (H, W, 3), red first.
        how: global, or clahe: contrast-limited, adaptive (Zuiderveld 1994).

    Returns:
        Intensities in [0, 1], of the same shape.
    """
    if image.ndim == 2:  # noqa: PLR2004 - grey
        return _equalised(image, how)
    lab_HW3 = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2LAB)
    light_HW = (lab_HW3[..., 0] / 100).astype(np.float32)  # of floats, L is 0 to 100
    lab_HW3[..., 0] = 100 * _equalised(light_HW, how)
    return np.clip(cv2.cvtColor(lab_HW3, cv2.COLOR_LAB2RGB), 0, 1).astype(np.float32)


def _equalised(grey_HW: Pixels, how: Literal["global", "clahe"]) -> Pixels:
    levels_HW = np.rint(np.clip(grey_HW, 0, 1) * 255).astype(np.uint8)
    if how == "global":
        found = cv2.equalizeHist(levels_HW)
    else:
        found = cv2.createCLAHE(CLIP_LIMIT, (TILES, TILES)).apply(levels_HW)
    return np.divide(found, 255, dtype=np.float32)


def denoised(image: Pixels, how: Literal["median", "nlmeans"]) -> Pixels:
    """Take noise out of an image.

    Args:
        image: Intensities in [0, 1], shape (H, W) or (H, W, 3).
        how: median, of 3 x 3 pixels; or nlmeans, which works in 16 bits.

    Returns:
        Intensities in [0, 1], of the same shape.
    """
    image = np.ascontiguousarray(image)
    if how == "median":
        return cv2.medianBlur(image, 3).astype(np.float32, copy=False)
    levels = np.rint(np.clip(image, 0, 1) * 65535).astype(np.uint16)
    # In 16 bits OpenCV compares patches by absolute differences alone; it adds the differences
    # of the channels up, and divides the square of the sum by their number.
    strength = STRENGTH * 65535 * math.sqrt(1 if image.ndim == 2 else 3)  # noqa: PLR2004 - grey
    found = cv2.fastNlMeansDenoising(levels, [strength], None, PATCH, SEARCH, cv2.NORM_L1)
    return np.divide(found, 65535, dtype=np.float32)
