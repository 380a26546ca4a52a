"""Image files become float arrays; no other file knows what a DICOM or a PNG is.

Shapes: H rows, W columns. Intensities are float32 in [0, 1], 0 the darkest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.dicom import read_dicom
from client.pixels import Pixels, check_size, check_varied
from common.errors import ImageError

SUPPORTED = (
    "PNG (8 or 16 bit), JPEG, and DICOM of a single frame, native, deflated or compressed by RLE, "
    "8-bit JPEG or JPEG 2000"
)
"""What ``read_image`` reads. The file's own bytes decide what it is, never its name."""

CT_WINDOW = (40.0, 400.0)
"""Centre and width, in Hounsfield units, where a study names no window: soft tissue."""


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
            pixels = read_dicom(path, modality, window or CT_WINDOW)
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


def _read_picture(path: Path) -> Pixels:
    pixels = _picture_values(path)
    check_varied(pixels)
    return pixels


def _picture_values(path: Path) -> Pixels:
    """Return a picture upright, in [0, 1]; an alpha channel is dropped."""
    with Image.open(path, formats=("PNG", "JPEG")) as file:
        check_size(file.height, file.width)
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
