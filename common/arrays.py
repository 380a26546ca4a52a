"""Named arrays: what travels between the parties, and its digest."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]
"""Arrays by the names that the network's state, or a metric state, gives them."""


def digest(arrays: Arrays) -> str:
    """Return a SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")  # keeps a scalar a scalar
        sha.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        sha.update(value.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def size_in_bytes(arrays: Arrays) -> int:
    """Return how many bytes the values take."""
    return sum(value.nbytes for value in arrays.values())
