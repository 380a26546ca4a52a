"""An entry of the cache as one file in the safetensors format: its images, and what is known."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.files import canonical_json

_PIXELS = "pixels"


class Entry(NamedTuple):
    """The prepared images of one source, and what is known of them."""

    pixels: NDArray[np.float16]
    """In [0, 1], shape (n, C, S, S)."""
    said: Mapping[str, Any]
    """Of JSON's types."""


def to_file(entry: Entry) -> bytes:
    """Return the bytes of an entry's file; a checksum of all that it says is among them."""
    said = canonical_json(entry.said)
    metadata = {"said": said.decode(), "crc32": str(_checksum(said, entry.pixels))}
    return save({_PIXELS: np.ascontiguousarray(entry.pixels)}, metadata)


def from_file(path: Path) -> Entry | None:
    """Return the entry of a file; None where that is not what was written.

    Raises:
        OSError: It cannot be read, or there is none.
    """
    try:
        with safe_open(path, "np") as file:
            found, pixels = file.metadata(), file.get_tensor(_PIXELS)
        if int(found["crc32"]) != _checksum(found["said"].encode(), pixels):
            return None
        return Entry(pixels, json.loads(found["said"]))
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _checksum(said: bytes, pixels: NDArray[np.float16]) -> int:
    return zlib.crc32(pixels.data, zlib.crc32(said + str((pixels.dtype, pixels.shape)).encode()))
