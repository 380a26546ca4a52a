"""How a real data set is dealt to hospitals: units, skew, and who gets how many of each class.

A unit is what must not be split: the images of one patient or of one group. Here are tables and
counts; ``simulations/hospitals.py`` makes the folders.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, EmptyManifestError, ManifestError, MissingFolderError

LABELS = "labels.csv"
_LEAST = 2  # units of a class with which a site can both train and test
_LISTED_FAULTS = 50
_NUMBER = r"(?P<{}>[0-9]{{1,3}}(\.[0-9]{{1,6}})?)"
_SKEW = re.compile(
    rf"iid|scanner|dirichlet:{_NUMBER.format('alpha')}|size:{_NUMBER.format('power')}"
)


@dataclass(frozen=True)
class Skew:
    """How unlike each other the hospitals are.

    Attributes:
        alpha: Concentration of the Dirichlet distribution of each class over the sites (Yurochkin
            and others, ICML 2019): small is skewed; None gives each site the same mix.
        power: Site number k, from 1, has a share of the units proportional to k to the minus
            this power; 0 gives equal sizes.
        scanner: Give each site a gamma of its own.
    """

    alpha: float | None = None
    power: float = 0.0
    scanner: bool = False


@dataclass(frozen=True)
class Row:
    """One image of the data set; paths count from its folder."""

    path: str
    label: str
    patient: str
    group: str
    mask: str


@dataclass(frozen=True)
class Unit:
    """Rows that stay together."""

    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        """The label of most rows; of two equally frequent ones, the first by alphabet."""
        counts = Counter(row.label for row in self.rows)
        return min(counts, key=lambda label: (-counts[label], label))


def parse_skew(text: str) -> Skew:
    """Read a skew as the command line gives it, such as ``dirichlet:0.5,size:1``.

    Raises:
        DataError: A part is unknown, stands there twice or contradicts another.
    """
    parts = [part.strip() for part in text.split(",")]
    matches = [match for part in parts if (match := _SKEW.fullmatch(part))]
    names = {part.partition(":")[0] for part in parts}
    numbers = {
        name: float(value)
        for match in matches
        for name, value in match.groupdict().items()
        if value is not None
    }
    whole = len(parts) == len(matches) == len(names)
    if not whole or {"iid", "dirichlet"} <= names or numbers.get("alpha") == 0:
        raise DataError(
            f"The skew {text!r} cannot be dealt.",
            remedy="Give iid, dirichlet:ALPHA with ALPHA above 0, size:POWER or scanner; or "
            "several with commas, each once, such as dirichlet:0.5,size:1.",
        )
    return Skew(numbers.get("alpha"), numbers.get("power", 0.0), "scanner" in names)


def read_rows(dataset: Path, *, label: str) -> list[Row]:
    """Read ``labels.csv`` of a data set.

    Args:
        dataset: Its folder.
        label: Name of the column of labels.

    Raises:
        MissingFolderError: There is no ``labels.csv``.
        EmptyManifestError: It has no rows.
        ManifestError: Columns are missing, or rows have faults; all are listed.
    """
    file = dataset / LABELS
    if not file.is_file():
        raise MissingFolderError(
            f"There is no {file}.",
            remedy=f"Give a folder with {LABELS} (path, label, patient_id) and its images.",
        )
    columns, lines = _table(file)
    absent = [name for name in ("path", label) if name not in columns]
    if absent:
        missing = "".join(f"\n  - there is no column {name!r}" for name in absent)
        raise ManifestError(
            f"The table {file} has other columns ({', '.join(columns) or 'none'}):{missing}",
            remedy="Name the columns in its first line; --label says which holds the labels.",
        )
    rows = [_row(cells, label) for cells in lines]
    if not rows:
        raise EmptyManifestError(f"The table {file} has no rows.", remedy="List the images.")
    faults = list(_faults(rows, dataset))
    if faults:
        more = len(faults) - _LISTED_FAULTS
        listed = faults[:_LISTED_FAULTS] + ([f"and {more} more"] if more > 0 else [])
        raise ManifestError(
            f"The table {file} has {len(faults)} faults:\n"
            + "\n".join(f"  - {fault}" for fault in listed),
            remedy="Correct each row; paths count from the table's folder.",
        )
    return rows


def _table(file: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """Return the names of the columns, and the cells of each line by column."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            table = csv.DictReader(opened)
            return list(table.fieldnames or []), list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(
            f"The table {file} is no readable CSV file: {error}.",
            remedy="Save it as comma-separated values in UTF-8.",
        ) from error


