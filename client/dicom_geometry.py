"""Where the slices of a series or the frames of a file lie in the patient.

Coordinates are the patient's, in mm: x to the left, y to the back, z to the head (PS3.3
C.7.6.2.1.1). The normal of a slice is its row direction times its column direction; on axial
slices in the usual view it points to the head.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from common.errors import ImageError

ONE_PLACE = 0.01
"""Slices that are fewer mm apart are at one place."""
GAP = 1.5
"""A distance of so many times the median is a gap: a slice is missing."""
EVEN = 0.05
"""Share of the median by which distances may differ and still be even."""
PARALLEL = 0.01
"""Difference of unit vectors up to which slices are parallel."""
TILT = 0.02
"""Shift of a slice within its plane, as a share of the way to it, from which the gantry was
tilted: about one degree."""
OBLIQUE = 0.8
"""Cosine to an axis of the patient below which a direction belongs to none."""

_DIRECTIONS = 256
"""Directions whose axes are remembered: most slices of a scanner lie alike."""
_X, _Y, _Z = 0, 1, 2
_USUAL = {_Z: (_X, _Y, 1), _Y: (_X, _Z, -1), _X: (_Y, _Z, -1)}
# By the axis that slices are normal to: the axes of rows and of columns in the radiologist's view,
# and which way columns run. Axial: rows to the left, columns to the back. Coronal: rows to the
# left, columns to the feet. Sagittal: rows to the back, columns to the feet.


class Placing(NamedTuple):
    """How slices lie to each other."""

    order: tuple[int, ...]
    """Indices of the slices along their normal."""
    spacing: tuple[float, float, float] | None
    """In mm: between slices along the normal (the median), between rows, between columns."""
    axes: NDArray[np.float64] | None
    """Unit vectors of the slice, row and column directions; see ``Stack.axes``."""
    notes: tuple[str, ...]
    """gaps, mixed_spacing, tilted or no_positions."""


def placed(views: Sequence[Dataset]) -> Placing:
    """Order slices along their normal, whatever their names and numbers are.

    Args:
        views: Headers of slices, or views of frames; see ``views_of``. At least one.

    Returns:
        Their placing. Without positions the order is the given one.

    Raises:
        ImageError: They differ in size, spacing of pixels or direction, or several are at one
            place, as of phases, echoes or repetitions.
    """
    if len(views) > 1:
        _check_alike(views)
    within = _numbers(views[0], "PixelSpacing", 2)  # C.7.6.3 and 10.7.1.3: rows, then columns
    axes = _axes(views[0])
    if len(views) == 1:
        return Placing((0,), _with_pixels(_thickness(views[0]), within), axes, ())
    positions = [_numbers(view, "ImagePositionPatient", 3) for view in views]
    one_header = views[0] is views[1]  # whose position is that of the first frame, if it has one
    if axes is None or one_header or any(position is None for position in positions):
        # Which way the slices follow each other is not known, so neither are the axes.
        spacing = _with_pixels(_thickness(views[0]), within)
        return Placing(tuple(range(len(views))), spacing, None, ("no_positions",))
    places = np.array(positions)
    heights = places @ axes[0]
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    if (count := int((steps < ONE_PLACE).sum())) > 0:
        raise ImageError(
            f"{count} of its {len(views)} slices are at the place of another: it has several "
            "phases, echoes or repetitions",
            remedy="Export one of them as a series of its own.",
        )
    notes = _notes(steps, places[order], axes)
    step = float(np.median(steps))
    return Placing(tuple(order.tolist()), _with_pixels(step, within), axes, notes)


def orientation_of(view: Dataset) -> str:
    """Say how an image lies against the usual view.

    Args:
        view: A header or a view of a frame.

    Returns:
        sideways, mirrored (left and right) or upside_down (also turned by half); nothing when it
        is the usual view, oblique, or says too little.
    """
    axes = _axes(view)
    return _orientation_of_projection(view) if axes is None else _orientation(tuple(axes.ravel()))


@lru_cache(_DIRECTIONS)
def _orientation(axes: tuple[float, ...]) -> str:
    """Judge a slice by its axes, row by row."""
    _, down, right = np.array(axes).reshape(3, 3)
    if min(np.abs(down).max(), np.abs(right).max()) < OBLIQUE:
        return ""
    across, along = int(np.abs(right).argmax()), int(np.abs(down).argmax())
    rows, columns, way = _USUAL[_X + _Y + _Z - across - along]
    if (across, along) != (rows, columns):
        return "sideways"
    if down[along] * way < 0:
        return "upside_down"
    return "mirrored" if right[across] < 0 else ""


def _orientation_of_projection(view: Dataset) -> str:
    """Judge a radiograph by the letters of its row and column directions (C.7.6.1.1.1)."""
    letters = view.get("PatientOrientation") or ()
    if isinstance(letters, str) or len(letters) != 2:  # noqa: PLR2004 - of rows and of columns
        return ""
    across, along = (str(text)[:1] for text in letters)
    if across in ("H", "F"):
        return "sideways"
    if along == "H":
        return "upside_down"
    return "mirrored" if (across, along) == ("R", "F") else ""


def _check_alike(views: Sequence[Dataset]) -> None:
    for what, name, count, tolerance in (
        ("sizes", "Rows", 1, 0),
        ("sizes", "Columns", 1, 0),
        ("spacings of pixels", "PixelSpacing", 2, 1e-3),
        ("directions", "ImageOrientationPatient", 6, PARALLEL),
    ):
        found = [_numbers(view, name, count) for view in views]
        known = [numbers for numbers in found if numbers is not None]
        apart = bool(known) and np.ptp(np.array(known), axis=0).max() > tolerance
        if apart or 0 < len(known) < len(views):
            raise ImageError(
                f"its slices are of several {what}", remedy="Export each set as its own series."
            )


def _notes(
    steps: NDArray[np.float64], places: NDArray[np.float64], axes: NDArray[np.float64]
) -> tuple[str, ...]:
    median = np.median(steps)
    gaps = steps > GAP * median
    uneven = np.abs(steps[~gaps] - median) > EVEN * median
    way = places[-1] - places[0]
    aside = np.linalg.norm(way - (way @ axes[0]) * axes[0])
    found = {
        "gaps": gaps.any(),
        "mixed_spacing": uneven.any(),
        "tilted": aside > TILT * np.linalg.norm(way),
    }
    return tuple(name for name, holds in found.items() if holds)


def _axes(view: Dataset) -> NDArray[np.float64] | None:
    """Return the slice, row and column directions (C.7.6.2.1.1), or None if they are none."""
    directions = _numbers(view, "ImageOrientationPatient", 6)
    return None if directions is None else _axes_along(tuple(directions))


@lru_cache(_DIRECTIONS)
def _axes_along(directions: tuple[float, ...]) -> NDArray[np.float64] | None:
    """Return the axes of rows and columns that run in these directions; nobody may change them."""
    right, down = np.array(directions).reshape(2, 3)  # along a row, and along a column
    products = np.array([right @ right, down @ down, right @ down])
    if np.abs(products - (1, 1, 0)).max() > PARALLEL:
        return None
    axes = np.array([np.cross(right, down), down, right])
    unit: NDArray[np.float64] = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    unit.setflags(write=False)
    return unit


def _thickness(view: Dataset) -> float | None:
    # C.7.6.16.2.1: from centre to centre; of one slice, C.7.6.2.1: how thick it is
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        found = _numbers(view, name, 1)
        if found is not None and found[0] > 0:
            return float(found[0])
    return None


def _with_pixels(
    step: float | None, within: NDArray[np.float64] | None
) -> tuple[float, float, float] | None:
    if step is None or within is None or within.min() <= 0:
        return None
    return step, float(within[0]), float(within[1])


def _numbers(view: Dataset, name: str, count: int) -> NDArray[np.float64] | None:
    """Return an element's numbers, or None where they are missing, too few or not finite."""
    if name not in view:
        return None
    try:
        numbers = np.atleast_1d(np.array(view.get(name), dtype=np.float64))
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
