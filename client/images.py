"""Image files become float arrays; no other file knows what a DICOM or a PNG is.

Shapes: H rows, W columns. Intensities are float32 in [0, 1], 0 the darkest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
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

from common.errors import ImageError

SUPPORTED = (
    "PNG (8 or 16 bit), JPEG, and DICOM of a single frame, native, deflated or compressed by RLE, "
    "8-bit JPEG or JPEG 2000"
)
"""What ``read_image`` reads. The file's own bytes decide what it is, never its name."""

MAX_PIXELS = 64_000_000
"""An image with more is refused from its header, before a byte of it is decoded."""

CT_WINDOW = (40.0, 400.0)
"""Centre and width, in Hounsfield units, where a study names no window: soft tissue."""

MR_PERCENTILES = (0.5, 99.5)
"""Percentiles of an MR slice that become 0 and 1, since its signal has no unit."""

Pixels = NDArray[Any]
GREY_AXES, COLOUR_AXES = 2, 3


def read_image(
    path: Path, *, modality: str, window: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Read one image.

    PNG and JPEG are pictures already and are taken as they are, over the full range of their
    bit depth. In DICOM the modality decides what becomes 0 and 1: on CT a window in Hounsfield
    units, on MR two percentiles of the slice, else the file's own VOI LUT or window, and
    without one the range of the stored bits.

    Args:
        path: The file.
        modality: The task's modality, as the study names it: CT, MR or another.
        window: Centre and width in Hounsfield units, for CT; ``CT_WINDOW`` by default.

    Returns:
        Intensities in [0, 1], shape (H, W) when grey and (H, W, 3), red first, when colour.

    Raises:
        ImageError: The file is missing, unreadable, of no supported kind, has several frames,
            too many pixels, a value that is not finite, or the same value everywhere.
    """
    with _naming(path):
        kind = _kind(path)
        if kind == "DICOM":
            pixels = _read_dicom(path, modality, window or CT_WINDOW)
        else:
            pixels = _read_picture(path)
        return pixels.astype(np.float32)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a lesion mask from a PNG: true where the file is not black.

    Returns:
        Shape (H, W).

    Raises:
        ImageError: The file is missing, unreadable or no PNG.
    """
    with _naming(path):
        if _kind(path) != "PNG":
            raise ImageError("a mask must be a PNG", remedy="Convert it to PNG.")
        marked: NDArray[np.bool_] = np.atleast_3d(_picture_values(path)).max(axis=2) > 0
        return marked


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before a refusal, and make one of whatever a decoder raises."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error.message}.", remedy=error.remedy) from error
    except Exception as error:  # a damaged file can raise anything inside a decoder
        text = " ".join(str(error).split())
        raise ImageError(
            f"{path}: cannot be decoded ({type(error).__name__}: {text}).",
            remedy="Export the image again, or take its row out of the manifest.",
        ) from error


def _kind(path: Path) -> str:
    if not path.is_file():
        raise ImageError("there is no such file", remedy="Correct the path in the manifest.")
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":  # PS3.10 7.1; first, for a preamble may look like another kind
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    what = "it is of no known kind" if start else "the file is empty"
    raise ImageError(what, remedy=f"Give {SUPPORTED}.")


def _check_size(rows: int, columns: int) -> None:
    if rows < 1 or columns < 1:
        raise ImageError(f"it has {rows} rows and {columns} columns", remedy="Export it again.")
    if rows * columns > MAX_PIXELS:
        raise ImageError(
            f"{rows} x {columns} pixels are more than {MAX_PIXELS:,}",
            remedy="Export it at a lower resolution.",
        )


def _check_varied(pixels: Pixels) -> None:
    if not np.isfinite(pixels).all():
        raise ImageError("some values are not finite", remedy="Export the image again.")
    if pixels.min() == pixels.max():
        raise ImageError("every pixel has the same value", remedy="Take it out of the manifest.")


# PNG and JPEG


def _read_picture(path: Path) -> Pixels:
    pixels = _picture_values(path)
    _check_varied(pixels)
    return pixels


def _picture_values(path: Path) -> Pixels:
    """Return a picture upright, in [0, 1]; an alpha channel is dropped."""
    with Image.open(path, formats=("PNG", "JPEG")) as file:
        _check_size(file.height, file.width)
        if file.format == "PNG" and getattr(file, "n_frames", 1) > 1:
            raise ImageError("it has several frames", remedy="Export one frame a file.")
        image = ImageOps.exif_transpose(file)  # EXIF 2.32, tag 0x0112: as it was held
    if image.mode in ("I;16", "I"):  # a grey PNG of 16 bits
        return np.asarray(image, dtype=np.float32) / 65535
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"), dtype=np.float32) / 255
    if image.mode in ("P", "RGB", "RGBA"):
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    raise ImageError(f"colour mode {image.mode} is not read", remedy="Export it as grey or RGB.")


# DICOM


def _read_dicom(path: Path, modality: str, window: tuple[float, float]) -> Pixels:
    _check_header(dcmread(path, stop_before_pixels=True), modality)
    dataset = dcmread(path)
    # pydicom gives a file that is cut inside compressed pixels as a dataset without elements.
    if "PixelData" not in dataset:
        raise ImageError("it has no pixel data, or is cut short", remedy="Export the image again.")
    stored, photometric = _decode(dataset)
    _check_varied(stored)
    if photometric in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == GREY_AXES:
        return _grey(stored, dataset, modality, window)
    return _colour(stored, dataset, photometric)


def _check_header(header: Dataset, modality: str) -> None:
    """Refuse what is no image of one frame, before its pixels are read."""
    own = str(header.get("Modality", ""))
    if "Rows" not in header or "Columns" not in header:
        what = f"it holds no image (modality {own})" if own else "it holds no image"
        raise ImageError(f"{what}, or is cut short", remedy="Take it out of the manifest.")
    _check_size(int(header.Rows), int(header.Columns))
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
    try:
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
    _check_varied(values)
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