def _row(cells: dict[str, str | None], label: str) -> Row:
    columns = ("path", label, "patient_id", "group", "mask")
    return Row(*((cells.get(name) or "").strip() for name in columns))


def _faults(rows: list[Row], dataset: Path) -> Iterator[str]:
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        if not row.label:
            yield f"row {number}: no label"
        if row.path in seen:
            yield f"row {number}: {row.path} stands in an earlier row too"
        seen.add(row.path)
        for name, path in (("path", row.path), ("mask", row.mask)):
            if not path:
                if name == "path":
                    yield f"row {number}: no path"
            elif PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                yield f"row {number}: the {name} {path} leads out of the folder"
            elif not (dataset / path).is_file():
                yield f"row {number}: the {name} {path} is no file"


def labels_of(folder: Path) -> list[str]:
    """Return the labels of a data set, sorted."""
    with (folder / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        return sorted({row["label"] for row in csv.DictReader(file)})


def units_of(rows: list[Row]) -> list[Unit]:
    """Gather rows that share a patient or a group, directly or through others, into units.

    A row with neither is a unit of its own. Units and their rows keep the table's order.
    """
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def find(name: tuple[str, str]) -> tuple[str, str]:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    names = [_names(row) for row in rows]
    for first, *others in names:
        for other in others:
            leader[find(other)] = find(first)
    gathered: dict[tuple[str, str], list[Row]] = {}
    for row, (first, *_) in zip(rows, names, strict=True):
        gathered.setdefault(find(first), []).append(row)
    return [Unit(tuple(members)) for members in gathered.values()]


def _names(row: Row) -> list[tuple[str, str]]:
    """Return what ties a row to others: its group, its patient, or else only its path."""
    ties = [(kind, name) for kind, name in (("group", row.group), ("id", row.patient)) if name]
    return ties or [("path", row.path)]


def deal_units(
    units: list[Unit], *, sites: int, skew: Skew, rng: np.random.Generator
) -> list[list[Unit]]:
    """Deal units to sites, by the label of most of their rows.

    Args:
        units: What is dealt; each unit goes to exactly one site.
        sites: How many sites.
        skew: Of labels and sizes.
        rng: Where the deal comes from.

    Returns:
        The units of each site.
    """
    classes = sorted({unit.label for unit in units})
    totals = np.array([sum(unit.label == name for unit in units) for name in classes])
    counts = deal_counts(totals, sites=sites, skew=skew, rng=rng)
    dealt: list[list[Unit]] = [[] for _ in range(sites)]
    for name, of_class in zip(classes, counts, strict=True):
        members = [unit for unit in units if unit.label == name]
        order = rng.permutation(len(members))
        for site, part in enumerate(np.split(order, np.cumsum(of_class)[:-1])):
            dealt[site] += [members[index] for index in sorted(part.tolist())]
    return dealt


def deal_counts(
    totals: NDArray[np.int64], *, sites: int, skew: Skew, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return how many units of each class each site gets, as (classes, sites).

    Where there are enough units, every site ends up with at least two units of two classes:
    without them it could not both train and test.
    """
    size = np.arange(1, sites + 1, dtype=np.float64) ** -skew.power
    counts = np.zeros((len(totals), sites), dtype=np.int64)
    for row, total in zip(counts, totals, strict=True):
        mix = np.ones(sites) if skew.alpha is None else rng.dirichlet(np.full(sites, skew.alpha))
        share = size * mix / (size * mix).sum()
        row[:] = np.floor(share * total)
        rest = share * total - row + 1e-9 * rng.random(sites)  # a tie is broken by chance
        row[np.argsort(-rest)[: total - row.sum()]] += 1  # largest remainders
    for site in range(sites):
        _help_out(counts, site)
    return counts


def _help_out(counts: NDArray[np.int64], site: int) -> None:
    """Move single units from sites that have more to one that has fewer than two classes."""
    for number in np.argsort(-counts[:, site], kind="stable"):
        if (counts[:, site] >= _LEAST).sum() >= min(_LEAST, len(counts)):
            return
        spare = np.maximum(counts[number] - _LEAST, 0)
        spare[site] = 0
        need = max(_LEAST - counts[number, site], 0)
        for _ in range(need if spare.sum() >= need else 0):
            donor = int(np.argmax(spare))
            spare[donor] -= 1
            counts[number, donor] -= 1
            counts[number, site] += 1
