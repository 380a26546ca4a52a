"""NIfTI volumes, plain or compressed by gzip, become stacks turned as radiologists see them.

Clauses are of the NIfTI-1 standard (nifti1.h, Cox et al. 2004); NIfTI-2 widens its fields.
Shapes: N slices, H rows, W columns.
"""

import gzip
import logging
import zlib
from collections.abc import Sequence
from io import IOBase
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling, array_from_file
from numpy.typing import NDArray

from client.pictures import Facts, Reading, Stack
from client.pixels import MAX_BYTES, check_voxels
from client.volumes import change_of, chosen, part_names
from common.errors import ImageError

_MAX_RATIO = 1032  # of what deflate gives to what it takes, at most (zlib's technical details)
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_GZIP = b"\x1f\x8b"  # RFC 1952, 2.3.1
_DIMENSIONS = 3
_UNTURNED = np.diag([-1.0, -1.0, 1.0])  # from NIfTI's axes (x to the right) to DICOM's
_LEAST_DETERMINANT = 1e-3  # of three unit vectors; 0 where they lie in one plane
_QUIET = logging.getLogger(__name__)  # what nibabel mends in a header is its own affair
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


def is_nifti(start: bytes) -> bool:
    """Tell whether a file is NIfTI by its first bytes, unpacking no more than a header.

    Args:
        start: At least 1024 bytes, or the whole file.
    """
    start = _unpacked(start)
    # magic, at byte 344 of NIfTI-1 and byte 4 of NIfTI-2
    return start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2")


def read_nifti(path: Path, reading: Reading, listed: Sequence[int]) -> tuple[Stack, Facts]:
    """Read a NIfTI volume.

    Slices are axial, from the feet to the head, their rows towards the back and their columns
    to the patient's left, whatever order the file has; a file of one slice is seen as the view
    that the slice is. Values are Hounsfield units in a task of modality CT, and else a signal.

    Args:
        path: The file, which ``is_nifti``.
        reading: The task's modality, and which slices it wants.
        listed: Numbers of slices, from 1 at the feet, where the task has them listed.

    Returns:
        The chosen slices, and what the file says of them. The note ``no_orientation`` means
        that the file does not say how the patient lies, and is taken as axial slices.

    Raises:
        ImageError: The file is damaged or cut short, has more than three dimensions or too many
            voxels, holds no plain numbers, or has axes in which nobody can lie.
    """
    packed, header = _header(path)
    shape = _shape(header)
    _check_bytes(path, header, shape, packed=packed)
    affine = _affine(header, shape)
    start = nib.orientations.io_orientation(affine)
    change = change_of(start, _view(shape, start))
    stored = _stored(path, header, shape, packed=packed)
    oriented = nib.orientations.apply_orientation(stored, change)
    wanted = chosen(len(oriented), reading.slices, listed)
    with np.errstate(over="ignore"):  # what becomes infinite is refused like all that is
        values = apply_read_scaling(oriented[list(wanted)], *header.get_slope_inter())
        values = values.astype(np.float32, copy=False)
    spacing, axes = _geometry(affine @ nib.orientations.inv_ornt_aff(change, shape))
    unknown = not (header["sform_code"] or header["qform_code"])
    stack = Stack(
        values,
        "hounsfield" if reading.modality == "CT" else "signal",
        parts=part_names(wanted, len(oriented)),
        spacing=spacing,
        axes=axes,
    )
    _, rows, columns = oriented.shape
    notes = ("no_orientation",) if unknown else ()
    return stack, Facts("NIfTI", rows, columns, slices=len(oriented), notes=notes)


def _unpacked(start: bytes) -> bytes:
    if not start.startswith(_GZIP):
        return start
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _HEADER_BYTES)
    except zlib.error:
        return b""


