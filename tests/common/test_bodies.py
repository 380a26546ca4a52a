"""Laws of a record as a file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from common.arrays import Array as Values
from common.bodies import read_body, write_body
from common.safetensors_form import MAX_HEADER_BYTES
from common.wire_arrays import WireArrays

ARRAYS: dict[str, Values] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "flags": np.array([True, False, True]),
    "scalar": np.array(0.5, np.float64),
    "empty": np.zeros((0, 4), np.float16),
    "counter": np.array(-7, np.int64),
    "turned": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
}
VALUES: dict[str, Any] = {
    "text": "Zürich\n\0",
    "bytes": b"\xff\0",
    "true": True,
    "one": 1,
    "float": 1.0,
    "nan": float("nan"),
    "infinite": float("-inf"),
    "large": 2**60,
    "texts": ["a", ""],
    "many bytes": [b"", b"x"],
    "flags": [True, False],
    "floats": [1.0, float("inf")],
    "nothing": [],
}


def record() -> RecordDict:
    return RecordDict(
        {
            "order": ConfigRecord(VALUES),
            "shared": WireArrays.of(ARRAYS).record,
            "none": ArrayRecord(),
            "head:ct": WireArrays.of({"weight": np.ones(2, np.float32)}).record,
            "weights": MetricRecord({"shared": 3.0, "n": 3, "all": [0.1, 0.2]}),
            "empty": ConfigRecord({}),
        }
    )


def spelled(found: RecordDict) -> list[Any]:
    """Return all of a record, in its order, in a form that tells 1 from 1.0 and from True."""
    return [
        (name, type(part).__name__, [(key, repr(value)) for key, value in part.items()])
        for name, part in found.items()
    ]


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    """Parts, names, types, values and bytes are the same, in the same order."""
    write_body(record(), tmp_path / "body")
    assert spelled(read_body(tmp_path / "body")) == spelled(record())


SCALARS = (st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary())


@given(
    st.dictionaries(
        st.text(),
        st.one_of(*SCALARS, *(st.lists(scalar, max_size=3) for scalar in SCALARS)),
        max_size=4,
    )
)
def test_any_values_come_back_as_they_went(tmp_path_factory: Any, values: Any) -> None:
    """Every value that Flower's record may hold survives, with its type."""
    path = tmp_path_factory.getbasetemp() / "body"
    sent = RecordDict({"part": ConfigRecord(values)})
    write_body(sent, path)
    assert spelled(read_body(path)) == spelled(sent)


def test_a_body_is_a_safetensors_file(tmp_path: Path) -> None:
    """The library reads what is written here, and its values are the arrays'."""
    write_body(record(), tmp_path / "body")
    found = load_file(tmp_path / "body")
    assert set(found) == {f"shared\n{name}" for name in ARRAYS} | {"head:ct\nweight"}
    for name, value in ARRAYS.items():
        assert found[f"shared\n{name}"].dtype == value.dtype
        assert np.array_equal(found[f"shared\n{name}"], value)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    """Arrays of the library's own file come out as ``WireArrays`` makes them, to the byte."""
    plain = {f"shared\n{name}": np.ascontiguousarray(value) for name, value in ARRAYS.items()}
    plain = {name: v.reshape(ARRAYS[name[7:]].shape) for name, v in plain.items()}
    save_file(plain, tmp_path / "body", {"body": '[["shared", "arrays", null]]'})
    (part,) = read_body(tmp_path / "body").values()
    assert dict(part) == dict(WireArrays.of(ARRAYS).record)


