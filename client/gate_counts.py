"""How many images and patients a site has, by all that the report tells apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from client.reading_pass import RowRead
from client.split import SPLITS
from common.study import Task

SHOWN_VALUES = 20
"""Values of a column that are counted by name, the commonest; the rest are counted together."""
UNKNOWN, OTHERS = "unknown", "all others"


class Count(NamedTuple):
    """How many of something there are."""

    patients: int
    rows: int
    images: int
    """Of a volume, each of its slices that is used counts."""


class Line(NamedTuple):
    """One line of a table of counts."""

    value: str
    counts: tuple[Count, ...]
    """By split, or by class; the last is of all."""


def by_split(reads: Mapping[str, Sequence[RowRead]], task: Task) -> list[Line]:
    """Return the counts of each class in each split, and of all classes."""
    lines = []
    for label, name in [*enumerate(task.classes), (None, "all")]:
        own = [
            [read for read in reads[split] if label in {None, read.row.label}] for split in SPLITS
        ]
        everything = [read for part in own for read in part]
        lines.append(Line(name, tuple(count(part) for part in [*own, everything])))
    return lines


def by_column(reads: Mapping[str, Sequence[RowRead]], task: Task) -> dict[str, list[Line]]:
    """Return the counts of each value of a column, by class; columns of one value are left out."""
    everything = [read for split in SPLITS for read in reads[split] if read.look is not None]
    tables = {}
    for name, value_of in COLUMNS.items():
        groups: dict[str, list[RowRead]] = {}
        for read in everything:
            groups.setdefault(value_of(read) or UNKNOWN, []).append(read)
        if set(groups) - {UNKNOWN}:
            tables[name] = _lines(groups, task)
    return tables


def count(reads: Sequence[RowRead]) -> Count:
    """Count rows, their images and their patients."""
    images = sum(len(read.look.parts) for read in reads if read.look is not None)
    return Count(len({read.row.patient for read in reads}), len(reads), images)


def _lines(groups: dict[str, list[RowRead]], task: Task) -> list[Line]:
    ordered = sorted(groups, key=lambda value: (value == UNKNOWN, -len(groups[value]), value))
    named, rest = ordered[:SHOWN_VALUES], ordered[SHOWN_VALUES:]
    parts = [(value, groups[value]) for value in named]
    if rest:
        parts.append((OTHERS, [read for value in rest for read in groups[value]]))
    return [
        Line(
            value,
            (
                *(
                    count([read for read in reads if read.row.label == label])
                    for label in range(len(task.classes))
                ),
                count(reads),
            ),
        )
        for value, reads in parts
    ]


def scanner_of(read: RowRead) -> str:
    """Return the scanner by the manifest, else by the header."""
    return read.row.scanner or (read.look.facts.scanner if read.look else "")


def size_of(read: RowRead) -> str:
    """Return rows and columns of the image in its file."""
    return f"{read.look.facts.rows} x {read.look.facts.columns}" if read.look else ""


def kind_of(read: RowRead) -> str:
    """Return the kind of file."""
    return read.look.facts.kind if read.look else ""


def _sex(read: RowRead) -> str:
    return read.row.sex or (read.look.facts.sex if read.look else "")


def _age(read: RowRead) -> str:
    return read.row.age or (read.look.facts.age if read.look else "")


COLUMNS: Mapping[str, Callable[[RowRead], str]] = {
    "scanner": scanner_of,
    "site": lambda read: read.row.site,
    "sex": _sex,
    "age": _age,
    "kind of file": kind_of,
    "image size": size_of,
}
"""What the counts are told apart by, and how a row's value is found."""
