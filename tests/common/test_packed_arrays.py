"""Laws of arrays in packs: what travels in an order or a reply."""

import io
import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from common import packed_arrays
from common.packed_arrays import PACK_BYTES, PackedArrays

DTYPES = ["bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64"]
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8)


def filled(dtype: str, shape: tuple[int, ...]) -> Any:
    return (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)


def pack_of(content: bytes, dtype: str = "uint8") -> ArrayRecord:
    """Return a record of one pack with these bytes in it, as Flower would carry them."""
    file = io.BytesIO()
    np.save(file, np.frombuffer(content, dtype))
    array = Array(dtype, (len(content),), "numpy.ndarray", file.getvalue())
    return ArrayRecord({"0": array})


def content_of(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@given(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=6))
def test_what_is_packed_reads_back(forms: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Names, order, dtypes, shapes and values come out as they went in, aligned and read-only."""
    arrays = {name: filled(*form) for name, form in forms.items()}
    found = PackedArrays(PackedArrays.of(arrays).record)
    assert list(found) == list(arrays)
    assert len(found) == len(arrays)
    for name, value in arrays.items():
        read = found[name]
        assert (read.dtype, read.shape) == (value.dtype, value.shape)
        assert np.array_equal(read, value)
        assert read.flags.aligned
        assert not read.flags.writeable


def test_a_pack_is_a_safetensors_file() -> None:
    """The library itself reads the bytes of a pack."""
    arrays = {"a": filled("float32", (2, 3)), "b": filled("int64", (5,)), "c": filled("bool", (3,))}
    (pack,) = PackedArrays.of(arrays).record.values()
    found = load(pack.numpy().tobytes())
    assert set(found) == set(arrays)
    assert all(np.array_equal(found[name], value) for name, value in arrays.items())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_large_array_goes_in_pieces(dtype: str) -> None:
    """No pack is above 5 MiB, where Flower cuts; what comes out is what went in, in its order."""
    third = PACK_BYTES // np.dtype(dtype).itemsize + 1
    large = (np.arange(3 * third) % 1000).astype(dtype).reshape(3, third)
    arrays = {"a": filled("int64", (5,)), "large": large, "b": filled("bool", (3,))}
    record = PackedArrays.of(arrays).record
    assert max(len(pack.data) for pack in record.values()) < 5 * 1024 * 1024
    found = PackedArrays(record)
    assert list(found) == list(arrays)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name], value)
        assert not found[name].flags.writeable
        assert found.form(name) == (value.dtype, value.shape)
        parts, again = list(found.pieces(name)), found.pieces(name)
        assert np.array_equal(np.concatenate(parts), value.reshape(-1))
        assert all(np.shares_memory(one, two) for one, two in zip(parts, again, strict=True))


def pieces(*forms: tuple[str, str, int], **shapes: Any) -> ArrayRecord:
    """Return a pack of flat arrays, zeros, with shapes stated in its header."""
    header: dict[str, Any] = {"__metadata__": {k: json.dumps(v) for k, v in shapes.items()}}
    end = 0
    for name, dtype, count in forms:
        begin, end = end, end + count * {"F32": 4, "I32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [begin, end]}
    return pack_of(content_of(header, bytes(end)))


def test_pieces_that_do_not_fit_are_refused() -> None:
    """A missing, foreign or second piece, a shape of another size, or none, is a ValueError."""
    two = (("a\n0", "F32", 4), ("a\n1", "F32", 2))
    assert PackedArrays(pieces(*two, a=[2, 3]))["a"].shape == (2, 3)
    bad = [
        pieces(*two),
        pieces(*two, a=[2, 4]),
        pieces(*two, a=[-2, -3]),
        pieces(*two, a=[2, 3.0]),
        pieces(*two, a="6"),
        pieces(*two, a=[6] + [1] * 40),
        pieces(*two, a=[6], b=[0]),
        pieces(*two, ("a\n3", "F32", 0), a=[6]),
        pieces(*two, ("a\n01", "F32", 0), a=[6]),
        pieces(*two, ("b\n1", "F32", 1), a=[6]),
        pieces(*two, ("a", "F32", 6), a=[6]),
        pieces(("a\n0", "F32", 4), ("a\n1", "I32", 2), a=[6]),
    ]
    for record in bad:
        with pytest.raises(ValueError):  # noqa: PT011 - JSON's own error is one
            PackedArrays(record)
    one = pieces(*two, a=[6])["0"]
    with pytest.raises(ValueError, match="twice"):
        PackedArrays(ArrayRecord({"0": one, "1": one}))


def test_a_name_with_a_line_feed_is_not_packed() -> None:
    """Nobody could tell it from a piece."""
    with pytest.raises(ValueError, match="line feed"):
        PackedArrays.of({"a\n0": filled("float32", (2,))})


def test_small_arrays_share_a_pack_and_large_ones_do_not() -> None:
    """A thousand small arrays are one piece to Flower; one that fills a pack goes by itself."""
    small = {f"layer.{number}": filled("float32", (10,)) for number in range(1000)}
    assert len(PackedArrays.of(small).record) == 1
    large = {"big": np.zeros(PACK_BYTES // 4 + 1, np.float32)}
    record = PackedArrays.of({**small, **large, "last": filled("float32", (2,))}).record
    assert len(record) == 3


def test_arrays_are_views_of_what_came() -> None:
    """Reading copies nothing: two looks at an array are at the same bytes."""
    found = PackedArrays.of({"a": filled("float32", (1000,))})
    assert np.shares_memory(found["a"], found["a"])
    with pytest.raises(KeyError):
        found["b"]


def test_what_safetensors_cannot_hold_is_not_packed() -> None:
    """Text and foreign byte orders are refused where they would be sent."""
    for value in (np.array(["x"]), np.zeros(2, ">f4"), np.zeros(2, np.complex64)):
        with pytest.raises(ValueError, match="safetensors has no dtype"):
            PackedArrays.of({"a": value})


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
BAD: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01\x00",
    "a header longer than the pack": (2**40).to_bytes(8, "little") + b"{}",
    "a huge header": (8 * 2**20).to_bytes(8, "little") + b" " * 8 * 2**20,
    "no JSON": content_of({})[:8] + b"[[",
    "no object": content_of([1]),
    "nested": len(b"[" * 9999).to_bytes(8, "little") + b"[" * 9999,
    "twice": (len(text := b'{"a":1,"a":1}')).to_bytes(8, "little") + text,
    "a gap": content_of({"a": {**GOOD["a"], "data_offsets": [4, 12]}}, bytes(12)),
    "too few bytes": content_of(GOOD, bytes(7)),
    "too many bytes": content_of(GOOD, bytes(9)),
    "overlap": content_of({**GOOD, "b": GOOD["a"]}, bytes(8)),
    "another size": content_of({"a": {**GOOD["a"], "shape": [3]}}, bytes(8)),
    "an unknown dtype": content_of({"a": {**GOOD["a"], "dtype": "O8"}}, bytes(8)),
    "a negative size": content_of({"a": {**GOOD["a"], "shape": [-2]}}, bytes(8)),
    "text for a size": content_of({"a": {**GOOD["a"], "shape": ["2"]}}, bytes(8)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pack_that_lies_is_refused(name: str) -> None:
    """Whatever the header says that is not so is a ValueError before any array is read."""
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own error is one
        PackedArrays(pack_of(BAD[name]))
    assert len(PackedArrays(pack_of(content_of(GOOD, bytes(8))))) == 1


def test_a_name_in_two_packs_is_refused() -> None:
    """Nobody has to guess which of two arrays was meant."""
    one = PackedArrays.of({"a": filled("float32", (2,))}).record["0"]
    with pytest.raises(ValueError, match="twice"):
        PackedArrays(ArrayRecord({"0": one, "1": one}))


def test_a_pack_is_plain_bytes() -> None:
    """An array of other numbers in the place of a pack is refused."""
    with pytest.raises(ValueError, match="a pack of"):
        PackedArrays(ArrayRecord({"0": Array(np.zeros(4, np.float32))}))
    assert packed_arrays.PACK_BYTES < 5 * 1024 * 1024  # Flower cuts what is larger
