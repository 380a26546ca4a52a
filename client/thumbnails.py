"""Small pictures of prepared images, for a report that stays at the hospital."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 144
"""Pixels of a thumbnail's longer side."""
QUALITY = 80
"""Of JPEG, up to 100."""


def thumbnail(pixels: NDArray[np.float16]) -> str:
    """Return the middle image of a row as the network sees it, as a data URI (RFC 2397).

    Args:
        pixels: Prepared images in [0, 1], shape (n, C, S, S).
    """
    x_CHW = pixels[len(pixels) // 2].astype(np.float32)
    levels_HWC = np.rint(x_CHW.transpose(1, 2, 0) * 255).astype(np.uint8)
    small = cv2.resize(levels_HWC, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if small.ndim == 3:  # noqa: PLR2004 - colour
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
