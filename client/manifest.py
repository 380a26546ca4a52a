"""The manifest: a hospital's table of images and labels, checked as a whole.

``client/manifest_columns.py`` has the columns; others are ignored. A refusal names lines and
columns and prints labels, but never a patient, a group or a path.
"""

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from client.config import SiteConfig, site_key
from client.manifest_columns import (
    OPTIONAL,
    REQUIRED,
    Details,
    column_faults,
    column_notes,
    details_of,
)
from client.manifest_table import Line, columns_of, lines_of
from common.errors import EmptyManifestError, LabelError, ManifestError
from common.held_out import HELD_OUT

FIXED_SPLITS = ("train", "validation", "test")
LISTED_FAULTS = 50
_BEYOND = "(beyond the header)"


@dataclass(frozen=True, slots=True)
class Row(Details):
    """One image of the manifest, or one volume, with what optional columns say of it."""

    line: int
    """Line in the file, from 1; the header is the first."""
    path: Path
    """The image, or the folder of a series; absolute and with symbolic links followed."""
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


class Manifest(NamedTuple):
    """What a manifest says of one task."""

    rows: list[Row]
    unlabelled: int = 0
    """Rows that were left out, since they have no label of this task."""
    notes: tuple[str, ...] = ()
    """Columns that are ignored and look like a slip."""


class _Context(NamedTuple):
    folder: Path
    classes: Sequence[str]
    key: bytes
    label: str
    each_image: bool


class _Fault(NamedTuple):
    line: int
    column: str
    what: str


def manifest_of(config: SiteConfig, task: str, classes: Sequence[str]) -> Manifest:
    """Read the manifest of a site's task as the site's configuration says.

    Where one table serves several tasks, a row without a label of this one is left out; in a table
    of its own such a row is a fault.

    Args:
        config: The hospital; it has the task.
        task: Name of the task.
        classes: The task's classes, in the order of the head.

    Raises:
        DataError: As ``read_manifest`` and ``site_key``.
    """
    files = config.data[task]
    tables = [other.manifest.resolve() for other in config.data.values()]
    return read_manifest(
        files.manifest,
        task=task,
        classes=classes,
        key=site_key(config),
        label=files.label,
        each_image=files.patients == "each_image",
        sparse=files.label != "label" or tables.count(files.manifest.resolve()) > 1,
    )


def read_manifest(
    file: Path,
    *,
    task: str,
    classes: Sequence[str],
    key: bytes,
    label: str = "label",
    each_image: bool = False,
    sparse: bool = False,
) -> Manifest:
    """Read a manifest. Whether its images can be read is not looked at here.

    Args:
        file: A Parquet file, or a CSV file in UTF-8, with or without byte order mark; paths in it
            count from its folder.
        task: Name of the task, for messages.
        classes: The task's classes, in the order of the head.
        key: The site's key.
        label: The column of the task's labels.
        each_image: Each image is its own patient, known by its path. The table names no patients.
        sparse: Leave out rows without a label, instead of refusing them.

    Returns:
        The rows, in the order of the file.

    Raises:
        MissingFolderError: The file or its folder does not exist.
        EmptyManifestError: There are no rows.
        LabelError: Labels, and nothing else, are wrong.
        ManifestError: The columns or rows have other faults. All are listed at once.
    """
    context = _Context(file.parent.resolve(), classes, key, label, each_image)
    columns = columns_of(file)
    _check_columns(file, columns, context)
    rows, faults, unlabelled = [], [], 0
    seen: dict[Path, list[Row]] = {}
    for line in lines_of(file, tuple(dict.fromkeys((*REQUIRED, label, *OPTIONAL)))):
        if sparse and not line.cells[label]:
            unlabelled += 1
            continue
        row, found = _read(line, context)
        if row is not None:
            found += _repetitions(row, seen.setdefault(row.path, []))
            rows.append(row)
        faults += found
    if faults:
        raise _refusal(file, context, task, faults)
    if not rows:
        what = f"has no row with a {label!r}" if unlabelled else "has no rows"
        raise EmptyManifestError(
            f"The manifest of {task}, {file}, {what}.", remedy="List at least two images."
        )
    return Manifest(rows, unlabelled, column_notes([name for name in columns if name != label]))


def keyed_hash(key: bytes, identifier: str) -> str:
    """Return 32 hexadecimal digits that tell an identifier only to who holds the key.

    HMAC-SHA256 (RFC 2104), cut to 128 bits. Patients and groups share it, so that a group that
    is named like its patient is the same unit in every task.
    """
    return hmac.digest(key, b"patient\0" + identifier.encode(), "sha256").hex()[:32]


def _check_columns(file: Path, columns: Sequence[str], context: _Context) -> None:
    needed = ["path", context.label] + ([] if context.each_image else ["patient_id"])
    if faults := column_faults(columns, label=context.label, required=needed):
        raise ManifestError(
            f"Line 1 of the manifest {file}:\n" + "\n".join(f"  - {fault}" for fault in faults),
            remedy=f"The first line names the columns, with commas between: {','.join(needed)}.",
        )


