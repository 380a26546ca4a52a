"""Looks for text that is burned into an image: signs of one height that stand in a line.

A scanner or a viewer writes names, dates and letters of the side near the border. A network can
read them, and a report with a thumbnail would show them. The detector finds lines of signs by their
shape alone and reads none. It needs OpenCV and no torch: it runs where the images are read.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER = 0.25
"""Share of the rows, at the top and at the bottom, in which text is looked for."""
LEAST_SIDE = 64
"""Pixels of the shorter side; smaller images have no room for text."""
LEAST_SIGNS = 5
"""Signs that make a line."""
LARGEST = 1024
"""Pixels of the longer side, beyond which an image is made smaller first."""
_CONTRAST = 0.2  # of the full range, between a stroke and what surrounds it
_STROKE = 9  # pixels: strokes are thinner
_HEIGHTS = (6, 48)  # pixels, of a sign
_WIDEST = 1.6  # width of a sign over its height
_FILLED = (0.12, 0.9)  # share of a sign's box that its strokes fill
_LIKE_HEIGHT = 0.25  # largest difference of two signs of a line, as a share of their height
_MOST_SIGNS = 500  # more of them are a texture
_GAP = 1.2  # largest gap between two signs of a line, in heights
_OVERLAP = 0.2  # of two signs of a line, and largest difference of their feet, in heights
_LIKE_GREY = 0.12  # largest difference of the grey values of two signs of a line


class _Signs(NamedTuple):
    """Boxes of what might be signs, n of them, from left to right; in pixels."""

    left: NDArray[np.float64]
    top: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    grey: NDArray[np.float64]


_NONE = _Signs(*np.empty((len(_Signs._fields), 0)))


def signs_of_text(values: NDArray[np.float32]) -> int:
    """Return how many signs stand in text-like lines near the top and bottom of a picture.

    Args:
        values: In [0, 1], shape (H, W) or (H, W, 3), red first.

    Returns:
        0 where there is no line of at least ``LEAST_SIGNS`` signs.
    """
    return sum(len(_signs_in_lines(_signs(strip))) for _, strip in _strips(values))


def boxes_of_text(values: NDArray[np.float32]) -> list[tuple[float, float, float, float]]:
    """Return where the signs are that ``signs_of_text`` counts.

    Args:
        values: In [0, 1], shape (H, W) or (H, W, 3), red first.

    Returns:
        Left, top, width and height of each sign, in pixels of the picture.
    """
    found = []
    for first, strip in _strips(values):
        signs = _signs(strip)
        for i in _signs_in_lines(signs):
            box = (signs.left[i], signs.top[i] + first, signs.width[i], signs.height[i])
            found.append(box)
    scale = max(1.0, max(values.shape[:2]) / LARGEST)
    return [(x * scale, y * scale, w * scale, h * scale) for x, y, w, h in found]


def _strips(values: NDArray[np.float32]) -> list[tuple[int, NDArray[np.uint8]]]:
    """Return the top and the bottom in grey levels, each with the number of its first row."""
    if min(values.shape[:2]) < LEAST_SIDE:
        return []
    levels_HW = _levels(values)
    high = round(len(levels_HW) * BORDER)
    return [(0, levels_HW[:high]), (len(levels_HW) - high, levels_HW[-high:])]


def _levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the picture in 256 grey levels, made smaller where it is large."""
    levels = cv2.convertScaleAbs(values, alpha=255)
    if levels.ndim == 3:  # noqa: PLR2004 - colour
        red, green, blue = cv2.split(levels)
        levels = cv2.max(cv2.max(red, green), blue)  # so that yellow and green text is bright
    scale = LARGEST / max(levels.shape)
    if scale < 1:
        levels = cv2.resize(levels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(levels, np.uint8)


def _signs(levels_HW: NDArray[np.uint8]) -> _Signs:
    """Return what has the shape of a sign: bright strokes on dark ground, or the reverse."""
    dark = cv2.mean(levels_HW)[0] < 128  # noqa: PLR2004 - the middle of 256 levels
    element = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    how = cv2.MORPH_TOPHAT if dark else cv2.MORPH_BLACKHAT
    strokes_HW = cv2.morphologyEx(levels_HW, how, element)
    _, marked_HW = cv2.threshold(strokes_HW, _CONTRAST * 255, 1, cv2.THRESH_BINARY)
    marked = cv2.countNonZero(marked_HW)
    if marked < LEAST_SIGNS * _HEIGHTS[0]:  # a stroke of each sign, one pixel wide
        return _NONE
    # Labels of 16 bits are faster, where there cannot be more components than that.
    few = marked < 2**16
    count, labels_HW = cv2.connectedComponents(
        marked_HW, connectivity=8, ltype=cv2.CV_16U if few else cv2.CV_32S
    )
    if count - 1 < LEAST_SIGNS:  # one of them is the background
        return _NONE
    places = np.flatnonzero(marked_HW.view(np.bool_))
    y, x = np.divmod(places, marked_HW.shape[1])
    component = labels_HW.ravel()[places].astype(np.intp) - 1
    return _likely(component, x, y, levels_HW.ravel()[places])


def _likely(
    component: NDArray[np.intp],
    x: NDArray[np.intp],
    y: NDArray[np.intp],
    level: NDArray[np.uint8],
) -> _Signs:
    """Return the components whose boxes might be those of signs.

    Args:
        component: Of each pixel, from 0; each has one at least.
        x: Of each pixel. Few are marked, so they are faster than statistics of the whole strip.
        y: Of each pixel, ascending.
        level: Grey level of each pixel.
    """
    count = int(component.max()) + 1
    top, bottom = np.empty(count, np.intp), np.empty(count, np.intp)
    top[component[::-1]] = y[::-1]  # of several pixels, the last one's stays
    bottom[component] = y
    height = bottom - top + 1
    likely = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1])
    if np.count_nonzero(likely) < LEAST_SIGNS:
        return _NONE
    left, right = np.full(count, x.max()), np.zeros(count, np.intp)
    np.minimum.at(left, component, x)
    np.maximum.at(right, component, x)
    width, area = right - left + 1, np.bincount(component)
    filled = area / (width * height)
    likely &= (width <= _WIDEST * height) & (filled >= _FILLED[0]) & (filled <= _FILLED[1])
    order = np.flatnonzero(likely)
    if not LEAST_SIGNS <= len(order) <= _MOST_SIGNS:
        return _NONE
    order = order[np.argsort(left[order].astype(np.float64))]
    grey = np.bincount(component, level) / area / 255
    return _Signs(*(of[order].astype(np.float64) for of in (left, top, width, height, grey)))


def _signs_in_lines(signs: _Signs) -> list[int]:
    """Return which signs stand in lines that are long enough."""
    if len(signs.left) < LEAST_SIGNS:
        return []
    follows = _follows(signs)
    found, used = [], np.zeros(len(follows), bool)
    for first in range(len(follows)):
        if used[first]:
            continue
        line = [first]
        while (fits := follows[line[-1]] & ~used).any():
            line.append(int(np.argmax(fits)))
            used[line[-1]] = True
        if len(line) >= LEAST_SIGNS:
            found += line
    return found


def _follows(signs: _Signs) -> NDArray[np.bool_]:
    """Return which sign may come behind which other in a line, (n, n): the second of the two."""
    height = signs.height[:, None]
    gap = signs.left - (signs.left + signs.width)[:, None]
    foot = signs.top + signs.height
    fits = (gap > -_OVERLAP * height) & (gap < _GAP * height)
    fits &= np.abs(signs.height - height) <= _LIKE_HEIGHT * height
    fits &= np.abs(foot - foot[:, None]) <= _OVERLAP * height
    fits &= np.abs(signs.grey - signs.grey[:, None]) <= _LIKE_GREY
    return np.triu(fits, 1)