def test_an_array_of_another_form_is_not_written(tmp_path: Path) -> None:
    """Text, complex numbers, another byte order, objects and a lie about the shape are refused."""
    good = WireArrays.of({"a": np.zeros(2, np.float32)}).record["a"]
    for array in (
        Array(np.array(["text"])),
        Array(np.zeros(2, np.complex64)),
        Array(np.zeros(2, ">f4")),
        Array("float32", (2,), "torch.Tensor", good.data),
        Array("float32", (3,), "numpy.ndarray", good.data),
        Array("float64", (2,), "numpy.ndarray", good.data),
        Array("O", (2,), "numpy.ndarray", good.data),
        Array("nonsense", (2,), "numpy.ndarray", good.data),
    ):
        with pytest.raises(ValueError, match=r"."):
            write_body(RecordDict({"part": ArrayRecord({"a": array})}), tmp_path / "body")


def test_a_line_feed_in_a_parts_name_is_not_written(tmp_path: Path) -> None:
    """One in an array's name is fine, for the first one parts the two."""
    with pytest.raises(ValueError, match="line feed"):
        write_body(RecordDict({"a\nb": ConfigRecord({})}), tmp_path / "body")
    sent = RecordDict({"a": WireArrays.of({"b\nc": np.zeros(2)}).record})
    write_body(sent, tmp_path / "body")
    assert spelled(read_body(tmp_path / "body")) == spelled(sent)


# What is no body


def header(**tensors: Any) -> dict[str, Any]:
    parts = [["order", "config", {"x": 1}], ["shared", "arrays", None]]
    return {"__metadata__": {"body": json.dumps(parts)}} | {
        name.replace("__", "\n"): form for name, form in tensors.items()
    }


