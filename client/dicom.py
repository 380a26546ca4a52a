"""A DICOM file, of one frame or of many, becomes a stack of slices and the facts beside it.

The ways of a frame: ``dicom_header`` says whether the file is an image, ``dicom_frames`` what
holds for each frame, ``dicom_geometry`` how frames lie in the patient, ``dicom_pixels`` decodes
those that are wanted, and ``dicom_values`` brings them to their unit.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from client.dicom_facts import facts_of
from client.dicom_frames import views_of
from client.dicom_geometry import Placing, placed
from client.dicom_header import check_image, check_modality, frame_count, read_file
from client.dicom_pixels import stored_frames
from client.dicom_values import Unit, Values, unit_of, values_of
from client.pictures import Facts, Reading, Stack
from client.pixels import check_voxels
from client.volumes import chosen, part_names
from common.errors import ImageError


class Block(NamedTuple):
    """Slices in their order and unit."""

    values: NDArray[np.float32]
    """Shape (N, H, W), or (N, H, W, 3) with red first."""
    unit: Unit
    low: float
    """Least value of all, as of ``Facts``."""
    high: float


def read_dicom(path: Path, reading: Reading, listed: Sequence[int] = ()) -> tuple[Stack, Facts]:
    """Read a DICOM file.

    Frames with positions are ordered along their normal, as slices of a series are; others keep
    the order of the file. Slices are counted from 1 in this order.

    Args:
        path: The file.
        reading: How the task wants its images to be read.
        listed: Numbers of slices, from 1, where the task has them listed.

    Returns:
        The frames that the task wants: in Hounsfield units for a task of CT, as signal for one of
        MR, else, and if in colour, shown as the file asks for it; and what the header says.

    Raises:
        SetAsideError: The object is no image of the patient.
        ImageError: It cannot be decoded, is too large, or is no match for what the task wants.
    """
    dataset = read_file(path)
    check_image(dataset)
    check_modality(dataset, reading.modality)
    count = frame_count(dataset)
    wanted = chosen(count, reading.slices, listed)
    check_voxels(len(wanted), int(dataset.Rows), int(dataset.Columns))
    views = views_of(dataset)
    placing = placed(views)
    frames = [placing.order[number] for number in wanted]
    rank = {frame: index for index, frame in enumerate(frames)}
    decoded = (
        (rank[frame], stored, photometric, views[frame])
        for frame, stored, photometric in stored_frames(dataset, path, sorted(frames))
    )
    block = block_of(decoded, len(wanted), reading)
    stack = stack_of(block, placing, part_names(wanted, count), views[frames[0]])
    notes = placing.notes if reading.modality in ("CT", "MR") else ()
    facts = facts_of(dataset, views[frames[0]], kind="DICOM", slices=count, notes=notes)
    return stack, facts._replace(low=block.low, high=block.high)


def block_of(
    decoded: Iterable[tuple[int, NDArray[np.generic], str, Dataset]], count: int, reading: Reading
) -> Block:
    """Bring decoded slices to their unit and put each in its place.

    Args:
        decoded: The place of each slice, its stored values, their photometric interpretation,
            and what holds for it; see ``stored_frames`` and ``views_of``.
        count: Number of slices.
        reading: How the task wants its images to be read.

    Raises:
        ImageError: They differ in kind or size, or show nothing.
    """
    block: NDArray[np.float32] | None = None
    unit: Unit = "shown"
    lows, highs = [], []
    for place, stored, photometric, view in decoded:
        own = unit_of(photometric, reading.modality)
        one: Values = values_of(stored, photometric, view, own)
        if block is None:
            unit, block = own, _room(count, one.values)
        if own != unit or one.values.shape != block.shape[1:]:
            raise ImageError("its slices differ in size or in colour", remedy="Export it again.")
        if count > 1:
            block[place] = one.values
        lows.append(one.low)
        highs.append(one.high)
    if block is None or not np.isfinite([*lows, *highs]).all():
        raise ImageError("some values are not finite", remedy="Export it again.")
    if min(lows) == max(highs):
        raise ImageError("every pixel has the same value", remedy="Take it out of the manifest.")
    return Block(block, unit, min(lows), max(highs))


def _room(count: int, first: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return room for slices like the first; where it is the only one, it stays where it is."""
    if count == 1:
        return np.ascontiguousarray(first)[None]
    return np.empty((count, *first.shape), dtype=np.float32)


def stack_of(block: Block, placing: Placing, parts: tuple[str, ...], view: Dataset) -> Stack:
    """Return slices with their place in the patient.

    Args:
        block: The slices that are wanted.
        placing: Of all slices.
        parts: The names of those that are wanted.
        view: What holds for one of them.
    """
    # Hounsfield units are physical, and what is shown is turned over already.
    inverted = block.unit == "signal" and view.PhotometricInterpretation == "MONOCHROME1"
    return Stack(
        values=block.values,
        unit=block.unit,
        inverted=inverted,
        parts=parts,
        spacing=placing.spacing,
        axes=placing.axes,
    )
