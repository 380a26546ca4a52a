"""Arrays in Flower's records: encoded once, and looked at where they lie.

The form is NumPy's own file format, byte for byte, as Flower's ``Array`` writes it. Flower's own
reader and writer copy an array two and three times and parse its header anew each time; for a
model of 550 MB, and for 64 sites, that is what the coordinator's memory would go into.
"""

import io
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord

from common.arrays import Array as Values
from common.arrays import Arrays


class WireArrays(Mapping[str, Values]):
    """Arrays of a record: views of the bytes that came, read-only and without a copy."""

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        """Encode arrays once, so that many orders can carry the same bytes."""
        return cls(ArrayRecord({name: _encode(value) for name, value in arrays.items()}))

    def __getitem__(self, name: str) -> Values:
        """Return one array.

        Raises:
            KeyError: There is no such array.
            ValueError: Its bytes are no plain array.
        """
        array = self.record[name]
        if array.stype != "numpy.ndarray":
            raise ValueError(f"an array in the form {array.stype[:40]!r} instead of NumPy's")
        try:
            header = npy_header(array.dtype, array.shape)
            values: Values = np.frombuffer(array.data, array.dtype, offset=len(header))
            values = values.reshape(array.shape)
        except (TypeError, ValueError) as error:
            raise ValueError(f"no array of {array.dtype}{array.shape}: {error}") from error
        if not array.data.startswith(header):
            raise ValueError(f"no array of {array.dtype}{array.shape} in NumPy's plain form")
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.record)

    def __len__(self) -> int:
        return len(self.record)


def _encode(value: Values) -> Array:
    """Do as ``Array(value)`` does, to the byte, but copy the values once instead of thrice."""
    value = np.asarray(value, order="C")
    dtype = _dtype_name(value.dtype)
    data = b"".join((npy_header(dtype, value.shape), value.reshape(-1).view(np.uint8).data))
    return Array(dtype, value.shape, "numpy.ndarray", data)


@cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    """NumPy spells a dtype's name anew each time, which adds up over thousands of arrays."""
    return str(dtype)


@lru_cache(maxsize=4096)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return how NumPy's own file of such an array begins (NEP 1, version 1.0, C order).

    To compare with these few bytes is quicker than to parse what came, and lets nothing else in.
    """
    file = io.BytesIO()
    form = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, form)
    return file.getvalue()
