"""Values of a modality become intensities in [0, 1], 0 the darkest.

CT goes through a window in Hounsfield units; a signal without a unit, as of MR, is scaled by what
it is within the head or the body. Shapes: H rows, W columns.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from client.pictures import Reading
from client.pixels import Pixels

CT_WINDOW = (40.0, 400.0)
"""Centre and width, in Hounsfield units, where a study names no window: soft tissue."""
MR_PERCENTILES = (0.5, 99.5)
"""Percentiles of the signal within the body that become 0 and 1."""
DEVIATIONS = 3.0
"""Standard deviations from the mean of the body that become 0 and 1 of a z-score."""
PLAUSIBLE = (0.05, 0.95)
"""Shares of the pixels that a body may fill."""
DARK = 0.15
"""Median signal beside a body, as a share of the median within, up to which it may be air."""

_SMOOTHING = 2.0  # pixels; less than the scalp is thick, more than noise is wide
_PART_OF_BODY = 0.1  # of the largest part: two legs or breasts, and no ghost beside them


def intensities(
    slices: Sequence[Pixels], unit: str, reading: Reading, *, inverted: bool
) -> list[NDArray[np.float32]]:
    """Bring the slices of one source to [0, 1], all by the same rule and the same numbers.

    Args:
        slices: Values in ``unit``, each of shape (H, W) or (H, W, 3); sizes may differ.
        unit: hounsfield, signal or shown; see ``Stack``.
        reading: The task's window and its rule for a signal.
        inverted: Whether the least value is meant to be the brightest.

    Returns:
        Intensities of the same shapes.
    """
    if unit == "hounsfield":
        # Hounsfield units are physical: MONOCHROME1 (PS3.3 C.8.2.1.1.2) inverts their display.
        return [windowed(values, *(reading.window or CT_WINDOW)) for values in slices]
    if unit == "signal":
        # Turned over first, for the body is brighter than the air in the signal alone.
        return _from_signal([-v if inverted else v for v in map(_float, slices)], reading.intensity)
    # PS3.3 C.7.6.3.1.2: in MONOCHROME1 the lowest value is shown as white
    return [1 - _float(values) if inverted else _float(values) for values in slices]


def windowed(values: Pixels, centre: float, width: float) -> NDArray[np.float32]:
    """Return values through a linear window (PS3.3 C.11.2.1.3.2, LINEAR_EXACT), in [0, 1]."""
    return _scaled(values, centre - width / 2, centre + width / 2)


def body(slices: Sequence[NDArray[np.float32]]) -> list[NDArray[np.bool_]]:
    """Find the head or the body on slices of a signal that is brighter there than in air.

    Otsu's threshold (1979) parts the body from the air: of the square root of the signal, which
    brings dim and bright tissue together, smoothed, and of all slices at once. Of a slice's parts
    the largest is kept, with those of a tenth of its size and more, and holes are filled.

    Args:
        slices: Signal of any scale, each of shape (H, W); sizes may differ.

    Returns:
        True within the body, in the same shapes. True everywhere if what was found is less than
        5 % or more than 95 % of all pixels, which no body fills, or if there is tissue beside it.
    """
    marked = [_largest_parts(above) for above in _above_otsu(slices)]
    values, within = (
        np.concatenate([part.ravel() for part in parts]) for parts in (slices, marked)
    )
    if PLAUSIBLE[0] <= within.mean() <= PLAUSIBLE[1]:
        inside, outside = (np.median(values[part]) - values.min() for part in (within, ~within))
        if outside <= DARK * inside:
            return marked
    return [np.ones(mask.shape, dtype=np.bool_) for mask in marked]


def _from_signal(slices: list[NDArray[np.float32]], rule: str) -> list[NDArray[np.float32]]:
    inside = np.concatenate(
        [values[mask] for values, mask in zip(slices, body(slices), strict=True)]
    )
    if rule == "zscore":
        middle, deviation = (float(f(inside, dtype=np.float64)) for f in (np.mean, np.std))
        low, high = middle - DEVIATIONS * deviation, middle + DEVIATIONS * deviation
    else:
        low, high = (float(value) for value in np.percentile(inside, MR_PERCENTILES))
    if low == high:  # as where fewer than 1 in 200 pixels differ from the background
        low = float(min(values.min() for values in slices))
        high = float(max(values.max() for values in slices))
    return [_scaled(values, low, high) for values in slices]


def _above_otsu(slices: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """Return 1 where a smoothed slice is above the threshold of all slices together."""
    # The brightest hundredth, of fat or vessels, would else draw the threshold into the tissue.
    values = np.concatenate([values.ravel() for values in slices])
    low, high = float(values.min()), float(np.percentile(values, 99))
    if low == high:
        return [np.ones(values.shape, dtype=np.uint8) for values in slices]
    smooth = [
        cv2.GaussianBlur(255 * np.sqrt(_scaled(values, low, high)), (0, 0), _SMOOTHING)
        for values in slices
    ]
    flat = np.concatenate([values.ravel() for values in smooth]).astype(np.uint8)
    threshold, _ = cv2.threshold(flat, 0, 255, cv2.THRESH_OTSU)
    return [(values.astype(np.uint8) > threshold).astype(np.uint8) for values in smooth]


def _largest_parts(above: NDArray[np.uint8]) -> NDArray[np.bool_]:
    outlines, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    kept = [
        outline
        for outline, area in zip(outlines, areas, strict=True)
        if area >= _PART_OF_BODY * max(areas)
    ]
    filled = cv2.drawContours(np.zeros_like(above), kept, -1, color=1, thickness=cv2.FILLED)
    return filled.astype(np.bool_)


def _float(values: Pixels) -> NDArray[np.float32]:
    return values.astype(np.float32, copy=False)


def _scaled(values: Pixels, low: float, high: float) -> NDArray[np.float32]:
    """Return values with ``low`` at 0 and ``high`` at 1, cut off beyond."""
    # Sixteen bits are exact in single precision; what has more is scaled in double.
    scaled = np.subtract(values, low, dtype=np.result_type(values, np.float32))
    scaled /= high - low
    return np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)
