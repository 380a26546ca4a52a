r"""Arrays of a group in few pieces: what orders and replies carry.

Flower sends, stores and confirms every array of a record by itself, at some 10 ms of SuperLink's
time each way; a network has hundreds, most of them small. So arrays travel in packs: each pack is
one array of bytes to Flower, and inside it the safetensors format.

An array of more than ``PACK_BYTES`` goes in pieces: ``NAME\nNUMBER``, each flat, and its shape
stands in the header of the first one's pack, as ``"NAME": "[4096, 25088]"`` among the metadata.
Flower holds a message twice and its largest array four times while it takes it apart or together;
so no array is large.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from flwr.app import Array, ArrayRecord

from common import safetensors_form
from common.arrays import Array as Values
from common.arrays import Arrays, ArraysInPieces
from common.safetensors_form import Tensor
from common.wire_arrays import WireArrays, npy_header

PACK_BYTES = 4 * 1024 * 1024
"""A pack holds so much at most, and one array less its header."""
PIECE = "\n"
"""Between the name of an array and the number of its piece."""


class _Place(NamedTuple):
    pack: str
    offset: int
    """Of the arrays' bytes in the pack."""
    tensor: Tensor


class _Found(NamedTuple):
    shape: tuple[int, ...]
    pieces: list[_Place]
    """One, or the pieces in their order."""


class PackedArrays(ArraysInPieces):
    """Arrays of a record, read-only.

    They are views of the bytes that came, without a copy; only one that came in pieces is joined,
    anew each time it is asked for.

    Args:
        record: What came, from whomever.

    Raises:
        ValueError: A pack is malformed, a name is there twice, or pieces do not fit together.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self._packs = WireArrays(record)
        places: dict[str, _Place] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name in record:
            _read_pack(name, self._packs[name], places, shapes)
        self._found = dict(_put_together(places, shapes))
        if sum(len(found.pieces) for found in self._found.values()) != len(places):
            raise ValueError("an array that is there twice, or pieces without the others")
        if shapes.keys() - self._found.keys():
            raise ValueError("the shape of an array that is not there")

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        """Encode arrays once, so that many orders can carry the same bytes."""
        packs: dict[str, Array] = {}
        waiting: dict[str, Values] = {}
        shapes: dict[str, str] = {}
        size = 0
        for name in arrays:
            value = np.asarray(arrays[name], order="C")
            for piece_name, piece in _pieces(name, value):
                if waiting and size + piece.nbytes > PACK_BYTES:
                    packs[str(len(packs))] = _pack(waiting, shapes)
                    waiting, shapes, size = {}, {}, 0
                if piece_name == f"{name}{PIECE}0":
                    shapes[name] = json.dumps(value.shape)
                waiting[piece_name] = piece
                size += piece.nbytes
        if waiting:
            packs[str(len(packs))] = _pack(waiting, shapes)
        return cls(ArrayRecord(packs))

    def __getitem__(self, name: str) -> Values:
        """Return one array; KeyError where there is none of that name."""
        views = list(self.pieces(name))
        value = views[0] if len(views) == 1 else np.concatenate(views)
        value.flags.writeable = False
        return value.reshape(self._found[name].shape)

    def form(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return an array's dtype and shape."""
        found = self._found[name]
        return np.dtype(found.pieces[0].tensor.dtype), found.shape

    def pieces(self, name: str) -> Iterator[Values]:
        """Yield an array's numbers in their order: flat arrays, without a copy."""
        for place in self._found[name].pieces:
            tensor = place.tensor
            count = (tensor.end - tensor.begin) // np.dtype(tensor.dtype).itemsize
            data = self.record[place.pack].data
            yield np.frombuffer(data, tensor.dtype, count, place.offset + tensor.begin)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _pieces(name: str, value: Values) -> Iterator[tuple[str, Values]]:
    """Yield an array as it is, or in flat pieces of at most ``PACK_BYTES``."""
    if PIECE in name:
        raise ValueError("an array's name with a line feed in it")
    if value.nbytes <= PACK_BYTES:
        yield name, value
        return
    flat, length = value.reshape(-1), PACK_BYTES // value.itemsize
    for number, begin in enumerate(range(0, flat.size, length)):
        yield f"{name}{PIECE}{number}", flat[begin : begin + length]


def _pack(arrays: Mapping[str, Values], shapes: Mapping[str, str]) -> Array:
    """Write arrays as one array of bytes, copied once.

    Wide numbers come first, so that each array begins at a multiple of its numbers' width.
    """
    places: dict[str, tuple[int, int]] = {}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    end = 0
    for name, value in ordered:
        places[name] = (end, end + value.nbytes)
        end += value.nbytes
    tensors = [
        Tensor(name, str(value.dtype), value.shape, *places[name]) for name, value in arrays.items()
    ]
    header = safetensors_form.encode(tensors, shapes)
    shape = (len(header) + end,)
    views = (value.reshape(-1).view(np.uint8).data for _, value in ordered)
    data = b"".join((npy_header("uint8", shape), header, *views))
    return Array("uint8", shape, "numpy.ndarray", data)


def _read_pack(
    pack: str, content: Values, places: dict[str, _Place], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Note where each array or piece of a pack lies, and the shapes that its header states."""
    if content.dtype != np.uint8 or content.ndim != 1:
        raise ValueError(f"a pack of {content.dtype}{content.shape}")
    front = safetensors_form.LENGTH
    size = content.size
    length = safetensors_form.length_of(content[:front].tobytes(), size)
    header = safetensors_form.parse_header(content[front : front + length].tobytes())
    before = len(npy_header("uint8", (size,))) + front + length
    stated = _shapes_of(header.get("__metadata__", {}))
    tensors = safetensors_form.tensors_of(header, size - front - length)
    if shapes.keys() & stated or places.keys() & {tensor.name for tensor in tensors}:
        raise ValueError("an array that is there twice")
    shapes |= stated
    places |= {tensor.name: _Place(pack, before, tensor) for tensor in tensors}


def _put_together(
    places: Mapping[str, _Place], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, _Found]]:
    """Yield each array, the pieces of a large one together."""
    for place_name, place in places.items():
        name, line_feed, number = place_name.partition(PIECE)
        if not line_feed:
            yield name, _Found(place.tensor.shape, [place])
        elif number == "0":
            names = (f"{name}{PIECE}{number}" for number in itertools.count())
            pieces = [places[one] for one in itertools.takewhile(places.__contains__, names)]
            size = sum(math.prod(piece.tensor.shape) for piece in pieces)
            one_type = len({piece.tensor.dtype for piece in pieces}) == 1
            if name not in shapes or math.prod(shapes[name]) != size or not one_type:
                raise ValueError("pieces that do not make up their array")
            yield name, _Found(shapes[name], pieces)


def _shapes_of(metadata: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a header states of arrays in pieces."""
    if not isinstance(metadata, dict):
        raise ValueError("metadata that are none")  # noqa: TRY004 - a malformed pack
    shapes = {}
    for name, text in metadata.items():
        shape = safetensors_form.parse(text) if isinstance(text, str) else None
        if not isinstance(shape, list) or len(shape) > safetensors_form.MAX_DIMENSIONS:
            raise ValueError("a shape that is none")
        if any(type(number) is not int or not 0 <= number < 2**63 for number in shape):
            raise ValueError("a shape that is no numbers")
        shapes[name] = tuple(shape)
    return shapes
