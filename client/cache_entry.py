"""An entry of the cache as one file in the safetensors format: its images, and what is known."""

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.files import canonical_json


class Entry(NamedTuple):
    """The prepared images of one source, and what is known of them."""

    pixels: NDArray[np.float16]
    """In [0, 1], shape (n, C, S, S)."""
    said: Mapping[str, Any]
    """Of JSON's types."""


def to_bytes(entry: Entry) -> bytes:
    """Return an entry's file; a checksum of all that it says is among its arrays."""
    said = canonical_json(entry.said)
    checksum = np.array([_checksum(said, entry.pixels)], np.uint32)
    pixels = np.ascontiguousarray(entry.pixels)
    return save({"pixels": pixels, "said": np.frombuffer(said, np.uint8), "crc32": checksum})


def from_bytes(data: bytes) -> Entry | None:
    """Return the entry of a file's bytes; None where they are not what was written.

    The file is read, not mapped: a disk that fails under a map would end the process.
    """
    try:
        found = load(data)
        said, pixels = found["said"].tobytes(), found["pixels"]
        if found["crc32"].item() != _checksum(said, pixels):
            return None
        return Entry(pixels, json.loads(said))
    except (SafetensorError, ValueError, KeyError):
        return None


def _checksum(said: bytes, pixels: NDArray[np.float16]) -> int:
    return zlib.crc32(pixels.data, zlib.crc32(said + str((pixels.dtype, pixels.shape)).encode()))
