"""A first draft of a manifest, from the headers of the images in a folder.

Free text of a header, such as the description of a series, is not taken over.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from client.draft_row import Found, look
from common.errors import EmptyManifestError, MissingFolderError, OutputError
from common.files import replacing, write_table

COLUMNS = (
    "path", "label", "patient_id", "group", "laterality", "date", "scanner", "age", "sex",
    "modality", "series",
)  # fmt: skip
FILES_A_PROCESS = 200
"""With fewer files, another process takes longer to start than it saves."""
_LINK = "it is a symbolic link"
_CLOSED = "it is a folder that this user may not enter"
_UNNAMEABLE = "its name is none that a manifest can hold"
_TOGETHER = 32  # files that go to a process at a time


@dataclass
class Draft:
    """The rows of a manifest without labels, and what they were made of."""

    rows: list[dict[str, str]]
    """Cells by ``COLUMNS``, sorted by path; the label is empty."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows by what they are: DICOM series, DICOM, PNG, JPEG, TIFF or NIfTI."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """Files and folders that have no row, by the reason."""


def check_place(folder: Path, out: Path) -> None:
    """Refuse a place for the manifest from which it could not name the images.

    Args:
        folder: Where the images are.
        out: Where the manifest is to be.

    Raises:
        MissingFolderError: There is no such folder of images.
        OutputError: The manifest exists, or its folder does not hold the images' folder.
    """
    if not folder.is_dir():
        raise MissingFolderError(f"There is no folder {folder}.", remedy="Correct its path.")
    if out.exists() or out.is_symlink():
        raise OutputError(
            f"{out} is there already, perhaps with labels.",
            remedy="Give --out another name, or move the old one away.",
        )
    if not folder.resolve().is_relative_to(out.parent.resolve()):
        raise OutputError(
            f"A manifest in {out.parent.absolute()} cannot name images in {folder.absolute()}.",
            remedy="Write it into the folder of the images, or into one above.",
        )


def files_in(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return all files below a folder, sorted, and what was passed over, by the reason.

    No symbolic link is followed: it leads out of the folder, or to what is found anyway.

    Args:
        folder: Where to look, itself perhaps a link.
    """
    files: list[Path] = []
    passed: Counter[str] = Counter()

    def closed(_error: OSError) -> None:
        passed[_CLOSED] += 1

    for parent, folders, names in os.walk(folder.resolve(), onerror=closed):
        passed[_LINK] += sum(Path(parent, name).is_symlink() for name in folders)
        for path in (Path(parent, name) for name in names):
            if path.is_symlink():
                passed[_LINK] += 1
            else:
                files.append(path)
    return sorted(files), +passed


def look_at(files: Sequence[Path], workers: int) -> Iterator[Found]:
    """Look into files, in their order.

    Args:
        files: What to look into.
        workers: Processes that look, at most; 1 is this one.
    """
    needed = min(workers, 1 + len(files) // FILES_A_PROCESS)
    if needed == 1:
        yield from map(look, files)
        return
    # Not forked: the bar that shows the progress has a thread.
    with ProcessPoolExecutor(needed, mp_context=get_context("spawn")) as pool:
        yield from pool.map(look, files, chunksize=_TOGETHER)


def draft_of(found: Iterable[Found], base: Path) -> Draft:
    """Make rows of what was found: one for each folder of slices, and for each other image.

    A folder is one row if all its images are slices of one series and one patient.

    Args:
        found: What is in each file.
        base: The manifest's folder, from which its paths count.
    """
    draft, together = Draft([]), defaultdict(list)
    for one in found:
        if one.cells is None:
            draft.set_aside[one.kind] += 1
        else:
            together[one.path.parent].append(one)
    for folder, images in together.items():
        is_series = _are_one_series(images)
        named = [(folder, "DICOM series", _shared(images))] if is_series else _each(images)
        for path, kind, cells in named:
            text = path.relative_to(base).as_posix()
            if not _can_be_named(text):
                draft.set_aside[_UNNAMEABLE] += 1
                continue
            draft.rows.append(dict.fromkeys(COLUMNS, "") | cells | {"path": text})
            draft.kinds[kind] += 1
    draft.rows.sort(key=lambda row: row["path"])
    return draft


def write_draft(draft: Draft, out: Path) -> None:
    """Write the draft as CSV that its owner alone may read.

    Raises:
        EmptyManifestError: There are no rows.
        OutputError: The file cannot be written.
    """
    if not draft.rows:
        aside = ", ".join(f"{count} {what}" for what, count in sorted(draft.set_aside.items()))
        raise EmptyManifestError(
            f"No image was found; set aside: {aside or 'nothing'}.",
            remedy="Give the folder that holds the images, and see that this user may read them.",
        )
    try:
        with replacing(out, mode=0o600) as temporary:
            write_table(temporary, COLUMNS, draft.rows)
    except OSError as error:
        raise OutputError(
            f"Cannot write {out}: {error.strerror}.", remedy="Give --out a place to write to."
        ) from error


def summary_of(draft: Draft) -> dict[str, int | dict[str, int]]:
    """Return the numbers behind a draft; they name no file and no patient."""
    patients = {row["patient_id"] for row in draft.rows} - {""}
    return {
        "rows": len(draft.rows),
        "patients": len(patients),
        "without_patient": sum(not row["patient_id"] for row in draft.rows),
        "kinds": dict(sorted(draft.kinds.items())),
        "modalities": dict(sorted(Counter(row["modality"] for row in draft.rows).items())),
        "set_aside": dict(sorted(draft.set_aside.items())),
    }


def _are_one_series(images: Sequence[Found]) -> bool:
    if len(images) == 1 or not all(one.is_slice for one in images):
        return False
    return len({(one.cells["series"], one.cells["patient_id"]) for one in images if one.cells}) == 1


def _shared(images: Sequence[Found]) -> dict[str, str]:
    """Return the cells that all slices of a series have in common."""
    first = images[0].cells or {}
    return {
        name: text
        for name, text in first.items()
        if all(one.cells is not None and one.cells[name] == text for one in images)
    }


def _each(images: Sequence[Found]) -> list[tuple[Path, str, dict[str, str]]]:
    return [(one.path, one.kind, one.cells or {}) for one in images]


def _can_be_named(text: str) -> bool:
    """Say whether the path would be read as what it is; a name of broken UTF-8 would not."""
    plain = text.isprintable() and text == text.strip() and "\\" not in text
    return plain and text[1:2] != ":"  # where Windows has its drive
