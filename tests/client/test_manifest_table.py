"""Laws of reading a manifest's file, CSV or Parquet."""

import csv
import io
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from client import manifest_table
from client.manifest_table import MAX_CELL, MAX_LINE, Line, columns_of, lines_of
from common.errors import ManifestError

COLUMNS = ("path", "label", "note")
# A surrogate is no character of UTF-8, and a null no character of a text file.
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
# The csv module of Python 3.11 leaves a lone return unquoted where lines end with line feeds.
STYLES = ((csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_MINIMAL, "\r\n"))
ROWS = st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=6)


def write_csv(file: Path, rows: list[list[str]], **style: Any) -> None:
    text = io.StringIO()
    csv.writer(text, **style).writerows([list(COLUMNS), *rows])
    file.write_text(text.getvalue(), encoding="utf-8", newline="")


def write_parquet(file: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), file)
    return file


def texts(file: Path, wanted: tuple[str, ...] = COLUMNS) -> list[dict[str, str]]:
    return [line.cells for line in lines_of(file, wanted)]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, style=st.sampled_from(STYLES))
def test_what_was_written_is_read(rows: list[list[str]], style: tuple[int, str]) -> None:
    """CSV of any characters, quoted or not, comes back as the cells that were written."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table"
        write_csv(file, rows, quoting=style[0], lineterminator=style[1])
        expected = [dict(zip(COLUMNS, map(str.strip, row), strict=True)) for row in rows]
        assert columns_of(file) == list(COLUMNS)
        assert texts(file) == [cells for cells in expected if any(cells.values())]


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_parquet_reads_as_csv(rows: list[list[str]]) -> None:
    """The same cells give the same lines, whichever of the two files holds them."""
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]  # one line a row in CSV
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        write_csv(one, rows)
        columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
        write_parquet(
            other, dict(zip(COLUMNS, (pa.array(c, pa.string()) for c in columns), strict=True))
        )
        assert columns_of(one) == columns_of(other)
        assert list(lines_of(one, COLUMNS)) == list(lines_of(other, COLUMNS))


def test_a_line_has_its_number_in_an_editor(tmp_path: Path) -> None:
    """Blank rows are left out and counted; a row that spans lines has the number of its first."""
    file = tmp_path / "labels.csv"
    file.write_text('\ufeffpath,label,note\r\n,,\r\n1,a,"two\r\nlines"\r\n\r\n2,b\r\n3,c,,x\r\n')
    assert list(lines_of(file, ("path", "label"))) == [
        Line(3, {"path": "1", "label": "a"}),
        Line(6, {"path": "2", "label": "b"}),
        Line(7, {"path": "3", "label": "c"}, surplus=True),
    ]


def test_values_of_any_type_become_text(tmp_path: Path) -> None:
    """Whole numbers have no point, dates are ISO 8601, and what is missing is empty."""
    file = write_parquet(
        tmp_path / "labels",
        {
            "path": pa.array([" a ", None, "b"]).dictionary_encode(),
            "whole": [1, 2, None],
            "float": [7.0, 1.5, float("nan")],
            "day": [date(2024, 1, 31), None, date(1999, 12, 1)],
            "time": [datetime(2024, 1, 31, 8, tzinfo=UTC), None, None],
            "truth": [True, False, None],
            "nothing": pa.nulls(3),
        },
    )
    first, second, third = texts(file, tuple(columns_of(file)))
    assert tuple(first.values())[:4] == ("a", "1", "7", "2024-01-31")
    assert first["time"].startswith("2024-01-31 08:00:00")
    assert tuple(second.values()) == ("", "2", "1.5", "", "", "false", "")
    assert tuple(third.values()) == ("b", "", "", "1999-12-01", "", "", "")


def test_the_bytes_decide_what_a_file_is(tmp_path: Path) -> None:
    """Parquet named .csv is Parquet, and CSV named .parquet is CSV."""
    assert texts(write_parquet(tmp_path / "a.csv", {"path": ["1"]})) == [{"path": "1"}]
    (tmp_path / "b.parquet").write_text("path\n1\n")
    assert texts(tmp_path / "b.parquet") == [{"path": "1"}]


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    """Other columns, of any type and even twice under one name, are not looked at."""
    columns = [pa.array(["1"]), pa.array([[1, 2]]), pa.array([b"\xff"])]
    table = pa.Table.from_arrays(columns, names=["path", "x", "x"])
    parquet.write_table(table, tmp_path / "labels")
    assert texts(tmp_path / "labels") == [{"path": "1"}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-30],
        lambda content: content[:4],
        lambda content: content[:4] + bytes(len(content) - 8) + content[-4:],
        lambda content: content[:20] + b"\xff" * 40 + content[60:],
    ],
    ids=["cut", "cut to its first bytes", "hollow", "overwritten"],
)
def test_damaged_parquet_is_refused(tmp_path: Path, damage: Any) -> None:
    """A Parquet file that cannot be read is a ManifestError which quotes nothing of it."""
    file = write_parquet(tmp_path / "labels", {"path": ["DOE^JANE"] * 100})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ManifestError, match="no readable CSV or Parquet") as refusal:
        list(lines_of(file, COLUMNS))
    assert "DOE" not in str(refusal.value)


def test_a_column_that_is_no_text_is_named(tmp_path: Path) -> None:
    """Lists and other compounds in a column that is needed are refused with the column."""
    file = write_parquet(tmp_path / "labels", {"path": ["1"], "slices": [[3, 7]]})
    with pytest.raises(ManifestError, match="column 'slices'"):
        list(lines_of(file, ("path", "slices")))


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are refused in either file."""
    (tmp_path / "a").write_bytes(b"path\nM\xfcller\n")
    write_parquet(tmp_path / "b", {"path": [b"M\xfcller"]})
    for name in ("a", "b"):
        with pytest.raises(ManifestError, match="no readable"):
            list(lines_of(tmp_path / name, COLUMNS))


def test_cells_lines_and_rows_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond a bound is refused with the bound; what reaches it is not."""
    file = tmp_path / "labels"
    for columns in ({"path": ["x" * MAX_CELL]}, {"path": ["1"], "other": ["x" * 2 * MAX_CELL]}):
        assert len(texts(write_parquet(file, columns))) == 1
    with pytest.raises(ManifestError, match="10000 characters in line 3, path"):
        texts(write_parquet(file, {"path": ["1", "x" * (MAX_CELL + 1)]}))
    file.write_text("path\n" + "x" * (MAX_CELL + 1))
    with pytest.raises(ManifestError, match="10000 characters in line 2, path"):
        texts(file)
    file.write_text("path\n" + "," * (MAX_LINE + 1))
    with pytest.raises(ManifestError, match="a line of more than 1000000"):
        texts(file)
    monkeypatch.setattr(manifest_table, "MAX_ROWS", 3)
    for rows, fits in ((3, True), (4, False)):
        plain = tmp_path / "plain"
        plain.write_text("path\n" + "1\n" * rows)
        for table in (plain, write_parquet(file, {"path": ["1"] * rows})):
            if fits:
                assert len(texts(table)) == rows
            else:
                with pytest.raises(ManifestError, match="more than 3 rows"):
                    texts(table)
