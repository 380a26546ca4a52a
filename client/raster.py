"""PNG, JPEG and TIFF become stacks of intensities; they are pictures already.

Shapes: N pages, H rows, W columns. Intensities are in [0, 1] over the full range of the bit
depth, 0 the darkest. Colour profiles (ICC) are ignored, and transparency is dropped.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from client.pictures import Facts, Reading, Stack
from client.pixels import MAX_BYTES, Pixels, check_size, check_voxels
from client.volumes import chosen, part_names
from common.errors import ImageError

MAX_PAGES = 4096
"""A TIFF of more pages is refused: each costs a look, and a damaged file can claim any number."""

_GREY, _COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
_DEEP = ("I;16", "I;16L", "I;16B", "I")
_PARTIAL_RANGES = tuple(2**bits - 1 for bits in range(9, 16))
_NARROW = 1 / 16  # 12 bits in a file of 16 that does not say so
_TEXT = 64  # characters of a text among the facts

_TAGS = {  # TIFF 6.0, sections 8 and 19
    "NewSubfileType": 254,
    "BitsPerSample": 258,
    "PhotometricInterpretation": 262,
    "MaxSampleValue": 281,
    "SampleFormat": 339,
}
_REDUCED_OR_MASK = 0b101  # NewSubfileType: a smaller copy, or a transparency mask
_WHITE_IS_ZERO = 0  # PhotometricInterpretation
_UNSIGNED = 1  # SampleFormat


def read_raster(
    path: Path, kind: str, reading: Reading, listed: Sequence[int]
) -> tuple[Stack, Facts]:
    """Read a PNG, a JPEG or the pages of a TIFF.

    Args:
        path: The file.
        kind: PNG, JPEG or TIFF, as its first bytes say.
        reading: Which pages the task wants; pictures have no window and no signal.
        listed: Numbers of pages, from 1, where the task has them listed.

    Returns:
        The chosen pages upright, in [0, 1], and what the file says of them. The note
        ``narrow_range`` means that they use less than a sixteenth of their bit depth.

    Raises:
        ImageError: The file is damaged, has too many bytes, pixels or pages, pages of several
            sizes, several frames that are no pages, or values of no known range.
    """
    with _opened(path, kind) as image:
        places = _pages(image)
        wanted = chosen(len(places), reading.slices, listed)
        values = np.stack(list(_upright(image, [places[index] for index in wanted])))
        exif = image.getexif()
    maker, model = (
        str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
    )
    facts = Facts(
        kind=kind,
        rows=values.shape[1],
        columns=values.shape[2],
        slices=len(places),
        scanner=f"{maker} {model}".strip()[:_TEXT],
        notes=("narrow_range",) if values.max() <= _NARROW else (),
    )
    return Stack(values, "shown", parts=part_names(wanted, len(places))), facts


def read_page(path: Path, kind: str) -> Pixels:
    """Read the first page of a file, whatever it shows.

    Args:
        path: The file.
        kind: PNG, JPEG or TIFF, as its first bytes say.

    Returns:
        float32 in [0, 1], shape (H, W) when grey and (H, W, 3), red first, when colour.

    Raises:
        ImageError: The file is damaged, moves, has too many pixels, or values of no known range.
    """
    with _opened(path, kind) as image:
        _pages(image)
        image.seek(0)
        return _values(image)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Image.Image]:
    try:
        # Not by its path: Pillow 13 would map an uncompressed TIFF, and misread one on its side.
        # Whole in memory: of a file, Pillow would ask for as much as a damaged chunk claims to be.
        with BytesIO(_content(path)) as file, Image.open(file, formats=(kind,)) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise ImageError(
            "its header claims more pixels than an image may have",
            remedy="Export it at a lower resolution.",
        ) from error


def _content(path: Path) -> bytes:
    """Return a file's bytes; how many there are is asked of the file that is then read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"it has {size:,} bytes, more than {MAX_BYTES:,}",
                remedy="Export it compressed, or in parts.",
            )
        return file.read(size)


def _pages(image: Image.Image) -> list[int]:
    """Return the places of a file's pages, without smaller copies and masks of them."""
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        raise ImageError("it has several frames", remedy="Export one frame a file.")
    if image.format != "TIFF":
        return [0]
    places = []
    for place in _visit(image, count()):
        if place == MAX_PAGES:
            raise ImageError(f"it has more than {MAX_PAGES} pages", remedy="Export it in parts.")
        if not _tags(image).get("NewSubfileType", 0) & _REDUCED_OR_MASK:
            places.append(place)
    return places or [0]


def _visit(image: Image.Image, places: Iterable[int]) -> Iterator[int]:
    """Stand at each place in turn, up to the last that there is."""
    for place in places:
        try:
            image.seek(place)
        except EOFError:
            return
        yield place


def _upright(image: Image.Image, places: Sequence[int]) -> Iterator[Pixels]:
    """Yield the pages at ``places``; their sizes are compared before they are decoded."""
    first: tuple[object, ...] = ()
    for _ in _visit(image, places):
        check_voxels(len(places), image.height, image.width)
        own = (image.size, image.mode in _COLOUR)
        if own != (first or own):
            raise ImageError("its pages differ in size or colour", remedy="Export them apart.")
        first = own
        yield _values(image)


def _values(image: Image.Image) -> Pixels:
    """Return the page at which ``image`` stands, as it was held, float32 in [0, 1]."""
    check_size(image.height, image.width)
    tags = _tags(image)
    turned = ImageOps.exif_transpose(image)  # EXIF 2.32, tag 0x0112
    if turned.mode in _GREY:
        return np.asarray(turned.convert("L"), dtype=np.float32) / 255
    if turned.mode in _COLOUR:
        return np.asarray(turned.convert("RGB"), dtype=np.float32) / 255
    if turned.mode in _DEEP:
        values = np.asarray(turned, dtype=np.float32) / _greatest(tags)
    elif turned.mode == "F":
        values = np.asarray(turned)
    else:
        raise ImageError(
            f"colour mode {turned.mode} is not read", remedy="Export it as grey or RGB."
        )
    if not (values.min() >= 0 and values.max() <= 1):  # nor where one is no number
        raise ImageError(
            "its values are not within a known range",
            remedy="Export it with 8 or 16 bits, or as numbers from 0 to 1.",
        )
    # Pillow turns over pages of up to 8 bits, and leaves deeper ones as they are stored.
    white = tags.get("PhotometricInterpretation") == _WHITE_IS_ZERO
    return 1 - values if white else values


def _greatest(tags: Mapping[str, int]) -> int:
    """Return the greatest value of a page of more than 8 bits."""
    bits = tags.get("BitsPerSample", 16)
    if tags.get("SampleFormat", _UNSIGNED) != _UNSIGNED or bits > 16:  # noqa: PLR2004 - bits
        raise ImageError(
            "its values are signed or of 32 bits, which have no known range",
            remedy="Export it with 8 or 16 bits.",
        )
    # Some writers put the brightest pixel there, which would scale each page differently.
    stated = tags.get("MaxSampleValue", 0)
    return stated if stated in _PARTIAL_RANGES else 2**bits - 1


def _tags(image: Image.Image) -> Mapping[str, int]:
    """Return what the tags of a TIFF's page say of its values; other kinds have none."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    found = ((name, tags.get(number)) for name, number in _TAGS.items())
    return {
        name: int(value[0] if isinstance(value, tuple) else value)
        for name, value in found
        if value is not None
    }
