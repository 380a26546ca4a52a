"""The file of a manifest, CSV or Parquet, as lines of text; both give the same."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from common.errors import ManifestError, MissingFolderError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 10_000_000
MAX_CELL = 10_000
"""Characters of a cell."""
MAX_LINE = 1_000_000
"""Characters of a line of CSV."""
_PARQUET = b"PAR1"  # the first and the last four bytes of such a file, by its specification
_BATCH = 10_000


class Line(NamedTuple):
    """One row of a manifest that is not blank."""

    number: int
    """Line in the file, from 1; the header is the first. In Parquet, the row's number plus 2."""
    cells: dict[str, str]
    """The text of each column that was asked for, without spaces around; empty where there is
    none."""
    surplus: bool = False
    """Whether there are more cells than columns."""


def columns_of(file: Path) -> list[str]:
    """Return the names of a table's columns, in their order.

    Raises:
        MissingFolderError: The file or its folder does not exist.
        ManifestError: The file cannot be read as what its first bytes say.
    """
    if not file.is_file():
        missing = "file" if file.parent.is_dir() else "folder"
        raise MissingFolderError(
            f"There is no manifest {file}: the {missing} is missing.",
            remedy="Correct 'manifest' in site.toml; it counts from that file's folder.",
        )
    if _is_parquet(file):
        return _parquet_columns(file)
    header, _ = next(_csv_rows(file), ([], 1))
    return header


def lines_of(file: Path, wanted: Sequence[str]) -> Iterator[Line]:
    """Yield the rows of a table; those that say nothing in the columns asked for are left out.

    Args:
        file: A table whose columns ``columns_of`` has given.
        wanted: Names of the columns whose cells are asked for; those that the table does not have
            give no cells.

    Raises:
        ManifestError: The file cannot be read, or is larger than the bounds of this module.
    """
    lines = _parquet_lines(file, wanted) if _is_parquet(file) else _csv_lines(file, wanted)
    for count, line in enumerate(lines):
        if count == MAX_ROWS:
            raise _too_large(file, f"more than {MAX_ROWS} rows")
        for column, text in line.cells.items():
            if len(text) > MAX_CELL:
                what = f"more than {MAX_CELL} characters in line {line.number}, {column}"
                raise _too_large(file, what)
        if line.surplus or any(line.cells.values()):
            yield line


def _is_parquet(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_PARQUET)) == _PARQUET
    except OSError as error:
        raise _unreadable(file, error) from error


def _csv_lines(file: Path, wanted: Sequence[str]) -> Iterator[Line]:
    places: dict[str, int] | None = None
    for cells, number in _csv_rows(file):
        if places is None:
            width = len(cells)
            places = {name: cells.index(name) for name in wanted if name in cells}
            continue
        # What a short row leaves out is empty.
        named = {name: cells[i] if i < len(cells) else "" for name, i in places.items()}
        yield Line(number, named, surplus=any(cells[width:]))


def _csv_rows(file: Path) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of every row, the header's first, and the line where the row begins."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(_bounded(opened, file), strict=True)
            line = 1
            for cells in reader:
                yield [cell.strip() for cell in cells], line
                line = reader.line_num + 1  # a quoted cell may span lines: count from its first
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from error


def _bounded(opened: TextIO, file: Path) -> Iterator[str]:
    while text := opened.readline(MAX_LINE + 1):
        if len(text) > MAX_LINE:
            raise _too_large(file, f"a line of more than {MAX_LINE} characters")
        yield text


def _parquet_columns(file: Path) -> list[str]:
    import pyarrow as pa  # noqa: PLC0415 - most tables are CSV, and it takes its time to import
    from pyarrow import parquet  # noqa: PLC0415 - the same

    try:
        return [name.strip() for name in parquet.read_schema(file).names]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _parquet_lines(file: Path, wanted: Sequence[str]) -> Iterator[Line]:
    import pyarrow as pa  # noqa: PLC0415 - most tables are CSV, and it takes its time to import
    from pyarrow import parquet  # noqa: PLC0415 - the same

    number = 2  # the line that the first row would have in CSV
    try:
        with parquet.ParquetFile(file) as table:
            if table.metadata.num_rows > MAX_ROWS:
                raise _too_large(file, f"more than {MAX_ROWS} rows")
            names = {name.strip(): name for name in table.schema_arrow.names}
            chosen = [names[name] for name in wanted if name in names]
            for batch in table.iter_batches(_BATCH, columns=chosen, use_threads=False):
                texts = {name.strip(): _texts(batch.column(name), name) for name in chosen}
                for row in range(batch.num_rows):
                    yield Line(number + row, {name: text[row] for name, text in texts.items()})
                number += batch.num_rows
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _texts(column: "pa.Array", name: str) -> list[str]:
    """Return a column's values as CSV would have them: dates as ISO 8601, nothing as no text."""
    import pyarrow as pa  # noqa: PLC0415 - most tables are CSV, and it takes its time to import
    from pyarrow import compute  # noqa: PLC0415 - the same

    if pa.types.is_nested(column.type):
        raise ManifestError(
            f"The column {name!r} of the manifest holds {column.type}, which is no text.",
            remedy="Store it as text, with spaces between several numbers.",
        )
    if pa.types.is_floating(column.type):
        column = compute.if_else(compute.is_nan(column), None, column)
    return [(text or "").strip() for text in compute.cast(column, pa.string()).to_pylist()]


def _unreadable(file: Path, error: Exception) -> ManifestError:
    """The exception's own text may quote a row."""
    return ManifestError(
        f"The manifest {file} is no readable CSV or Parquet file ({type(error).__name__}).",
        remedy="Save it as comma-separated values in UTF-8, or as Parquet.",
    )


def _too_large(file: Path, what: str) -> ManifestError:
    return ManifestError(
        f"The manifest {file} has {what}.",
        remedy="Give each task a table of its own, and leave out long texts.",
    )
