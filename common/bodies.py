r"""Flower's records as files: the bodies of what courier and vault say to each other.

A body is one safetensors file (https://huggingface.co/docs/safetensors, "Format"): eight bytes of
header length, a JSON header, the arrays' bytes without a gap. An array is the tensor
``PART\nNAME``; what is not an array stands in the header's ``__metadata__``, in JSON:

    {"body": '[["order", "config", {...}], ["shared", "arrays", null], ...]'}

The library's own writer and reader want all arrays at once, and copy each two or three times. For
a model of 550 MB these here hold the record itself and nothing beside it.
"""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common import safetensors_form
from common.safetensors_form import Tensor
from common.wire_arrays import WireArrays

_CHUNK = 1024 * 1024


def write_body(record: RecordDict, path: Path) -> None:
    """Write a record to a file, array by array.

    Raises:
        ValueError: An array is not in NumPy's plain form or of a dtype that safetensors lacks,
            or a name holds a line feed.
    """
    header = _header_of(record)
    with path.open("wb") as file:
        file.write(header)
        for _, arrays in _array_records(record):
            for value in WireArrays(arrays).values():
                file.write(value.reshape(-1).view(np.uint8).data)


def read_body(path: Path) -> RecordDict:
    """Read a record from a file, whoever wrote it.

    The arrays come out as ``WireArrays.of`` would make them, to the byte.

    Raises:
        ValueError: The file is no body: truncated, too long, or with a header that is too large,
            malformed, or that says of the rest what is not so.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = safetensors_form.length_of(file.read(safetensors_form.LENGTH), size)
        header = safetensors_form.parse_header(file.read(length))
        parts = _parts_of(header.get("__metadata__"))
        tensors = safetensors_form.tensors_of(header, size - file.tell())
        arrays: dict[str, dict[str, Array]] = {
            name: {} for name, part in parts.items() if part is None
        }
        for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
            part_name, line_feed, name = tensor.name.partition("\n")
            if not line_feed or part_name not in arrays:
                raise ValueError("an array of a part that the body does not have")
            arrays[part_name][name] = _read_array(file, tensor)
    return RecordDict(
        {name: ArrayRecord(arrays[name]) if part is None else part for name, part in parts.items()}
    )


def to_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's values as JSON can hold them, each type kept.

    Bytes become ``{"bytes": BASE64}`` and floats that JSON lacks ``{"float": "nan"}``.
    """
    return {
        name: [_plain(each) for each in value] if isinstance(value, list) else _plain(value)
        for name, value in values.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _from_plain(values: Any) -> dict[str, Any]:
    """Undo ``to_plain``; what is neither a value nor a list of them, Flower's record refuses."""
    if not isinstance(values, dict):
        raise ValueError("a part without values")  # noqa: TRY004 - a malformed file, not a misuse
    return {
        name: [_value(each) for each in value] if isinstance(value, list) else _value(value)
        for name, value in values.items()
    }


def _value(plain: Any) -> Any:
    match plain:
        case {"bytes": str(text), **rest} if not rest:
            return base64.b64decode(text, validate=True)
        case {"float": "nan" | "inf" | "-inf" as text, **rest} if not rest:
            return float(text)
    return plain


def _header_of(record: RecordDict) -> bytes:
    parts: list[tuple[str, str, dict[str, Any] | None]] = []
    for name, part in record.items():
        if "\n" in name:
            raise ValueError("a part's name with a line feed in it")
        if isinstance(part, ArrayRecord):
            parts.append((name, "arrays", None))
        else:
            kind = "config" if isinstance(part, ConfigRecord) else "metrics"
            parts.append((name, kind, to_plain(part)))
    tensors = []
    begin = 0
    for part_name, arrays in _array_records(record):
        for name, value in WireArrays(arrays).items():
            end = begin + value.nbytes
            form = Tensor(f"{part_name}\n{name}", str(value.dtype), value.shape, begin, end)
            tensors.append(form)
            begin = end
    return safetensors_form.encode(tensors, {"body": json.dumps(parts, allow_nan=False)})


def _array_records(record: RecordDict) -> Iterator[tuple[str, ArrayRecord]]:
    for name, part in record.items():
        if isinstance(part, ArrayRecord):
            yield name, part


def _parts_of(metadata: Any) -> dict[str, ConfigRecord | MetricRecord | None]:
    """Return the parts that the metadata list; None stands for one of arrays."""
    match metadata:
        case {"body": str(text)}:
            listed = safetensors_form.parse(text)
        case _:
            raise ValueError("a header without the list of parts")
    if not isinstance(listed, list):
        raise ValueError("a list of parts that is none")  # noqa: TRY004 - a malformed file
    parts: dict[str, ConfigRecord | MetricRecord | None] = {}
    for entry in listed:
        match entry:
            case [str(name), "arrays", None]:
                part = None
            case [str(name), "config" | "metrics" as kind, values]:
                part = _record(kind, values)
            case _:
                raise ValueError("a part of an unknown kind")
        if name in parts or "\n" in name:
            raise ValueError("a part that is there twice, or whose name has a line feed")
        parts[name] = part
    return parts


def _record(kind: str, values: Any) -> ConfigRecord | MetricRecord:
    try:
        given = _from_plain(values)
        return ConfigRecord(given) if kind == "config" else MetricRecord(given)
    except TypeError as error:
        raise ValueError(f"a value that no part may hold: {error}") from error


def _read_array(file: BinaryIO, tensor: Tensor) -> Array:
    """Read one array behind the header that NumPy gives it (NEP 1, version 1.0, C order).

    ``BytesIO`` grows in place and gives its bytes away uncopied, so they are here only once.
    """
    buffer = io.BytesIO()
    form = {
        "descr": np.dtype(tensor.dtype).str,
        "fortran_order": False,
        "shape": tensor.shape,
    }
    np.lib.format.write_array_header_1_0(buffer, form)
    missing = tensor.end - tensor.begin
    while missing:
        if not (chunk := file.read(min(_CHUNK, missing))):
            raise ValueError("a file that ends before its arrays do")
        missing -= buffer.write(chunk)
    return Array(tensor.dtype, tensor.shape, "numpy.ndarray", buffer.getvalue())
