"""A picture for the clinician: the map over its image, with what the network says. It stays here.

The image keeps its own resolution; a colour bar stands beside it and words below it. Shapes: H
height and W width of the image.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from client.localisation import Mask

Floats = NDArray[np.float32]
Colours = NDArray[np.uint8]

OPACITY = 0.55
"""Of the map at its highest; it fades to nothing where the map is 0, so that the image shows."""
COLOURS = cv2.COLORMAP_VIRIDIS
"""Even in lightness, and told apart with any colour vision."""
LEAST_WIDTH = 320
"""Pixels that the words have at least, whatever the image has."""
NOT_A_DEVICE = "Not a medical device. A map shows what moved the network, not where disease is."
_FONT = "fonts/ttf/DejaVuSans.ttf"  # of matplotlib, which the package grad-cam brings
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def overlay(image: Floats, map_HW: Floats, words: Sequence[str], mask: Mask | None = None) -> bytes:
    """Return a PNG of an image with a map over it.

    Args:
        image: Values in [0, 1], as they were windowed, shape (H, W) or (H, W, 3), red first.
        map_HW: In [0, 1], over the image itself.
        words: Lines that stand below; long ones are broken.
        mask: What a clinician marked: it gets an outline.
    """
    height, width = image.shape[:2]
    size = max(14, round(max(width, LEAST_WIDTH) / 45))
    picture = Image.fromarray(_outlined(blended(image, map_HW), mask))
    bar = _bar(height, size)
    wide = max(LEAST_WIDTH, width + bar.width)
    lines = [part for text in (*words, NOT_A_DEVICE) for part in _broken(text, wide - size, size)]
    step = round(1.35 * size)
    canvas = Image.new("RGB", (wide, max(height, bar.height) + step * len(lines) + size), _PAPER)
    canvas.paste(picture, (0, 0))
    canvas.paste(bar, (width, 0))
    brush = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        place = (size // 2, max(height, bar.height) + size // 2 + number * step)
        brush.text(place, line, _INK, font=_font(size))
    held = io.BytesIO()
    canvas.save(held, "PNG")
    return held.getvalue()


def blended(image: Floats, map_HW: Floats) -> Colours:
    """Return an image with a map's colours over it, shape (H, W, 3), red first."""
    levels = np.rint(255 * image).astype(np.uint8)
    base_HWC = np.repeat(levels[..., None], 3, axis=2) if image.ndim == 2 else levels  # noqa: PLR2004 - grey
    alpha_HW1 = OPACITY * map_HW[..., None]
    mixed = base_HWC * (1 - alpha_HW1) + _colours_of(map_HW) * alpha_HW1
    return np.asarray(np.rint(mixed), np.uint8)


def _colours_of(map_HW: Floats) -> Colours:
    coloured = cv2.applyColorMap(np.rint(255 * map_HW).astype(np.uint8), COLOURS)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), np.uint8)


def _outlined(picture: Colours, mask: Mask | None) -> Colours:
    """Draw a mask's outline, white within black, so that it shows on any ground."""
    if mask is None:
        return picture
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thin = max(1, round(max(picture.shape) / 640))
    drawn: Any = np.ascontiguousarray(picture)
    for colour, thick in (((0, 0, 0), thin + 2), ((255, 255, 255), thin)):
        drawn = cv2.drawContours(drawn, outlines, -1, colour, thick)
    return np.asarray(drawn, np.uint8)


def _bar(height: int, size: int) -> Image.Image:
    """Draw the colour bar, with what its ends mean."""
    tall = max(height, 6 * size)
    bar = Image.new("RGB", (5 * size, tall), _PAPER)
    ramp = np.linspace(1, 0, tall - 2 * size, dtype=np.float32)[:, None].repeat(size, axis=1)
    bar.paste(Image.fromarray(_colours_of(ramp)), (size, size))
    brush = ImageDraw.Draw(bar)
    for share, text in ((0.0, "1"), (0.5, "0.5"), (1.0, "0")):
        place = (2.4 * size, size + share * (tall - 2 * size - 1))
        brush.text(place, text, _INK, font=_font(size), anchor="lm")
    return bar


def _broken(text: str, width: int, size: int) -> list[str]:
    """Break a text into lines that are no wider than so many pixels."""
    font, lines = _font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / _FONT, size)
