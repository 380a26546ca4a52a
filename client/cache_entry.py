"""An entry of the cache as two files: ``KEY.npy``, its images, and ``KEY.json``, what is known."""

import json
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import canonical_json

_SHAPE = re.compile(rb"'shape': \((\d+(?:, \d+)+)\)")
_HEADER_BYTES = 256  # at least what NumPy's header takes


class Entry(NamedTuple):
    """The prepared images of one source, and what is known of them."""

    pixels: NDArray[np.float16]
    """In [0, 1], shape (n, C, S, S)."""
    said: Mapping[str, Any]
    """Of JSON's types."""


def to_files(entry: Entry) -> tuple[bytes, bytes]:
    """Return the bytes of an entry's two files, the JSON first; it has a checksum of both."""
    data = _npy_header(entry.pixels.shape) + entry.pixels.tobytes()
    said = canonical_json(entry.said)
    return b'{"crc32":%d,"said":%s}' % (_checksum(said, data), said), data  # canonical as a whole


def from_files(kept: bytes, data: bytes) -> Entry | None:
    """Return the entry of two files' bytes; None where they are not what was written."""
    try:
        found = json.loads(kept)
        if found["crc32"] != _checksum(canonical_json(found["said"]), data):
            return None
        shape = _shape_of(data)
        pixels = np.frombuffer(data, "<f2", offset=len(_npy_header(shape))).reshape(shape)
    except (ValueError, KeyError, TypeError):
        return None
    return Entry(pixels, found["said"])


def _shape_of(data: bytes) -> tuple[int, ...]:
    """Read the shape in a file of NumPy's without Python's parser, as NumPy would.

    That parser fails now and then where several threads use it (CPython's issue 106905, seen in
    3.11.7), and a site reads with many.

    Raises:
        ValueError: The file does not begin as those that are written here.
    """
    found = _SHAPE.search(data, 0, _HEADER_BYTES)
    shape = tuple(map(int, found[1].split(b","))) if found else ()
    if not data.startswith(_npy_header(shape)):
        raise ValueError("no file of the cache's own form")
    return shape


def _checksum(said: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(said))


@lru_cache(256)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return what precedes the values of float16 in a file of NumPy's."""
    buffer = BytesIO()
    described = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
