"""What every image must be, whatever file it came from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ImageError

Pixels = NDArray[Any]

SAME_VALUE = "the same value"
"""Words of a refusal by which the gate tells an image that shows nothing from a damaged one."""

MAX_PIXELS = 64_000_000
"""An image with more is refused from its header, before a byte of it is decoded."""
MAX_VOXELS = 2**28
"""A source whose images have more pixels together is refused likewise: 1 GiB of float32."""
MAX_BYTES = 2**30
"""Bytes that a file read as a whole may have, or unfold to by what its header claims."""


def check_size(rows: int, columns: int) -> None:
    """Refuse a size of which no image can be, or be decoded safely, before it is decoded."""
    if rows < 1 or columns < 1:
        raise ImageError(f"it has {rows} rows and {columns} columns", remedy="Export it again.")
    if rows * columns > MAX_PIXELS:
        raise ImageError(
            f"{rows} x {columns} pixels are more than {MAX_PIXELS:,}",
            remedy="Export it at a lower resolution.",
        )


def check_voxels(slices: int, rows: int, columns: int) -> None:
    """Refuse slices or frames that take too much memory together, before they are decoded."""
    check_size(rows, columns)
    if slices * rows * columns > MAX_VOXELS:
        raise ImageError(
            f"{slices} slices of {rows} x {columns} pixels are more than {MAX_VOXELS:,} in all",
            remedy="Take fewer slices of it (tasks.TASK.slices), or export it in parts.",
        )


def check_varied(pixels: Pixels) -> None:
    """Refuse values that are not finite, and an image that shows nothing."""
    if not np.isfinite(pixels).all():
        raise ImageError("some values are not finite", remedy="Export the image again.")
    if pixels.min() == pixels.max():
        raise ImageError(f"every pixel has {SAME_VALUE}", remedy="Take it out of the manifest.")
