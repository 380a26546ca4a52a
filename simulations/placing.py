"""Puts images of a data set into a hospital's folder: linked, or as another scanner shows them."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import ImageError
from simulations.dealing import Row

FAST = 1
"""zlib's level for PNG: noise hardly shrinks, and time counts."""


def place(row: Row, dataset: Path, folder: Path, gamma: float | None) -> Row:
    """Put a row's image and mask into a hospital's folder; return the row with its new path."""
    if row.mask:
        _link(dataset / row.mask, folder / row.mask)
    if gamma is None:
        _link(dataset / row.path, folder / row.path)
        return row
    path = row.path if row.path.lower().endswith(".png") else f"{row.path}.png"
    _shift(dataset / row.path, folder / path, gamma)
    return replace(row, path=path)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be; masks may be shared by rows."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _shift(source: Path, target: Path, gamma: float) -> None:
    """Write an 8-bit image as PNG, as a scanner with another gamma would show it."""
    table = (255 * (np.arange(256) / 255) ** gamma + 0.5).astype(np.uint8).tolist()
    try:
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):
                raise ImageError(
                    f"{source} has more than 8 bits a channel, so no gamma is applied to it.",
                    remedy="Leave 'scanner' out of the skew.",
                )
            plain = image.convert("L" if image.mode in {"1", "L"} else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ImageError(
            f"{source} is no image that Pillow reads, so no gamma can be applied to it.",
            remedy="Leave 'scanner' out of the skew, or the image out of the table.",
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # never write through a link into the data set
    plain.point(table * len(plain.getbands())).save(target, compress_level=FAST)