def _header(path: Path) -> tuple[bool, nib.Nifti1Header]:
    """Return whether a file is packed, and its header, without the extensions behind it."""
    with path.open("rb") as file:
        start = file.read(4 * _HEADER_BYTES)
    packed, start = start.startswith(_GZIP), _unpacked(start)
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        raise ImageError(
            "it is one of a pair of files, .hdr and .img", remedy="Convert it to one .nii file."
        )
    kind: type[nib.Nifti1Header] = nib.Nifti2Header if start[4:7] == b"n+2" else nib.Nifti1Header
    header = kind(start[: kind.template_dtype.itemsize], check=False)
    header.check_fix(logger=_QUIET)
    return packed, header


def _shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    """Return the three dimensions, none of which is checked against memory yet."""
    shape = tuple(int(count) for count in header.get_data_shape())
    if any(count != 1 for count in shape[_DIMENSIONS:]):
        raise ImageError(
            f"it has {len(shape)} dimensions ({' x '.join(map(str, shape))})",
            remedy="Export each of its volumes as its own file.",
        )
    rows, columns, slices = (*shape, 1, 1, 1)[:_DIMENSIONS]
    check_voxels(slices, rows, columns)
    if slices < 1:
        raise ImageError(f"it has {slices} slices", remedy="Export it again.")
    return rows, columns, slices


def _check_bytes(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int], *, packed: bool
) -> None:
    """Refuse what cannot be, or cannot be held, before memory is asked for."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:  # noqa: PLR2004 - bytes of a double
        raise ImageError("its voxels are no plain numbers", remedy="Convert it to int16 or float.")
    needed = header.get_data_offset() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if needed > MAX_BYTES:  # a compressed one is held twice while it is read
        raise ImageError(
            f"it claims {needed:,} bytes, more than {MAX_BYTES:,}",
            remedy="Convert it to 16 bits a voxel, or export it in parts.",
        )
    if needed > path.stat().st_size * (_MAX_RATIO if packed else 1):
        raise ImageError("it is cut short", remedy="Export it again.")


def _stored(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int], *, packed: bool
) -> NDArray[Any]:
    with path.open("rb") as file:
        stream = cast("IOBase", gzip.GzipFile(fileobj=file) if packed else file)
        # Not mapped: a file that shrinks while it is mapped ends the process.
        values = array_from_file(
            shape, header.get_data_dtype(), stream, header.get_data_offset(), mmap=False
        )
        if packed:
            stream.read(1)  # to the end, where gzip compares its checksum
    return values


def _affine(header: nib.Nifti1Header, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return where voxels lie, by sform, else qform, else the file's order of axes."""
    affine: NDArray[np.float64] = np.array(header.get_best_affine(), dtype=np.float64)
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if (lengths == 0).sum() == 1 and shape[flat := int(lengths.argmin())] == 1:
        # A file of one slice need not say how thick it is.
        columns[:, flat] = np.cross(columns[:, flat - 2], columns[:, flat - 1])
        lengths[flat] = np.linalg.norm(columns[:, flat])
    with np.errstate(all="ignore"):
        upright = abs(np.linalg.det(columns / lengths))
    if not upright > _LEAST_DETERMINANT:  # nor where it is no number
        raise ImageError(
            "its axes are not those of a body", remedy="Convert it again from the original series."
        )
    return affine


def _view(shape: tuple[int, int, int], start: NDArray[np.float64]) -> str:
    """Return as which view the slices are seen: axial, unless the file is one slice of another."""
    single = [int(start[axis, 0]) for axis, count in enumerate(shape) if count == 1]
    return ("sagittal", "coronal", "axial")[single[0]] if len(single) == 1 else "axial"


def _geometry(
    affine: NDArray[np.float64],
) -> tuple[tuple[float, float, float], NDArray[np.float64]]:
    """Return a stack's spacing and axes from where its slices, rows and columns lie."""
    steps = (_UNTURNED @ affine[:3, :3]).T
    lengths = np.linalg.norm(steps, axis=1)
    normal = np.cross(steps[1], steps[2])
    between = abs(steps[0] @ normal) / np.linalg.norm(normal)
    return (float(between), float(lengths[1]), float(lengths[2])), steps / lengths[:, None]
