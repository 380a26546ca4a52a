"""One DICOM file of one frame becomes intensities; each branch cites its clause.

Shapes: H rows, W columns. Intensities are in [0, 1], 0 the darkest.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
)
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGExtended12Bit, JPEGTransferSyntaxes

from client.pixels import Pixels, check_size, check_varied
from common.errors import ImageError

MR_PERCENTILES = (0.5, 99.5)
"""Percentiles of an MR slice that become 0 and 1, since its signal has no unit."""
GREY_AXES, COLOUR_AXES = 2, 3


def read_dicom(path: Path, modality: str, window: tuple[float, float]) -> Pixels:
    """Read a DICOM file of one frame.

    Args:
        path: The file, which begins as PS3.10 7.1 says.
        modality: The task's modality: CT, MR or another.
        window: Centre and width in Hounsfield units, for CT.

    Returns:
        Intensities in [0, 1], shape (H, W) when grey and (H, W, 3), red first, when colour.

    Raises:
        ImageError: It is no image of one frame, or cannot be decoded.
    """
    _check_header(dcmread(path, stop_before_pixels=True), modality)
    dataset = dcmread(path)
    # pydicom gives a file that is cut inside compressed pixels as a dataset without elements.
    if "PixelData" not in dataset:
        raise ImageError("it has no pixel data, or is cut short", remedy="Export the image again.")
    stored, photometric = _decode(dataset)
    check_varied(stored)
    if photometric in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == GREY_AXES:
        return _grey(stored, dataset, modality, window)
    return _colour(stored, dataset, photometric)


def _check_header(header: Dataset, modality: str) -> None:
    """Refuse what is no image of one frame, before its pixels are read."""
    own = str(header.get("Modality", ""))
    if "Rows" not in header or "Columns" not in header:
        what = f"it holds no image (modality {own})" if own else "it holds no image"
        raise ImageError(f"{what}, or is cut short", remedy="Take it out of the manifest.")
    check_size(int(header.Rows), int(header.Columns))
    # PS3.3 C.7.6.6.1.1
    if (frames := int(header.get("NumberOfFrames") or 1)) != 1:
        raise ImageError(f"it has {frames} frames", remedy="Export each frame as its own image.")
    if int(header.BitsAllocated) == 1:  # PS3.3 C.8.20.2: a binary segmentation
        raise ImageError("it is a mask of one bit a pixel", remedy="List the image itself.")
    # PS3.3 C.7.3.1.1.1; other values, such as OT of a secondary capture, contradict nothing
    if {own, modality} == {"CT", "MR"}:
        raise ImageError(
            f"its modality is {own}, the task's is {modality}", remedy="Correct the manifest."
        )


def _decode(dataset: Dataset) -> tuple[Pixels, str]:
    """Return stored values, and the photometric interpretation that they have now."""
    # PS3.10 7.1: (0002,0010) is required
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("it names no transfer syntax", remedy="Export the image again.")
    try:  # pydicom's word for a syntax that it has no decoder of
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    # PS3.5 8.2.1: up to 12 bits, of which Pillow knows 8
    too_deep = syntax == JPEGExtended12Bit and dataset.BitsStored > 8  # noqa: PLR2004 - bits
    if decoder is None or not decoder.is_available or too_deep:
        raise ImageError(
            f"this version cannot decode the transfer syntax {syntax.name} ({syntax})",
            remedy="Export it uncompressed (Explicit VR Little Endian), for example with gdcmconv.",
        )
    if syntax in JPEGTransferSyntaxes or syntax in JPEG2000TransferSyntaxes:
        _check_codestream(dataset)
    stored, properties = decoder.as_array(dataset)
    return stored, str(properties["photometric_interpretation"])


def _check_codestream(dataset: Dataset) -> None:
    """Refuse a compressed frame of another size than the header's, before it is decoded."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    with Image.open(BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
        size, expected = image.size, (dataset.Columns, dataset.Rows)
    if size != expected:
        raise ImageError(
            f"its pixels are {size[0]} x {size[1]}, its header says {expected[0]} x {expected[1]}",
            remedy="Export the image again.",
        )