def tensor(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(head: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def with_parts(*parts: Any) -> bytes:
    return packed({"__metadata__": {"body": json.dumps(parts)}}, b"")


GOOD = packed(header(shared__a=tensor()))
WITH_TWINS = b'{"__metadata__":{"body":"[[\\"s\\",\\"arrays\\",null]]"},%s,%s}'
TWIN = b'"s\\na":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "a short length": b"\1\2\3",
    "a length alone": (100).to_bytes(8, "little"),
    "garbage": b"GET / HTTP/1.1\r\n\r\n" * 9,
    "truncated arrays": GOOD[:-1],
    "a truncated header": GOOD[:40],
    "bytes behind the end": GOOD + b"x",
    "a header length that lies": packed(header(), length=2**63),
    "a header that is too long": packed(
        json.dumps(header()).encode() + b" " * MAX_HEADER_BYTES, b""
    ),
    "no JSON": packed(b"{", b""),
    "no text": packed(b"\xff\xfe", b""),
    "no object": packed(b"[]", b""),
    "deep nesting": packed(b"[" * 100_000, b""),
    "a very long number": packed(b'{"a":' + b"9" * 5000 + b"}", b""),
    "no parts": packed({"shared\na": tensor()}),
    "metadata that are none": packed({"__metadata__": 3}, b""),
    "parts that are none": packed({"__metadata__": {"body": "3"}}, b""),
    "parts that are no JSON": packed({"__metadata__": {"body": "x"}}, b""),
    "parts that nest deeply": packed({"__metadata__": {"body": "[" * 100_000}}, b""),
    "an unknown kind": with_parts(["a", "objects", {}]),
    "a part twice": with_parts(["a", "config", {}], ["a", "arrays", None]),
    "a part without values": with_parts(["a", "config", None]),
    "arrays with values": with_parts(["a", "arrays", {}]),
    "a part with a line feed": with_parts(["a\nb", "arrays", None]),
    "a value of no type": with_parts(["a", "config", {"x": None}]),
    "a value of values": with_parts(["a", "config", {"x": {"y": 1}}]),
    "a list of two types": with_parts(["a", "config", {"x": [1, "y"]}]),
    "a text among metrics": with_parts(["a", "metrics", {"x": "y"}]),
    "bytes that are none": with_parts(["a", "config", {"x": {"bytes": "?"}}]),
    "arrays of no part": packed(header(other__a=tensor())),
    "arrays of a part of values": packed(header(order__a=tensor())),
    "an array without a part": packed(header(shared=tensor())),
    "an array twice": packed(WITH_TWINS % (TWIN, TWIN)),
    "an unknown dtype": packed(header(shared__a=tensor(dtype="BF16"))),
    "a dtype that is none": packed(header(shared__a=tensor(dtype=3))),
    "no dtype": packed(header(shared__a={"shape": [2], "data_offsets": [0, 8]})),
    "more than an array": packed(header(shared__a=tensor() | {"path": "/etc/shadow"})),
    "a form that is none": packed(header(shared__a=[1])),
    "a wrong size": packed(header(shared__a=tensor(shape=[3]))),
    "a negative shape": packed(header(shared__a=tensor(shape=[-1, -2]))),
    "a broken shape": packed(header(shared__a=tensor(shape=[2.0]))),
    "a shape of truth": packed(header(shared__a=tensor(shape=[True, 2]))),
    "a huge shape": packed(header(shared__a=tensor(shape=[2**62, 2**62]))),
    "a shape beyond numbers": packed(header(shared__a=tensor(shape=[0, 2**70], end=0)), b""),
    "a shape of very many axes": packed(header(shared__a=tensor(shape=[1] * 40 + [2]))),
    "an end before the begin": packed(header(shared__a=tensor(8, 0))),
    "three places": packed(header(shared__a=tensor() | {"data_offsets": [0, 4, 8]})),
    "a gap": packed(header(shared__a=tensor(4, 12)), bytes(12)),
    "an overlap": packed(header(shared__a=tensor(0, 8), shared__b=tensor(4, 12)), bytes(12)),
    "one place twice": packed(header(shared__a=tensor(), shared__b=tensor())),
    "a place beyond the end": packed(header(shared__a=tensor(2**40, 2**40 + 8))),
}


def test_the_good_one_is_good(tmp_path: Path) -> None:
    """What the malformed ones are made from is read."""
    (tmp_path / "body").write_bytes(GOOD)
    found = read_body(tmp_path / "body")
    assert list(found) == ["order", "shared"]
    assert np.array_equal(WireArrays(found["shared"])["a"], np.zeros(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_body_is_refused(what: str, tmp_path: Path) -> None:
    """Nothing but a ValueError comes of a malformed file, and no large memory either."""
    (tmp_path / "body").write_bytes(MALFORMED[what])
    with pytest.raises(ValueError, match=r"."):
        read_body(tmp_path / "body")


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_body_never_does_worse(tmp_path_factory: Any, at: int, bad: bytes) -> None:
    """With any bytes overwritten it is read, or refused with a ValueError."""
    path = tmp_path_factory.getbasetemp() / "body"
    path.write_bytes(GOOD[:at] + bad + GOOD[at + len(bad) :])
    try:
        read_body(path)
    except ValueError:
        return


# What it costs

PEAK = """
import sys, tracemalloc
from pathlib import Path
from common.bodies import read_body, write_body
path, size = Path(sys.argv[1]), int(sys.argv[2])
loaded = [name for name in ("torch", "pydicom", "PIL", "safetensors") if name in sys.modules]
tracemalloc.start()
record = read_body(path)
reading = tracemalloc.get_traced_memory()[1]
tracemalloc.reset_peak()
before = tracemalloc.get_traced_memory()[0]
write_body(record, path.with_name("again"))
print(loaded, reading < 1.3 * size, tracemalloc.get_traced_memory()[1] - before < 0.1 * size)
"""


def test_reading_holds_a_model_once_and_writing_nothing(tmp_path: Path) -> None:
    """Of one large array, no second copy is made; and nothing heavy is imported."""
    large = np.arange(8_000_000, dtype=np.float32)
    write_body(RecordDict({"a": WireArrays.of({"x": large}).record}), tmp_path / "body")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "body"), str(large.nbytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] True True"
    assert (tmp_path / "body").read_bytes() == (tmp_path / "again").read_bytes()