def _read(line: Line, context: _Context) -> tuple[Row | None, list[_Fault]]:
    """Return the row of a line, if its paths are right, and all that is wrong with the line."""
    paths, faults = {}, list(_faults(line, context))
    for column in ("path", "mask"):
        try:
            if column == "path" or line.cells.get(column):
                paths[column] = _resolved(line.cells[column], context.folder)
        except ValueError as error:
            faults.append(_Fault(line.number, column, str(error)))
    details, wrong = details_of(line.cells)
    faults += [_Fault(line.number, column, what) for column, what in wrong]
    if any(fault.column in {"path", "mask"} for fault in faults):
        return None, faults
    return _row(line, context, paths["path"], paths.get("mask"), details), faults


def _faults(line: Line, context: _Context) -> Iterator[_Fault]:
    number, cells = line.number, line.cells
    if line.surplus:
        yield _Fault(number, _BEYOND, "more cells than columns; quote a cell with a comma")
    label = cells[context.label]
    if label not in context.classes:
        yield _Fault(number, context.label, f"{label[:40]!r} is no class of the task")
    if fault := _patient_fault(cells.get("patient_id", ""), cells.get("group", ""), context):
        yield _Fault(number, "patient_id", fault)
    if cells.get("split") and cells["split"] not in FIXED_SPLITS:
        what = f"not one of {', '.join(FIXED_SPLITS)}; correct it or leave it empty"
        yield _Fault(number, "split", what)
    elif cells.get("source") and cells.get("split") in HELD_OUT:
        what = "an image with a source is for training alone; write train, or leave it empty"
        yield _Fault(number, "split", what)


def _patient_fault(patient: str, group: str, context: _Context) -> str:
    if context.each_image:
        what = "filled, though site.toml says that each image is its own patient; correct either"
        return what if patient else ""
    if patient or group:
        return ""
    return "empty; give the patient, or a group that no patient shares with another"


def _resolved(text: str, folder: Path) -> Path:
    """Return the file or folder that a cell names; a ValueError says why it may not be used."""
    if not text:
        raise ValueError("empty; name the image's file")
    if "\\" in text or "\0" in text:
        raise ValueError("a character that no path may have; write it with '/' between folders")
    outside = "outside the manifest's folder; move the file into it"
    given = Path(text)
    if given.is_absolute() or text[1:2] == ":" or ".." in given.parts:  # a drive of Windows, too
        raise ValueError(outside)
    try:
        resolved = (folder / given).resolve()
    except (OSError, RuntimeError):  # a loop of symbolic links
        raise ValueError("a path that leads nowhere; correct it") from None
    if not resolved.is_relative_to(folder):
        raise ValueError(outside)
    return resolved


def _repetitions(row: Row, before: list[Row]) -> Iterator[_Fault]:
    """Yield what is wrong with several rows of one file, and add the row to those before.

    They may name different slices or boxes of it, but not different patients.
    """
    for other in before:
        if (other.slices, other.box) == (row.slices, row.box):
            what = f"the same file as in line {other.line}; keep one of the two"
            yield _Fault(row.line, "path", what)
            break
    if before and before[0].patient != row.patient and before[0].unit != row.unit:
        what = f"another patient than in line {before[0].line}, which has the same file"
        yield _Fault(row.line, "patient_id", what)
    before.append(row)


def _row(line: Line, context: _Context, path: Path, mask: Path | None, details: Details) -> Row:
    """Return the row of a line; where a cell is wrong, any value."""
    cells = line.cells
    patient, group = cells.get("patient_id", ""), cells.get("group", "")
    if context.each_image:
        patient = f"image\0{path.relative_to(context.folder).as_posix()}"  # moves with the folder
    label = cells[context.label]
    return Row(
        line=line.number,
        path=path,
        label=context.classes.index(label) if label in context.classes else -1,
        patient=keyed_hash(context.key, patient or group),
        unit=keyed_hash(context.key, group or patient),
        mask=mask,
        fixed_split=cells.get("split") or ("train" if details.source else None),
        **asdict(details),
    )


def _refusal(file: Path, context: _Context, task: str, faults: Sequence[_Fault]) -> ManifestError:
    shown = [f"  - line {line}, {column}: {what}" for line, column, what in faults[:LISTED_FAULTS]]
    if (rest := len(faults) - LISTED_FAULTS) > 0:
        shown.append(f"  - and {rest} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    message = f"The manifest of {task}, {file}, has {count}:\n" + "\n".join(shown)
    wrong = {fault.column for fault in faults}
    remedy = "Correct each line."
    if context.label in wrong:
        remedy += f" The classes of {task} are {', '.join(context.classes)}."
    return (LabelError if wrong == {context.label} else ManifestError)(message, remedy=remedy)
