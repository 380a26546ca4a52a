"""The columns of a manifest: which there may be, and what the cells of the optional ones say."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

REQUIRED = ("path", "label", "patient_id")
OPTIONAL = (
    "group", "split", "site", "mask", "laterality", "date", "scanner", "box", "age", "sex",
    "slices", "source",
)  # fmt: skip
MAX_TEXT = 64
"""Characters that are kept of a scanner's or a site's name."""

_SIDES = {"l": "L", "left": "L", "os": "L", "r": "R", "right": "R", "od": "R"}
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
_DATE = re.compile(r"(\d{4})(-?)(\d{2})\2(\d{2})([T ]\d{2}:[0-9:.Z+-]*)?", re.ASCII)
_BAND = re.compile(r"(?P<decade>[1-9]|1[0-4])?0-(?(decade)(?P=decade))9", re.ASCII)
_YEARS = re.compile(r"(\d{1,3})(\.\d{1,9})?[Yy]?", re.ASCII)
_LIKE = 0.8  # of the letters: "lable" is like "label", "image" is not like "age"
_OLDEST = 149


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What optional columns say of an image, beside labels, patients and splits."""

    laterality: str = ""
    """L, R or unknown."""
    date: str = ""
    """Of the study, as ISO 8601 has it."""
    scanner: str = ""
    """At most 64 characters."""
    box: tuple[int, int, int, int] | None = None
    """Where the lesion is: x, y, width and height, in pixels from the upper left corner."""
    age: str = ""
    """A band of ten years, such as 40-49."""
    sex: str = ""
    """M, F, O or unknown."""
    slices: tuple[int, ...] = ()
    """Slices or frames of a volume, counted from 1, where the study asks for those listed."""
    site: str = ""
    """Where the image was made, at most 64 characters."""
    source: str = ""
    """The data set that an image comes from which is none of the hospital's own patients, at most
    64 characters; it is for training alone."""


def column_faults(columns: Sequence[str], *, label: str, required: Sequence[str]) -> list[str]:
    """Say which columns are missing or stand there twice.

    Args:
        columns: The table's columns.
        label: The column of this task's labels.
        required: The columns that must be there.
    """
    faults = []
    for name in required:
        if name not in columns:
            like = _likeness(name, columns)
            faults.append(f"there is no column {name!r}" + (f"; is it {like!r}?" if like else ""))
    known = dict.fromkeys([*REQUIRED, label, *OPTIONAL])
    return faults + [
        f"the column {name!r} is there twice" for name in known if columns.count(name) > 1
    ]


def column_notes(columns: Sequence[str]) -> tuple[str, ...]:
    """Name each column that is ignored and nearly bears the name of one that may be left out.

    A slip in the name of ``split`` or ``group`` would otherwise go unseen.
    """
    others = [name for name in columns if name not in {*REQUIRED, *OPTIONAL}]
    absent = [name for name in ("patient_id", *OPTIONAL) if name not in columns]
    found = [(_likeness(name, others), name) for name in absent]
    return tuple(
        f"the column {like[:40]!r} is ignored; is it meant to be {name!r}?"
        for like, name in found
        if like
    )


def details_of(cells: Mapping[str, str]) -> tuple[Details, list[tuple[str, str]]]:
    """Return what the optional cells of a row say, and what is wrong by column.

    A fault quotes nothing of the cell.
    """
    found: dict[str, Any] = {}
    faults = []
    for column, value_of in _VALUES.items():
        if text := cells.get(column, ""):
            try:
                found[column] = value_of(text)
            except ValueError as error:
                faults.append((column, str(error)))
    return Details(**found), faults


def age_band(years: int) -> str:
    """Return the band of ten years that an age is in, such as 40-49.

    Args:
        years: The age, in [0, 149].
    """
    return f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def _likeness(name: str, columns: Sequence[str]) -> str:
    """Return the column whose letters are nearly those of a name, or nothing."""
    plain = {re.sub(r"[\W_]+", "", column).lower(): column for column in columns}
    like = difflib.get_close_matches(name.replace("_", ""), list(plain), n=1, cutoff=_LIKE)
    return plain[like[0]] if like else ""


def _laterality(text: str) -> str:
    """OD, oculus dexter, is the patient's right eye; OS the left."""
    if text.lower() not in _SIDES:
        raise ValueError("no side; write L, R, left, right, OS or OD")
    return _SIDES[text.lower()]


def _date(text: str) -> str:
    """Return an ISO date, of one or of DICOM's form DA (PS3.5, 6.2); a time of day is dropped."""
    remedy = "write it as 2024-01-31 or 20240131"
    if not (parts := _DATE.fullmatch(text)):
        raise ValueError(f"no date; {remedy}")
    try:
        return date(int(parts[1]), int(parts[3]), int(parts[4])).isoformat()
    except ValueError:
        raise ValueError(f"no day of the calendar; {remedy}") from None


def _text(text: str) -> str:
    return text[:MAX_TEXT]


def _box(text: str) -> tuple[int, int, int, int]:
    numbers = _numbers(text)
    if len(numbers) != 4 or not numbers[2] or not numbers[3]:  # noqa: PLR2004 - x, y, w, h
        raise ValueError("no box; write x, y, width and height in pixels, such as 10 20 300 200")
    x, y, width, height = numbers
    return x, y, width, height


def _age(text: str) -> str:
    """Return the band of an age in years, as of DICOM's form AS in years, or a band as it is."""
    if _BAND.fullmatch(text):
        return text
    years = _YEARS.fullmatch(text)
    if not years or int(years[1]) > _OLDEST:
        raise ValueError("no age; write years or a band of ten, such as 45 or 40-49")
    return age_band(int(years[1]))


def _sex(text: str) -> str:
    if text.lower() not in _SEXES:
        raise ValueError("not one of M, F, O; correct it or leave it empty")
    return _SEXES[text.lower()]


def _slices(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if not numbers or 0 in numbers or len(set(numbers)) < len(numbers):
        raise ValueError("no list of slices; write numbers from 1, each once, such as 3 7 12")
    return numbers


def _numbers(text: str) -> tuple[int, ...]:
    """Return whole numbers that stand between spaces, commas or semicolons; none if others do."""
    parts = [part for part in re.split(r"[\s,;]+", text) if part]
    if not all(re.fullmatch(r"\d{1,6}", part, re.ASCII) for part in parts):
        return ()
    return tuple(map(int, parts))


_VALUES: Mapping[str, Callable[[str], Any]] = {
    "laterality": _laterality,
    "date": _date,
    "scanner": _text,
    "box": _box,
    "age": _age,
    "sex": _sex,
    "slices": _slices,
    "site": _text,
    "source": _text,
}
