"""Look-up tables that a DICOM file brings along: modality, VOI and palette.

Clauses are those of PS3.3. pydicom looks tables up too, but keeps the index in the type of the
pixels or of the entries, where it wraps around, and knows no modality LUT of 10 to 15 bits.
"""

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut

from client.pixels import Pixels
from common.errors import ImageError

COLOURS = ("Red", "Green", "Blue")


def looked_up(
    values: Pixels, item: Dataset, view: Dataset, *, signed: bool
) -> tuple[NDArray[np.float32], int]:
    """Look values up in a modality LUT (C.11.1.1.1) or a VOI LUT (C.11.2.1.1).

    Args:
        values: Stored values, or those of the modality; of any shape.
        item: Of the sequence that holds the table.
        view: What holds for the frame; see ``views_of``.
        signed: Whether values may be negative, as the value of the first entry then may.

    Returns:
        The entries of the same shape, and the bits of an entry. Values beyond the table take its
        first or last entry.
    """
    count, first, bits = _descriptor(item.LUTDescriptor, signed=signed)
    table = _entries(item.LUTData, count, view)
    index = np.rint(values).astype(np.int64) - first
    found: NDArray[np.float32] = table[index.clip(0, len(table) - 1)].astype(np.float32)
    return found, bits


def painted(stored: Pixels, view: Dataset) -> NDArray[np.float32]:
    """Look stored values up in the file's palette (C.7.6.3.1.5, C.7.6.3.1.6).

    Returns:
        Intensities in [0, 1], shape (H, W, 3), red first.
    """
    count, first, bits = _descriptor(
        view.RedPaletteColorLookupTableDescriptor, signed=view.get("PixelRepresentation") == 1
    )
    index = (stored.astype(np.int64) - first).clip(0, count - 1)
    if "RedPaletteColorLookupTableData" not in view:  # C.7.9.2: segments, which pydicom expands
        if bits == 8 and count > 256:  # noqa: PLR2004 - what 8 bits can index
            raise ImageError(
                f"a palette in segments of {count} 8-bit entries is not read",
                remedy="Export it as RGB.",
            )
        return _intensities(apply_color_lut(index + first, view)[..., :3], bits)
    tables = [
        _entries(view[f"{colour}PaletteColorLookupTableData"].value, count, view)
        for colour in COLOURS
    ]
    bits = 8 * tables[0].dtype.itemsize  # some writers promise 16 and give 8
    channels = [table[index.clip(0, len(table) - 1)] for table in tables]
    return _intensities(np.stack(channels, axis=-1), bits)


def _intensities(entries: Pixels, bits: int) -> NDArray[np.float32]:
    shown: NDArray[np.float32] = entries.astype(np.float32) / np.float32(2**bits - 1)
    return shown


def _descriptor(values: object, *, signed: bool) -> tuple[int, int, int]:
    """Return the number of entries, the value of the first, and the bits of an entry."""
    count, first, bits = (int(number) for number in np.asarray(values))
    # Written as unsigned where values are signed, the first one wraps around.
    if signed and first >= 2**15:
        first -= 2**16
    return count % 2**16 or 2**16, first, bits


def _entries(data: object, count: int, view: Dataset) -> NDArray[np.unsignedinteger]:
    """Return a table's entries from numbers, from bytes, or from words of two bytes."""
    if not isinstance(data, bytes):
        numbers: NDArray[np.unsignedinteger] = np.atleast_1d(np.asarray(data, dtype=np.uint16))
        return numbers
    if len(data) < 2 * count:
        return np.frombuffer(data[:count], dtype=np.uint8)
    little = view.file_meta.TransferSyntaxUID.is_little_endian
    return np.frombuffer(data[: 2 * count], dtype="<u2" if little else ">u2")
