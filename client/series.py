"""A folder of DICOM slices becomes one volume, ordered by where the slices lie.

Only headers are read of all files; pixels are decoded of the slices that the task wants.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from client.dicom import block_of, read_dicom, stack_of
from client.dicom_facts import facts_of
from client.dicom_geometry import Placing, placed
from client.dicom_header import (
    MAX_FRAMES,
    check_image,
    check_modality,
    frame_count,
    header_of,
    looks_like_dicom,
    read_file,
)
from client.dicom_pixels import stored_frames
from client.pictures import Facts, Reading, Stack
from client.pixels import check_voxels
from client.volumes import chosen, part_names
from common.errors import ImageError, SetAsideError

SET_ASIDE = "set_aside"
"""Note of a folder that also holds objects which are no images, such as a report or a scout."""
COPIES = "copies"
"""Note of a folder that holds an image twice."""


ELEMENTS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames",
    "ImageType", "Modality", "Manufacturer", "ManufacturerModelName", "StudyDate",
    "PatientID", "PatientSex", "PatientAge", "PatientBirthDate",
    "ImageLaterality", "Laterality", "BurnedInAnnotation", "PatientOrientation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "SpacingBetweenSlices",
    "Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "WindowCenter",
)  # fmt: skip
"""Elements that are kept of all slices; private ones can be larger than the pixels."""


class Slice(NamedTuple):
    """One file of a series."""

    path: Path
    header: Dataset


def read_series(folder: Path, reading: Reading, listed: Sequence[int] = ()) -> tuple[Stack, Facts]:
    """Read a folder that holds the slices of one series.

    Slices are ordered along their normal and counted from 1 in this order, whatever the names of
    the files and their instance numbers are. Files that are no DICOM are passed over.

    Args:
        folder: The folder; folders in it are not looked into.
        reading: How the task wants its images to be read.
        listed: Numbers of slices, from 1, where the task has them listed.

    Returns:
        As ``read_dicom``, of the slices that the task wants.

    Raises:
        ImageError: There is no slice, there are several series or patients, a slice cannot be
            read, they do not make one volume, or are no match for what the task wants.
    """
    slices, notes = _slices_in(folder)
    if len(slices) == 1 and frame_count(slices[0].header) > 1:
        stack, facts = read_dicom(slices[0].path, reading, listed)
        return stack, facts._replace(notes=(*notes, *facts.notes))
    _check_one_series(slices)
    headers = [one.header for one in slices]
    for header in headers:
        check_modality(header, reading.modality)
    wanted = chosen(len(slices), reading.slices, listed)
    check_voxels(len(wanted), int(headers[0].Rows), int(headers[0].Columns))
    placing = _placed(headers)
    files = [slices[placing.order[number]] for number in wanted]
    block = block_of(_decoded(files), len(files), reading)
    stack = stack_of(block, placing, part_names(wanted, len(slices)), files[0].header)
    facts = facts_of(
        files[0].header,
        files[0].header,
        kind="DICOM series",
        slices=len(slices),
        notes=(*notes, *placing.notes),
    )
    return stack, facts._replace(low=block.low, high=block.high)


def _slices_in(folder: Path) -> tuple[list[Slice], tuple[str, ...]]:
    """Return the images of a folder, and codes of what else there is."""
    slices, seen, notes = [], set(), set()
    for path in _files_in(folder):
        with path.open("rb") as file:
            if not looks_like_dicom(file.read(132)):
                continue
        try:
            with _naming(path):
                header = header_of(path, ELEMENTS)
        except SetAsideError:
            notes.add(SET_ASIDE)
            continue
        unique = str(header.get("SOPInstanceUID") or path)  # PS3.3 C.12.1
        if unique in seen:
            notes.add(COPIES)
        else:
            slices.append(Slice(path, header))
        seen.add(unique)
    if not slices:
        raise ImageError("the folder holds no DICOM image", remedy="Correct the manifest.")
    return slices, tuple(sorted(notes))


def _files_in(folder: Path) -> list[Path]:
    root, files = folder.resolve(), []
    for path in folder.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ImageError(
                f"{path.name} is a link that leads out of the folder",
                remedy="Put the file itself there.",
            )
        if path.is_file():
            files.append(path)
        if len(files) > MAX_FRAMES:
            raise ImageError(
                f"the folder holds more than {MAX_FRAMES} files",
                remedy="Give each series a folder of its own.",
            )
    return sorted(files)


def _check_one_series(slices: Sequence[Slice]) -> None:
    for name, what in (("SeriesInstanceUID", "series"), ("PatientID", "patients")):
        found = {str(one.header.get(name) or "") for one in slices}
        if len(found) > 1:
            raise ImageError(
                f"the folder holds {len(found)} {what}",
                remedy="List each series in a row of its own, as rarefed-client manifest build "
                "does.",
            )
    if len(slices) > 1 and any(frame_count(one.header) > 1 for one in slices):
        raise ImageError(
            f"the folder holds {len(slices)} files, some of several frames",
            remedy="List each file in a row of its own.",
        )


def _placed(headers: Sequence[Dataset]) -> Placing:
    """Order slices; by their instance numbers where they have no positions."""
    placing = placed(headers)
    if "no_positions" not in placing.notes:
        return placing
    numbers = [str(header.get("InstanceNumber") or "") for header in headers]  # PS3.3 C.7.6.1
    if "" in numbers or len(set(numbers)) < len(numbers):
        raise ImageError(
            "its slices have neither positions nor instance numbers that tell them apart",
            remedy="Export the original series.",
        )
    order = sorted(range(len(numbers)), key=lambda index: int(numbers[index]))
    return placing._replace(order=tuple(order))


def _decoded(files: Sequence[Slice]) -> Iterator[tuple[int, NDArray[np.generic], str, Dataset]]:
    for place, one in enumerate(files):
        with _naming(one.path):
            dataset = read_file(one.path)
            check_image(dataset)
            for _, stored, photometric in stored_frames(dataset, one.path, (0,)):
                yield place, stored, photometric, dataset


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before a refusal, and make one of whatever a decoder raises."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{path.name}: {error.message}", remedy=error.remedy) from error
    except Exception as error:  # a damaged file can raise anything inside a decoder
        raise ImageError(
            f"{path.name}: cannot be decoded ({type(error).__name__}: {error})",
            remedy="Export the series again.",
        ) from error
