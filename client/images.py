"""The door of all images: whatever a file or folder is, it becomes pictures in [0, 1].

Shapes: H rows, W columns. Intensities are float32 in [0, 1], 0 the darkest. No other file of the
client asks what kind an image is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.dicom import read_dicom
from client.dicom_header import looks_like_dicom
from client.intensity import intensities
from client.nifti import is_nifti, read_nifti
from client.pictures import Facts, Picture, Reading, Source, Stack
from client.pixels import SAME_VALUE, check_varied
from client.raster import read_page, read_raster
from client.series import read_series
from client.volumes import planes
from common.errors import ImageError

SUPPORTED = (
    "PNG, JPEG or TIFF of 8 or 16 bits, NIfTI (.nii, .nii.gz), DICOM, or a folder with the slices "
    "of one DICOM series"
)
"""What ``read_images`` reads. The file's own bytes decide what it is, never its name."""


def read_images(path: Path, reading: Reading, listed: Sequence[int] = ()) -> Source:
    """Read the images of one file, or of a folder with a DICOM series.

    PNG, JPEG and TIFF are pictures already and are taken over the full range of their bit depth.
    In DICOM and NIfTI the modality decides what becomes 0 and 1: on CT a window in Hounsfield
    units, on MR what the signal is within the head or body; in other DICOM the file's own VOI LUT
    or window, and without one the range of the stored bits.

    Args:
        path: The file or folder.
        reading: How the task wants its images to be read.
        listed: Numbers of slices, from 1, where the task has them listed.

    Returns:
        The pictures and what the source says beside them. Slices of one value everywhere are
        left out; the note ``constant_slices`` says so.

    Raises:
        ImageError: It is missing, unreadable, of no supported kind, too large, no match for what
            the task wants of a volume, or has a value that is not finite, or the same value
            everywhere.
    """
    with _naming(path):
        stack, facts = _read(path, reading, listed)
        if not _is_varied(stack, facts):
            check_varied(stack.values)
        if facts.low is None or facts.high is None:
            facts = facts._replace(low=float(stack.values.min()), high=float(stack.values.max()))
        pictures = _pictures(stack, reading)
        varied = tuple(p for p in pictures if p.values.min() < p.values.max())
        if not varied:
            raise ImageError(
                f"values from {facts.low:g} to {facts.high:g} are {SAME_VALUE} through the window",
                remedy="Correct the study's window, or take it out of the manifest.",
            )
        notes = facts.notes + (("constant_slices",) if len(varied) < len(pictures) else ())
        return Source(varied, facts._replace(notes=notes))


def read_image(
    path: Path, *, modality: str, window: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Read a source that is one image.

    Args:
        path: The file or folder.
        modality: The task's modality, as the study names it: CT, MR or another.
        window: Centre and width in Hounsfield units, for CT; soft tissue by default.

    Returns:
        Intensities in [0, 1], shape (H, W) when grey and (H, W, 3), red first, when colour.

    Raises:
        ImageError: As of ``read_images``, or it has several slices or frames.
    """
    return read_images(path, Reading(modality, window)).pictures[0].values


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a lesion mask from a PNG: true where the file is not black.

    Returns:
        Shape (H, W).

    Raises:
        ImageError: The file is missing, unreadable or no PNG.
    """
    with _naming(path):
        if kind_of(path) != "PNG":
            raise ImageError("a mask must be a PNG", remedy="Convert it to PNG.")
        marked: NDArray[np.bool_] = np.atleast_3d(read_page(path, "PNG")).max(axis=2) > 0
        return marked


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before a refusal, and make one of whatever a decoder raises."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{path}: {error.message}.", remedy=error.remedy) from error
    except Exception as error:  # a damaged file can raise anything inside a decoder
        text = " ".join(str(error).split())
        raise ImageError(
            f"{path}: cannot be decoded ({type(error).__name__}: {text}).",
            remedy="Export the image again, or take its row out of the manifest.",
        ) from error


def _read(path: Path, reading: Reading, listed: Sequence[int]) -> tuple[Stack, Facts]:
    """Return the slices that the task wants, in their unit."""
    if path.is_dir():
        return read_series(path, reading, listed)
    kind = kind_of(path)
    if kind == "DICOM":
        return read_dicom(path, reading, listed)
    if kind == "NIfTI":
        return read_nifti(path, reading, listed)
    return read_raster(path, kind, reading, listed)


def kind_of(path: Path) -> str:
    """Return what a file or folder is; formats are told by their signatures."""
    if not path.is_file():
        raise ImageError("there is no such file", remedy="Correct the path in the manifest.")
    with path.open("rb") as file:
        start = file.read(1024)
    if looks_like_dicom(start):  # first, for a preamble (PS3.10 7.1) may look like another kind
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):  # the last two: BigTIFF
        return "TIFF"
    if is_nifti(start):
        return "NIfTI"
    what = "it is of no known kind" if start else "the file is empty"
    raise ImageError(what, remedy=f"Give {SUPPORTED}.")


def _is_varied(stack: Stack, facts: Facts) -> bool:
    """Say whether the ends of what was read tell already that its values are finite and differ."""
    if stack.unit == "shown" or facts.low is None or facts.high is None:
        return False  # what is shown has other ends than what was read
    low, high = np.float32(facts.low), np.float32(facts.high)
    return bool(-np.inf < low < high < np.inf)


def _pictures(stack: Stack, reading: Reading) -> list[Picture]:
    if reading.slices == "planes":
        names, slices = zip(*planes(stack), strict=True)
    else:
        names, slices = stack.parts, tuple(stack.values)
    shown = intensities(slices, stack.unit, reading, inverted=stack.inverted)
    return [Picture(values, name) for name, values in zip(names, shown, strict=True)]