def _grey(stored: Pixels, dataset: Dataset, modality: str, window: tuple[float, float]) -> Pixels:
    # PS3.3 C.11.1: stored values to the modality's own
    values = apply_modality_lut(stored, dataset)
    check_varied(values)
    if modality == "CT":
        _check_hounsfield(dataset)
        # Hounsfield units are physical: MONOCHROME1 (C.8.2.1.1.2) inverts their display alone.
        return _windowed(values, *window, function="LINEAR_EXACT")
    # PS3.3 C.8.3.1: the signal of MR has no unit, and scanners differ in its scale
    shown = _between_percentiles(values) if modality == "MR" else _presented(values, dataset)
    # PS3.3 C.7.6.3.1.2: in MONOCHROME1 the lowest value is shown as white
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _check_hounsfield(dataset: Dataset) -> None:
    # PS3.3 C.8.2.1.1.5: slope and intercept give Hounsfield units; both are required
    if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
        raise ImageError("it has no rescale to Hounsfield units", remedy="List original CT slices.")
    # PS3.3 C.11.1.1.2; many scanners leave it out or write US (unspecified) for HU
    if (unit := str(dataset.get("RescaleType") or "HU")) not in ("HU", "US"):
        raise ImageError(
            f"its values are {unit}, not Hounsfield units", remedy="List original CT slices."
        )


def _windowed(values: Pixels, centre: float, width: float, *, function: str) -> Pixels:
    """Return ``values`` through a window, in [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    view = Dataset()  # one unsigned bit: pydicom's output then runs from 0 to 1
    view.PhotometricInterpretation = "MONOCHROME2"
    view.BitsStored, view.PixelRepresentation = 1, 0
    view.WindowCenter, view.WindowWidth, view.VOILUTFunction = centre, width, function
    shown: Pixels = apply_windowing(values, view)
    return shown


def _between_percentiles(values: Pixels) -> Pixels:
    low, high = np.percentile(values, MR_PERCENTILES)
    if low == high:  # fewer than 1 in 200 pixels differ from the background
        low, high = values.min(), values.max()
    return _scaled(values, float(low), float(high))


def _scaled(values: Pixels, low: float, high: float) -> Pixels:
    """Return ``values`` with ``low`` at 0 and ``high`` at 1, cut off beyond."""
    scaled: Pixels = (values.astype(np.float64) - low) / (high - low)
    return scaled.clip(0, 1)


def _presented(values: Pixels, dataset: Dataset) -> Pixels:
    """Return ``values`` in [0, 1] as the file asks them to be shown."""
    # PS3.3 C.11.2.1.1: the first of several tables, which are alternatives
    if dataset.get("VOILUTSequence"):
        entries, _, bits = dataset.VOILUTSequence[0].LUTDescriptor
        if bits == 8 and (entries or 2**16) > 256:  # noqa: PLR2004 - what 8 bits can index
            # pydicom 3.0 holds the index in as many bits as the entries, and would wrap around
            raise ImageError(
                f"a VOI LUT of {entries} 8-bit entries is not read", remedy="Export it without."
            )
        return _scaled(apply_voi(np.rint(values).astype(np.int64), dataset), 0, 2**bits - 1)
    # PS3.3 C.11.2.1.2: the first of several windows, which are alternatives
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        centre, width = (
            float(np.atleast_1d(dataset[key].value)[0]) for key in ("WindowCenter", "WindowWidth")
        )
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        return _windowed(values, centre, width, function=function)
    return _scaled(values, *_full_range(dataset))


def _full_range(dataset: Dataset) -> tuple[float, float]:
    """Return the least and the greatest value that the bits could hold, after the modality LUT."""
    # PS3.3 C.11.1.1.1: the third value of the descriptor is the bits of an entry, unsigned
    if dataset.get("ModalityLUTSequence"):
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        return 0.0, float(2**bits - 1)
    # PS3.3 C.7.6.3.1.1 and PS3.5 8.1.1: two's complement where PixelRepresentation is 1
    bits, low = int(dataset.BitsStored), 0
    if dataset.PixelRepresentation == 1:
        low = -(2 ** (bits - 1))
    ends = apply_modality_lut(np.array([low, low + 2**bits - 1]), dataset)
    return float(ends.min()), float(ends.max())


def _colour(stored: Pixels, dataset: Dataset, photometric: str) -> Pixels:
    # PS3.3 C.7.6.3.1.2; the decoder has made RGB of YBR_FULL, YBR_FULL_422, YBR_ICT and YBR_RCT
    if photometric == "RGB" and stored.ndim == COLOUR_AXES:
        return _scaled(stored, 0, 2 ** int(dataset.BitsStored) - 1)
    if photometric == "PALETTE COLOR" and stored.ndim == GREY_AXES:
        # PS3.3 C.7.6.3.1.5: the third value of the descriptor is the bits of an entry
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        return _scaled(apply_color_lut(stored, dataset)[..., :3], 0, 2**bits - 1)
    raise ImageError(
        f"photometric interpretation {photometric} is not read", remedy="Export it as RGB."
    )
