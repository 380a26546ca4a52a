"""Arrays of a group in few pieces: what orders and replies carry.

Flower sends, stores and confirms every array of a record by itself, at some 10 ms of SuperLink's
time each way; a network has hundreds, most of them small. So arrays travel in packs: each pack is
one array of bytes to Flower, and inside it the safetensors format. An array of more than
``PACK_BYTES`` has a pack of its own, so that no more is held in one piece than must be.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np
from flwr.app import Array, ArrayRecord

from common import safetensors_form
from common.arrays import Array as Values
from common.arrays import Arrays
from common.safetensors_form import Tensor
from common.wire_arrays import WireArrays, npy_header

PACK_BYTES = 4 * 1024 * 1024
"""A pack is closed once it holds so much."""


class _Place(NamedTuple):
    pack: str
    offset: int
    """Of the arrays' bytes in the pack."""
    tensor: Tensor


class PackedArrays(Mapping[str, Values]):
    """Arrays of a record: views of the bytes that came, read-only and without a copy.

    Args:
        record: What came, from whomever.

    Raises:
        ValueError: A pack is malformed, or a name is there twice.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self._packs = WireArrays(record)
        self._places: dict[str, _Place] = {}
        for name in record:
            for place in _places(name, self._packs[name]):
                if place.tensor.name in self._places:
                    raise ValueError("an array that is there twice")
                self._places[place.tensor.name] = place

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        """Encode arrays once, so that many orders can carry the same bytes."""
        packs: dict[str, Array] = {}
        waiting: dict[str, Values] = {}
        size = 0
        for name in arrays:
            value = np.asarray(arrays[name], order="C")
            if waiting and size + value.nbytes > PACK_BYTES:
                packs[str(len(packs))] = _pack(waiting)
                waiting, size = {}, 0
            waiting[name] = value
            size += value.nbytes
        if waiting:
            packs[str(len(packs))] = _pack(waiting)
        return cls(ArrayRecord(packs))

    def __getitem__(self, name: str) -> Values:
        """Return one array; KeyError where there is none of that name."""
        place = self._places[name]
        tensor = place.tensor
        count = (tensor.end - tensor.begin) // np.dtype(tensor.dtype).itemsize
        data = self.record[place.pack].data
        offset = place.offset + tensor.begin
        values: Values = np.frombuffer(data, tensor.dtype, count, offset)
        return values.reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _pack(arrays: Mapping[str, Values]) -> Array:
    """Write arrays as one array of bytes, copied once.

    Wide numbers come first, so that each array begins at a multiple of its numbers' width.
    """
    places: dict[str, tuple[int, int]] = {}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    end = 0
    for name, value in ordered:
        places[name] = (end, end + value.nbytes)
        end += value.nbytes
    header = safetensors_form.encode(
        Tensor(name, str(value.dtype), value.shape, *places[name]) for name, value in arrays.items()
    )
    shape = (len(header) + end,)
    views = (value.reshape(-1).view(np.uint8).data for _, value in ordered)
    data = b"".join((npy_header("uint8", shape), header, *views))
    return Array("uint8", shape, "numpy.ndarray", data)


def _places(pack: str, content: Values) -> Iterator[_Place]:
    """Yield where each array of a pack lies."""
    if content.dtype != np.uint8 or content.ndim != 1:
        raise ValueError(f"a pack of {content.dtype}{content.shape}")
    front = safetensors_form.LENGTH
    size = content.size
    length = safetensors_form.length_of(content[:front].tobytes(), size)
    header = safetensors_form.parse_header(content[front : front + length].tobytes())
    before = len(npy_header("uint8", (size,))) + front + length
    for tensor in safetensors_form.tensors_of(header, size - front - length):
        yield _Place(pack, before, tensor)
