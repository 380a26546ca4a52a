"""Stored values of the frames of a DICOM file, decoded only where they are wanted.

Shapes: H rows, W columns. The bound on memory: before a decoder is called, a compressed frame's
own header must agree with the file's, whose size has been checked.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from client.codestream import frame_of, mended
from client.pixels import Pixels
from common.errors import ImageError

PLUGINS = {JPEGBaseline8Bit: "pillow", RLELossless: "pydicom"}
"""The decoder of a transfer syntax; of all others, pylibjpeg with libjpeg and openjpeg.

Of the decoders that pydicom knows, all give the same values where they decode at all. On damaged
frames, though, gdcm ends the process, pyjpegls may never return, and pylibjpeg-rle panics past
every handler; these are not called.
"""
KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Pixels as integers (PS3.3 C.7.6.3), or as floats of 32 or 64 bits (C.7.6.24, C.7.6.25)."""

Decoded = Iterator[tuple[int, tuple[Pixels, dict[str, str | int]]]]
"""Frames by their index, as pydicom gives them, with what is true of the pixels now."""

_AGAIN = "Export it again."
_CHECKED = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)


def stored_frames(
    dataset: Dataset, path: Path, wanted: Sequence[int]
) -> Iterator[tuple[int, Pixels, str]]:
    """Decode frames of a file.

    Args:
        dataset: As ``read_file`` gives it.
        path: The file, in which large pixel data still lie.
        wanted: Indices of the frames, from 0, ascending.

    Yields:
        The frame's index, its stored values of shape (H, W) or (H, W, 3), and the photometric
        interpretation that they have now.

    Raises:
        ImageError: There are no pixels, too few of them, or none that this version can decode.
    """
    # pydicom gives a file that is cut inside compressed pixels as a dataset without elements.
    found = [keyword for keyword in KEYWORDS if keyword in dataset]
    if not found:
        raise ImageError("it has no pixel data, or is cut short", remedy=_AGAIN)
    decoder = _decoder(dataset)
    if decoder.is_encapsulated:
        frames = _compressed(dataset, decoder, wanted)
    else:
        frames = _native(dataset, path, decoder, wanted, keyword=found[0])
    for index, (stored, properties) in frames:
        if found[0] == "PixelData":
            stored = _without_unused_bits(stored, dataset)  # noqa: PLW2901 - the same pixels
        yield index, stored, str(properties["photometric_interpretation"])


def _decoder(dataset: Dataset) -> Decoder:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        return get_decoder(syntax)
    # pydicom raises this for a syntax that it has no decoder of; nothing is left undone here.
    except NotImplementedError as error:
        raise ImageError(
            f"this version cannot decode the transfer syntax {syntax.name} ({syntax})",
            remedy="Export it uncompressed (Explicit VR Little Endian), for example with gdcmconv.",
        ) from error


def _native(
    dataset: Dataset, path: Path, decoder: Decoder, wanted: Sequence[int], *, keyword: str
) -> Decoded:
    element: object = dataset.get_item(keyword, keep_deferred=True)
    options: dict[str, Any] = {"correct_unused_bits": False}
    if not isinstance(element, RawDataElement) or element.value is not None:
        if dataset[keyword].is_undefined_length:  # PS3.5 A.4: so are compressed pixels alone
            raise ImageError("its pixels are compressed, its header denies it", remedy=_AGAIN)
        for index in wanted:
            yield index, decoder.as_array(dataset, index=index, **options)
        return
    options |= as_pixel_options(dataset) | {"pixel_keyword": keyword, "pixel_vr": element.VR}
    with path.open("rb") as file:
        for index in wanted:
            file.seek(element.value_tell)
            yield index, decoder.as_array(file, index=index, **options)


def _compressed(dataset: Dataset, decoder: Decoder, wanted: Sequence[int]) -> Decoded:
    options = as_pixel_options(dataset, correct_unused_bits=False)
    extended = options.pop("extended_offsets", None)
    count, options["number_of_frames"] = options["number_of_frames"], 1
    frames = generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=extended)
    missing = set(wanted)
    for index, codestream in islice(enumerate(frames), max(wanted) + 1):
        if index not in missing:
            continue
        missing.remove(index)
        frame = _checked(codestream, dataset)
        plugin = PLUGINS.get(decoder.UID, "pylibjpeg")
        # PS3.5 A.4: a file of this frame alone is decoded, for another frame may be damaged, and
        # this one mended.
        whole = count == 1 and frame is codestream
        source = dataset.PixelData if whole else encapsulate([frame], has_bot=False)
        yield index, decoder.as_array(source, index=0, decoding_plugin=plugin, **options)
    if missing:
        raise ImageError(f"it holds fewer frames than the {count} of its header", remedy=_AGAIN)


def _checked(codestream: bytes, dataset: Dataset) -> bytes:
    """Refuse a compressed frame of another size than the header's; return what can be decoded."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _CHECKED:
        return codestream
    frame = frame_of(codestream, syntax)
    expected = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    if (frame.rows, frame.columns, frame.samples) != expected:
        raise ImageError(
            f"its pixels are {frame.columns} x {frame.rows} of {frame.samples} samples, its header "
            f"says {expected[1]} x {expected[0]} of {expected[2]}",
            remedy=_AGAIN,
        )
    if frame.bits > dataset.BitsAllocated:
        raise ImageError(
            f"its pixels are of {frame.bits} bits, its header allocates {dataset.BitsAllocated}",
            remedy=_AGAIN,
        )
    return mended(codestream) if syntax == JPEGExtended12Bit else codestream


def _without_unused_bits(stored: Pixels, dataset: Dataset) -> Pixels:
    """Clear bits that hold no pixel, such as overlays of old, and carry on the sign.

    PS3.5 8.1.1: a sample is Bits Stored long and ends at High Bit; the rest is undefined. PS3.5
    8.1.2 had overlays in there once.
    """
    size, bits = 8 * stored.dtype.itemsize, int(dataset.BitsStored)
    if not 0 < bits < size:
        return stored
    high = int(dataset.get("HighBit", bits - 1))
    coded = dataset.file_meta.TransferSyntaxUID in _CHECKED  # these decode to the lowest bits
    if coded or not bits <= high < size:
        high = bits - 1
    if high == bits - 1 and _fit(stored, bits):
        return stored
    own: Pixels = np.right_shift(np.left_shift(stored, size - 1 - high), size - bits)
    return own


def _fit(stored: Pixels, bits: int) -> bool:
    """Say whether all values are of so many bits, as they nearly always are."""
    signed = stored.dtype.kind == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return bool(low <= stored.min() and stored.max() <= high)
