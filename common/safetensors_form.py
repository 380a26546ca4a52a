"""The header of the safetensors format, written and strictly read.

https://huggingface.co/docs/safetensors, "Format": eight bytes of header length, a JSON header, the
arrays' bytes without a gap. The library itself copies every array two or three times on the way in
or out; here only the header is dealt with, and whoever calls leaves the bytes where they are.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from common.arrays import Arrays

MAX_HEADER_BYTES = 4 * 1024 * 1024
"""A header of some 30 000 arrays; the largest networks have a few thousand."""
MAX_DIMENSIONS = 32
LENGTH = 8
"""Bytes that say how long the header is."""

_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
"""NumPy's name for each dtype of safetensors that NumPy has."""
_CODES = {name: code for code, name in _DTYPES.items()}


class Tensor(NamedTuple):
    """Where one array lies behind the header."""

    name: str
    dtype: str
    """NumPy's name."""
    shape: tuple[int, ...]
    begin: int
    end: int


def encode(tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return length and header.

    Raises:
        ValueError: safetensors has no such dtype, or the header is too large.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for tensor in tensors:
        if (code := _CODES.get(tensor.dtype)) is None:
            raise ValueError(f"safetensors has no dtype {tensor.dtype}")
        place = (tensor.begin, tensor.end)
        header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of more than {MAX_HEADER_BYTES} bytes")
    return len(text).to_bytes(LENGTH, "little") + text


def write(file: BinaryIO, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write arrays as a whole file, looking at one after the other.

    The same arrays give the same bytes in any order: wide numbers come first, so that each array
    begins at a multiple of its numbers' width, and then the names count.

    Raises:
        ValueError: safetensors has no such dtype, or the header is too large.
        OSError: The file cannot be written.
    """
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    tensors, begin = [], 0
    for name in ordered:
        value = arrays[name]
        tensors.append(Tensor(name, str(value.dtype), value.shape, begin, begin + value.nbytes))
        begin += value.nbytes
    file.write(encode(tensors, metadata))
    for name in ordered:
        value = np.asarray(arrays[name], order="C")
        file.write(value.reshape(-1).view(np.uint8).data)


def length_of(first: bytes, size: int) -> int:
    """Return how long the header is.

    Args:
        first: The first eight bytes.
        size: Bytes in all.

    Raises:
        ValueError: It is too long, or longer than what there is.
    """
    length = int.from_bytes(first, "little")
    if size < LENGTH or length > min(MAX_HEADER_BYTES, size - LENGTH):
        raise ValueError("a header that is too long, or longer than the file")
    return length


def parse(text: bytes | str) -> Any:
    """Parse JSON, and refuse a name that is there twice or a depth that nothing here has."""
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def parse_header(text: bytes) -> dict[str, Any]:
    """Parse a header's JSON.

    Raises:
        ValueError: It is no JSON object, or has a name twice.
    """
    header = parse(text)
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")  # noqa: TRY004 - a malformed file
    return header


def tensors_of(header: Mapping[str, Any], size: int) -> list[Tensor]:
    """Return the arrays of a header, without its metadata, in the header's order.

    Args:
        header: From ``parse_header``.
        size: Bytes behind the header.

    Raises:
        ValueError: An array is malformed, or they do not cover the bytes without a gap.
    """
    items = ((name, form) for name, form in header.items() if name != "__metadata__")
    tensors = list(_tensors(items))
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        expected = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        if tensor.begin != position or tensor.end - tensor.begin != expected:
            raise ValueError("arrays that overlap, leave a gap, or are not of their stated size")
        position = tensor.end
    if position != size:
        raise ValueError(f"arrays of {position} bytes, where the file has {size}")
    return tensors


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name that is there twice")
    return values


def _tensors(items: Iterable[tuple[str, Any]]) -> Iterator[Tensor]:
    for name, form in items:
        match form:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end], **rest}:
                numbers = [*shape, begin, end]
            case _:
                raise ValueError("an array without dtype, shape and place")
        if rest or code not in _DTYPES or len(shape) > MAX_DIMENSIONS:
            raise ValueError("an array with a dtype or shape that nothing here has")
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise ValueError("an array with a shape or place that is no number")
        yield Tensor(name, _DTYPES[code], tuple(shape), begin, end)
