"""DICOM files up to their pixels: what is one, and which object is an image of the patient.

Clauses are those of PS3.3, the information objects, unless another part is named.
"""

import os
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    CornealTopographyMapStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedUSVolumeStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    OphthalmicThicknessMapStorage,
    ParametricMapStorage,
)

from client.bounded_file import BoundedFile
from client.pixels import MAX_VOXELS, check_size
from common.errors import ImageError, SetAsideError

IMAGES_BY_ANOTHER_NAME = {
    CornealTopographyMapStorage,
    EnhancedUSVolumeStorage,
    OphthalmicThicknessMapStorage,
    ParametricMapStorage,
}
"""SOP classes of images whose names do not end in Image Storage, as those of all others do."""
ACQUIRED = {"CT", "MR", "PT", "NM", "US", "XA", "RF", "CR", "DX", "MG", "OP", "OPT"}
"""Modalities (C.7.3.1.1.1) that contradict a task of CT or MR. Others, such as OT of a secondary
capture, contradict nothing."""
MAX_FRAMES = 2**16
"""A file that claims more is refused."""
MAX_INFLATED = 4 * MAX_VOXELS
"""Bytes that a deflated file may unfold to: as many as its pixels could take."""

_START = 132  # bytes by which a file is told
_SHORT = 2**20  # bytes that are looked through in less time than their elements are parsed
_LARGE = 2**25  # bytes of an element that is left in the file until it is asked for
_META = 2  # group of the file meta information (PS3.10 7.1)
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # the last in big endian


def looks_like_dicom(start: bytes) -> bool:
    """Say whether a file may be DICOM, also one without preamble and file meta information.

    Args:
        start: The first 132 bytes of the file, or more.
    """
    if start[128:132] == b"DICM":  # PS3.10 7.1
        return True
    # PS3.5 7.1: elements ascend by tag, so a data set begins in group 8 and a stray meta in 2.
    # What stands there is short: a length of 64 KiB or more is another format's.
    if start[:2] not in _FIRST_GROUPS:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or (start[:2] != b"\x00\x08" and start[6:8] == b"\0\0")


def header_of(path: Path, elements: Sequence[str] = ()) -> Dataset:
    """Read the header of an image of the patient.

    Args:
        path: The file.
        elements: Keywords of the elements that are wanted; all of them by default.

    Raises:
        SetAsideError: The object is none.
        ImageError: It is no DICOM, or cut short.
    """
    header = _read(path, pixels=False, elements=elements)
    check_image(header)
    return header


def read_file(path: Path) -> Dataset:
    """Read a whole file; of large pixel data only where they lie.

    Raises:
        ImageError: It is no DICOM.
    """
    return _read(path, pixels=True)


def check_image(header: Dataset) -> None:
    """Refuse what is no image of the patient, or is of a size that none can be.

    Raises:
        SetAsideError: The object is of another kind by its SOP class, or a localizer.
        ImageError: It has no rows and columns, or too many; it is a mask of one bit.
    """
    if other := _other_object(header):
        raise SetAsideError(
            f"it holds no image of the patient ({other})", remedy="Take it out of the manifest."
        )
    if "Rows" not in header or "Columns" not in header:
        raise ImageError("it holds no image, or is cut short", remedy="Export it again.")
    check_size(int(header.Rows), int(header.Columns))
    if header.get("BitsAllocated") == 1:  # C.8.20.2: a binary segmentation
        raise ImageError("it is a mask of one bit a pixel", remedy="List the image itself.")


def check_modality(header: Dataset, modality: str) -> None:
    """Refuse an image that another modality made than a task of CT or MR expects."""
    own = str(header.get("Modality") or "")
    if modality in ("CT", "MR") and own in ACQUIRED - {modality}:
        raise ImageError(
            f"its modality is {own}, the task's is {modality}", remedy="Correct the manifest."
        )


def frame_count(header: Dataset) -> int:
    """Return how many frames a file has (C.7.6.6.1.1); without the element, one."""
    frames = int(header.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise ImageError(f"it claims {frames} frames", remedy="Export it again.")
    return frames


def _other_object(header: Dataset) -> str:
    """Say what an object is that is no image of the patient; nothing of an image."""
    sop_class = UID(
        str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    )
    # PS3.6 Table A-1 has names of standard classes alone; a private one has its number here.
    known = sop_class.name != sop_class
    if known and "Image Storage" not in sop_class.name:
        return "" if sop_class in IMAGES_BY_ANOTHER_NAME else str(sop_class.name)
    if sop_class and not known and "Rows" not in header:
        return f"private SOP class {sop_class}"
    # C.8.2.1.1.1 and, of enhanced objects, C.8.16.1.3: a scout, on which the slices were planned
    types = header.get("ImageType") or ()
    return "a localizer" if not isinstance(types, str) and "LOCALIZER" in types[2:3] else ""


def _read(path: Path, *, pixels: bool, elements: Sequence[str] = ()) -> Dataset:
    with BoundedFile(str(path)) as opened:
        start = opened.read(_START)
        if not looks_like_dicom(start):
            what = "it is no DICOM" if start else "the file is empty"
            raise ImageError(what, remedy="Take it out of the manifest.")
        opened.seek(0)
        small = pixels and os.fstat(opened.fileno()).st_size <= _LARGE
        # pydicom reads by many small steps, which take less time in memory.
        file = BytesIO(opened.read()) if small else opened
        deflated = _check_inflation(file)
        file.seek(0)
        dataset = dcmread(
            file,
            force=True,
            stop_before_pixels=not pixels,
            # pydicom looks for what it left out in the file itself, not in what it inflated.
            defer_size=_LARGE if pixels and not deflated else None,
            specific_tags=list(elements) or None,
        )
    # The file is opened anew for what was left in it.
    dataset.fileobj_type, dataset.filename, dataset.buffer = BoundedFile, str(path), None
    _name_syntax(dataset)
    return dataset


def _name_syntax(dataset: Dataset) -> None:
    """Name the transfer syntax that a file without meta information was found to have."""
    # PS3.10 7.1: (0002,0010) is required, yet old archives hold bare data sets
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native


def _check_inflation(file: BoundedFile | BytesIO) -> bool:
    """Say whether a file is deflated (PS3.5 A.5); refuse one that unfolds to too much.

    Args:
        file: At its beginning.
    """
    if isinstance(file, BytesIO):
        content = file.getvalue()  # no copy
        if len(content) <= _SHORT and DeflatedExplicitVRLittleEndian.encode() not in content:
            return False
    read_preamble(file, force=True)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != _META,
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return False
    # What follows, not by the group length, which may lie: pydicom does not believe it.
    inflater, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read()
    while rest and not inflater.eof:
        total += len(inflater.decompress(rest, _LARGE))
        rest = inflater.unconsumed_tail
        if total > MAX_INFLATED:
            raise ImageError(
                f"it unfolds to more than {MAX_INFLATED:,} bytes", remedy="Export it uncompressed."
            )
    return True
