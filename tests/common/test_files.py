"""Laws of files that are whole or not there at all."""

import csv
import hashlib
import json
import math
import stat
from pathlib import Path

import pytest

from common.files import (
    append_line,
    canonical_json,
    sha256_of,
    write_atomic,
    write_json,
    write_table,
)


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    """The new bytes take the old one's place, in a folder that is made when missing."""
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"old and long")
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """When the last step fails, what was there is still there, and no temporary file."""
    path = tmp_path / "file"
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(OSError, match="file"):
        write_atomic(path, b"new")
    assert list(tmp_path.rglob("*")) == [path, path / "kept"]


def test_json_is_strict(tmp_path: Path) -> None:
    """A NaN or an infinity is refused (RFC 8259) and leaves the old file; text stays readable."""
    path = tmp_path / "file.json"
    write_json(path, {"Größe": [1, None, "ü"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"Größe": [1, None, "ü"]}
    assert "Größe" in path.read_text(encoding="utf-8")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            append_line(path, {"a": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json(value)
    assert "Größe" in path.read_text(encoding="utf-8")


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    """Each value is one line of JSON, line breaks within it included."""
    path = tmp_path / "folder" / "log.jsonl"
    values = [{"n": 1, "text": "two\nlines"}, {"n": 2, "text": ""}]
    for value in values:
        append_line(path, value)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == values


def test_a_table_reads_back(tmp_path: Path) -> None:
    """Commas, quotes and line feeds in a cell survive; lines end in bare line feeds."""
    path = tmp_path / "folder" / "table.csv"
    rows = [{"a": 'x, "y"', "b": "1\n2"}, {"a": "", "b": "ü"}]
    write_table(path, ["b", "a"], rows)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert path.read_bytes().startswith(b"b,a\n")
    assert b"\r" not in path.read_bytes()


def test_canonical_json_has_one_spelling() -> None:
    """Keys are sorted, nothing is padded, and every letter beyond ASCII is escaped."""
    assert canonical_json({"b": [1.0, 0.1], "a": "ü"}) == rb'{"a":"\u00fc","b":[1.0,0.1]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    """The digest of a file is hashlib's of its bytes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
