"""How a volume becomes images: some of its slices, or three planes through its centre.

Shapes: N slices, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.pictures import Stack
from client.pixels import check_size
from common.errors import ImageError

VIEWS = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
"""The radiologist's views: the directions in which slices, rows and columns run, as first letters
of superior, posterior, left and inferior. The patient's left is on the right of axial and coronal
views, and the face on the left of a sagittal one."""

_UNTURNED = np.diag([-1.0, -1.0, 1.0])  # from DICOM's axes (x to the left) to NIfTI's


def chosen(count: int, slices: str, listed: Sequence[int] = ()) -> tuple[int, ...]:
    """Return which slices of a volume become images; readers ask before they decode.

    Args:
        count: Number of slices, at least 1.
        slices: The study's choice: one, all, listed, planes, every:n or middle:n.
        listed: Numbers of slices, from 1, as the manifest's row lists them.

    Returns:
        Indices from 0, ascending. All of them for ``planes``, which cut through every slice.

    Raises:
        ImageError: The study expects one image and there are several; nothing is listed, or what
            is listed is not there.
    """
    name, _, number = slices.partition(":")
    if name == "one":
        return _only(count)
    if name == "listed":
        return _listed(count, listed)
    if name == "every":
        return tuple(range(0, count, int(number)))
    if name == "middle":
        first = max(0, (count - int(number)) // 2)
        return tuple(range(first, min(count, first + int(number))))
    return tuple(range(count))


def _only(count: int) -> tuple[int, ...]:
    if count != 1:
        raise ImageError(
            f"it has {count} slices or frames, and the task expects one image",
            remedy="Export each as its own image, or let the study choose: tasks.TASK.slices.",
        )
    return (0,)


def _listed(count: int, listed: Sequence[int]) -> tuple[int, ...]:
    if not listed:
        raise ImageError(
            "its row lists no slices, and the task expects it to",
            remedy="Give their numbers, from 1, in the manifest's column slices.",
        )
    if absent := sorted({number for number in listed if not 1 <= number <= count}):
        raise ImageError(
            f"its row lists slices {', '.join(map(str, absent))}, but it has 1 to {count}",
            remedy="Correct the manifest's column slices.",
        )
    return tuple(sorted({number - 1 for number in listed}))


def part_names(indices: Sequence[int], count: int) -> tuple[str, ...]:
    """Return the names of chosen slices: numbers from 1, and no name for the only one.

    Args:
        indices: Which slices were chosen, from 0.
        count: How many there are.
    """
    return tuple(str(index + 1) for index in indices) if count > 1 else ("",)


def planes(stack: Stack) -> tuple[tuple[str, NDArray[Any]], ...]:
    """Return the axial, coronal and sagittal planes through the middle of a volume.

    Each is turned to the radiologist's view and stretched to the finest spacing of the volume,
    the same in both directions. Oblique volumes are cut along their own axes, each called after
    the direction of the body that it is nearest to.

    Args:
        stack: All slices of a volume, with their spacing and axes.

    Returns:
        Names and values in the stack's unit, each of shape (H, W) or (H, W, 3).

    Raises:
        ImageError: There is one slice, spacing or axes are unknown, or a plane would be too
            large.
    """
    if len(stack.values) == 1:
        raise ImageError("it is one slice and no volume", remedy="List series or volumes.")
    start, spacing = _orientation(stack), stack.spacing
    if start is None or spacing is None or not 0 < min(spacing) <= max(spacing) < np.inf:
        raise ImageError(
            "it says too little of where its slices lie to cut planes through it",
            remedy="Export the original series with its geometry, or choose slices in the study.",
        )
    return tuple((name, _plane(stack.values, spacing, change_of(start, name))) for name in VIEWS)


def change_of(start: NDArray[np.float64], view: str) -> NDArray[np.float64]:
    """Return how axes must be swapped and turned over for a view, as nibabel writes it.

    Args:
        start: How the axes lie now, of nibabel's ``io_orientation``; shape (3, 2).
        view: A name of ``VIEWS``.
    """
    wanted = nib.orientations.axcodes2ornt(tuple(VIEWS[view]))
    change: NDArray[np.float64] = nib.orientations.ornt_transform(start, wanted)
    return change


def _orientation(stack: Stack) -> NDArray[np.float64] | None:
    if stack.axes is None:
        return None
    affine = np.eye(4)
    affine[:3, :3] = _UNTURNED @ stack.axes.T
    start: NDArray[np.float64] = nib.orientations.io_orientation(affine)
    return start if np.isfinite(start).all() else None


def _plane(
    values: NDArray[Any], spacing: tuple[float, float, float], change: NDArray[np.float64]
) -> NDArray[Any]:
    """Return the middle plane of a view, at the finest spacing."""
    turned = nib.orientations.apply_orientation(values, change)
    plane = np.ascontiguousarray(turned[len(turned) // 2])
    steps = np.array(spacing)[np.argsort(change[:, 0])]
    rows, columns = (
        max(1, round(count * step / min(spacing)))
        for count, step in zip(plane.shape[:2], steps[1:], strict=True)
    )
    check_size(rows, columns)
    # Linear, with each pixel's centre where it is: what a viewer's reformation shows.
    stretched: NDArray[Any] = cv2.resize(plane.astype(np.float32), (columns, rows))
    return stretched
