"""Named arrays: what travels between the parties, and its digest."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]
"""Arrays by the names that the network's state, or a metric state, gives them."""


class ArraysInPieces(Mapping[str, Array]):
    """Arrays of which a large one came in pieces; asked for as a whole, it is copied."""

    @abstractmethod
    def form(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return an array's dtype and shape."""

    @abstractmethod
    def pieces(self, name: str) -> Iterator[Array]:
        """Yield an array's numbers in their order: flat arrays, without a copy."""


def form_of(arrays: Arrays, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the dtype and shape of one of the arrays."""
    if isinstance(arrays, ArraysInPieces):
        return arrays.form(name)
    value = arrays[name]
    return value.dtype, value.shape


def pieces_of(arrays: Arrays, name: str) -> Iterator[Array]:
    """Yield the numbers of one of the arrays in their order, flat and where they lie."""
    if isinstance(arrays, ArraysInPieces):
        yield from arrays.pieces(name)
    else:
        yield np.asarray(arrays[name], order="C").reshape(-1)


def digest(arrays: Arrays) -> str:
    """Return a SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")  # keeps a scalar a scalar
        sha.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        sha.update(value.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def mean_of(models: Sequence[Arrays], names: Iterable[str]) -> dict[str, Array]:
    """Return the mean of each floating-point array over models, all weighing the same.

    Sums are of 64 bits; the means have the arrays' own type. All other arrays are the last model's.
    """
    last = models[-1]
    result = dict(last)
    for name in names:
        if np.issubdtype(last[name].dtype, np.floating):
            total = np.zeros(last[name].shape)
            for model in models:
                total += model[name]
            result[name] = np.asarray(total / len(models), last[name].dtype)
    return result


def size_in_bytes(arrays: Arrays) -> int:
    """Return how many bytes the values take."""
    return sum(value.nbytes for value in arrays.values())
