"""The manifest: a hospital's table of images and labels, checked as a whole.

Columns ``path``, ``label`` and ``patient_id`` must be there; ``site``, ``group``, ``mask`` and
``split`` may be; others are ignored. A refusal names lines and columns and prints labels, but
never a patient, a group or a path.
"""

import csv
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from common.errors import EmptyManifestError, LabelError, ManifestError, MissingFolderError

REQUIRED = ("path", "label", "patient_id")
FIXED_SPLITS = ("train", "validation", "test")
LISTED_FAULTS = 50
_EXTRA = "(beyond the header)"


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the manifest."""

    line: int
    """Line in the file, from 1; the header is the first."""
    path: Path
    """The image, absolute and with symbolic links followed."""
    label: int
    """Index of the class."""
    patient: str
    """Keyed hash of the patient, 32 hexadecimal digits."""
    unit: str
    """Keyed hash of the smallest unit that cannot leak: the group, else the patient."""
    mask: Path | None = None
    """The lesion mask, absolute."""
    fixed_split: str | None = None
    """The split that the hospital insists on."""


class _Fault(NamedTuple):
    line: int
    column: str
    what: str


def read_manifest(file: Path, *, task: str, classes: Sequence[str], key: bytes) -> list[Row]:
    """Read a manifest. Whether its images can be read is not looked at here.

    Args:
        file: A CSV file in UTF-8, with or without byte order mark; paths in it count from its
            folder.
        task: Name of the task, for messages.
        classes: The task's classes, in the order of the head.
        key: The site's key.

    Returns:
        The rows, in the order of the file.

    Raises:
        MissingFolderError: The file or its folder does not exist.
        EmptyManifestError: There are no rows.
        LabelError: Labels, and nothing else, are wrong.
        ManifestError: The columns or rows have other faults. All are listed at once.
    """
    lines = _lines(file)
    if not lines:
        raise EmptyManifestError(
            f"The manifest of {task}, {file}, has no rows.", remedy="List at least two images."
        )
    folder = file.parent.resolve()
    faults = list(_faults(lines, folder, classes))
    if faults:
        raise _refusal(file, task, faults, classes)
    return [_row(line, cells, folder, classes, key) for line, cells in lines]


def keyed_hash(key: bytes, identifier: str) -> str:
    """Return 32 hexadecimal digits that tell an identifier only to who holds the key.

    HMAC-SHA256 (RFC 2104), cut to 128 bits. Patients and groups share it, so that a group that
    is named like its patient is the same unit in every task.
    """
    return hmac.digest(key, b"patient\0" + identifier.encode(), "sha256").hex()[:32]


def _lines(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Return every row that is not blank: its line and its cells by column."""
    if not file.is_file():
        missing = "file" if file.parent.is_dir() else "folder"
        raise MissingFolderError(
            f"There is no manifest {file}: the {missing} is missing.",
            remedy="Correct 'manifest' in site.toml; it counts from that file's folder.",
        )
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            _check_columns(file, columns)
            rows, line = [], reader.line_num + 1
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    named = dict.fromkeys(columns, "")  # what a short row leaves out is empty
                    named |= zip(columns, map(str.strip, cells), strict=False)
                    named[_EXTRA] = "".join(cells[len(columns) :]).strip()
                    rows.append((line, named))
                line = reader.line_num + 1  # a quoted cell may span lines: count from its first
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        # The exception's own text may quote a row.
        raise ManifestError(
            f"The manifest {file} is no readable CSV file ({type(error).__name__}).",
            remedy="Save it as comma-separated values in UTF-8.",
        ) from error
    return rows


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    faults = [f"there is no column {name!r}" for name in REQUIRED if name not in columns]
    known = (*REQUIRED, "site", "group", "mask", "split")
    faults += [f"the column {name!r} is there twice" for name in known if columns.count(name) > 1]
    if faults:
        raise ManifestError(
            f"Line 1 of the manifest {file}:\n" + "\n".join(f"  - {fault}" for fault in faults),
            remedy=f"The first line names the columns, with commas between: {','.join(REQUIRED)}.",
        )


def _faults(
    lines: Sequence[tuple[int, dict[str, str]]], folder: Path, classes: Sequence[str]
) -> Iterator[_Fault]:
    first_line: dict[Path, int] = {}
    for line, cells in lines:
        if cells[_EXTRA]:
            yield _Fault(line, _EXTRA, "more cells than columns; quote a cell with a comma")
        for column in ("path", "mask"):
            if fault := _path_fault(cells.get(column, ""), folder, required=column == "path"):
                yield _Fault(line, column, fault)
            elif column == "path":
                path = (folder / cells["path"]).resolve()
                if (first := first_line.setdefault(path, line)) != line:
                    what = f"the same file as in line {first}; keep one of the two"
                    yield _Fault(line, column, what)
        if cells["label"] not in classes:
            yield _Fault(line, "label", f"{cells['label'][:40]!r} is no class of the task")
        if not cells["patient_id"] and not cells.get("group"):
            what = "empty; give the patient, or a group that no patient shares with another"
            yield _Fault(line, "patient_id", what)
        if cells.get("split") and cells["split"] not in FIXED_SPLITS:
            what = f"not one of {', '.join(FIXED_SPLITS)}; correct it or leave it empty"
            yield _Fault(line, "split", what)


def _path_fault(text: str, folder: Path, *, required: bool) -> str:
    """Say why a path may not be used, or nothing."""
    if not text:
        return "empty; name the image's file" if required else ""
    if "\\" in text or "\0" in text:
        return "a character that no path may have; write it with '/' between folders"
    outside = "outside the manifest's folder; move the file into it"
    if Path(text).is_absolute() or PureWindowsPath(text).drive or ".." in Path(text).parts:
        return outside
    try:
        resolved = (folder / text).resolve()
    except (OSError, RuntimeError):  # a loop of symbolic links
        return "a path that leads nowhere; correct it"
    return "" if resolved.is_relative_to(folder) else outside


def _row(line: int, cells: dict[str, str], folder: Path, classes: Sequence[str], key: bytes) -> Row:
    patient, group = cells["patient_id"], cells.get("group", "")
    mask = cells.get("mask", "")
    return Row(
        line=line,
        path=(folder / cells["path"]).resolve(),
        label=classes.index(cells["label"]),
        patient=keyed_hash(key, patient or group),
        unit=keyed_hash(key, group or patient),
        mask=(folder / mask).resolve() if mask else None,
        fixed_split=cells.get("split") or None,
    )


def _refusal(
    file: Path, task: str, faults: Sequence[_Fault], classes: Sequence[str]
) -> ManifestError:
    shown = [f"  - line {line}, {column}: {what}" for line, column, what in faults[:LISTED_FAULTS]]
    if (rest := len(faults) - LISTED_FAULTS) > 0:
        shown.append(f"  - and {rest} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    message = f"The manifest of {task}, {file}, has {count}:\n" + "\n".join(shown)
    wrong = {fault.column for fault in faults}
    remedy = "Correct each line."
    if "label" in wrong:
        remedy += f" The classes of {task} are {', '.join(classes)}."
    return (LabelError if wrong == {"label"} else ManifestError)(message, remedy=remedy)
