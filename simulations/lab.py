"""The lab file: one base study, the hospitals it is played at, and the rows that are compared.

Each key is documented in ``docs/lab.md``; a test holds the two together. What a row or a grid
changes of the base study is written as in a study file, with dots (``"training.train" = "head"``)
or as tables.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from client.classical import Classifier, Features
from common.errors import StudyError
from common.faults import Fault
from common.section import Section
from common.study import Slug

LABS = Path(__file__).parent / "labs"
"""The named labs, one file each."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Kind = Literal[
    "federated", "tuned", "alone", "alone_at_home", "ensemble", "pooled", "classical", "vote"
]
Point = dict[str, Any]
"""Some keys of a study, as a row or a point of the grid changes them."""
_OWNERS = {
    "rounds_after": "tuned", "of": "vote", "weights": "vote", "across_seeds": "vote",
    "features": "classical", "classifier": "classical", "pooled": "classical",
}  # fmt: skip
"""Keys of a row that one kind alone has."""
_NEEDED = ("rounds_after", "of", "features", "classifier")
_QUICK = ("seeds", "study", "hospitals", "rows", "grid")


class Classical(NamedTuple):
    """What a classical row is made of; see ``Row``."""

    features: Features
    classifier: Classifier
    pooled: bool


class Phantoms(Section):
    """Hospitals of phantoms, as ``rarefed-sim make`` makes them."""

    sites: Annotated[int, Field(ge=1, le=1000)] = 6
    patients: Annotated[int, Field(ge=4, le=100_000)] = 40
    """Patients of each, on average."""
    images: Annotated[int, Field(ge=1, le=100)] = 3
    """Most images of a patient."""
    tasks: list[str] = Field(default_factory=list)
    """Which of the phantoms' tasks, in turn over the sites; all of them by default."""
    seed: Seed = 0


class Deal(Section):
    """A data set that is dealt to hospitals, as ``rarefed-sim deal`` deals it."""

    dataset: Annotated[str, Field(min_length=1)]
    """Its folder; a relative one counts from ``--data``, else from the lab file."""
    task: Slug
    sites: Annotated[int, Field(ge=1, le=1000)] = 4
    skew: str = "dirichlet:0.5"
    label: str = "label"
    take: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Most images of each label that are dealt; left out, all are."""
    seed: Seed = 0


class Hospitals(Section):
    """Where the patients come from: one of three ways."""

    folder: Annotated[str, Field(min_length=1)] | None = None
    """A folder of hospital folders that is there; a relative one counts from the lab file."""
    phantoms: Phantoms | None = None
    deal: list[Deal] = Field(default_factory=list)


class Row(Section):
    """One line of the table, or one for each point of the grid."""

    kind: Kind = "federated"
    study: Point = Field(default_factory=dict)
    """What this row changes of the base study."""
    grid: bool = True
    """Whether there is such a row at each point of the grid, or a single one beside it."""
    rounds_after: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Rounds that each site of a tuned row trains further by itself after the study."""
    of: list[str] = Field(default_factory=list)
    """Rows that vote, by name; ``*`` stands for any text."""
    weights: Literal["equal", "validation"] = "equal"
    """What each of them weighs: the same, or its AUROC on the validation patients."""
    across_seeds: bool = False
    """Whether all seeds of them vote together, instead of those of each seed."""
    features: Features | None = None
    """What a classical row computes of an image."""
    classifier: Classifier | None = None
    """What a classical row decides with."""
    pooled: bool = False
    """Whether a classical row has one classifier of all training patients, not one of each site."""


class Lab(Section):
    """A comparison of rows over the same hospitals, the same split and the same seeds."""

    name: Slug
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=100)] = Field(
        default_factory=lambda: [0]
    )
    """Each is the seed of a study: the start of its heads, the order of its images."""
    study: str | dict[str, Any]
    """The base study: the path of a study file, or its tables."""
    hospitals: Hospitals
    rows: dict[str, Row] = Field(default_factory=dict)
    """By name; left out, there is one row at each point of the grid."""
    grid: dict[str, list[str | int | float | bool] | dict[str, Point]] = Field(default_factory=dict)
    """Axes: a study's key with its values, or any name with named points."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """What ``--quick`` puts in place of the keys of the same names; of ``study``, what it changes,
    where tasks take the place of all tasks."""


class Loaded(NamedTuple):
    """A lab that was read, with the places that its relative paths count from."""

    lab: Lab
    folder: Path
    """Of the lab file."""
    base: dict[str, Any]
    """Values of the base study."""
    data: Path | None
    weights: Path | None
    """A folder of weights files, each named after its backbone."""


def find_lab(name: str) -> Path:
    """Return the file of a named lab, or ``name`` itself as a path.

    Raises:
        StudyError: There is neither such a lab nor such a file, and it does not look like one.
    """
    named, path = LABS / f"{name}.toml", Path(name)
    if named.is_file():
        return named
    if not path.is_file() and path.suffix != ".toml":
        known = sorted(file.stem for file in LABS.glob("*.toml"))
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise StudyError(
            f"There is no lab {name}, and no such file.",
            remedy=f"{meant}Named labs are {', '.join(known)}; or give the path of a TOML file.",
        )
    return path


def with_quick(values: dict[str, Any]) -> dict[str, Any]:
    """Return the lab's values with what its table ``quick`` says in their place."""
    quick = values.get("quick")
    if not isinstance(quick, dict):
        return values
    replaced = values | {key: value for key, value in quick.items() if key in _QUICK}
    base, changes = values.get("study"), quick.get("study")
    if isinstance(base, dict) and isinstance(changes, dict):
        kept = {key: value for key, value in base.items() if key != "tasks" or key not in changes}
        replaced["study"] = changed(kept, changes)
    return replaced


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with changes: dots lead into tables, and tables change key by key."""
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        inner = {rest: value} if rest else value
        old = result.get(first)
        if isinstance(inner, dict):
            result[first] = changed(old if isinstance(old, dict) else {}, inner)
        else:
            result[first] = inner
    return result


def refusal(name: str, faults: list[Fault]) -> StudyError:
    """Return the error that lists every fault of a lab file."""
    lines = [f"  - {fault}" for fault in faults]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return StudyError(
        f"The lab {name} has {count}:\n" + "\n".join(lines),
        remedy="Correct each; docs/lab.md describes every key.",
    )


def quick_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with what a lab puts in place for its quick form."""
    quick = values.get("quick")
    if not isinstance(quick, dict) or not quick:
        yield Fault("quick", "the lab has no quick form", "add one, or leave --quick out")
        return
    if "study" in quick and not isinstance(values.get("study"), dict):
        what = "the base study is a file, of which nothing is replaced"
        yield Fault("quick.study", what, "give the base study as tables")
    for key in quick:
        if key not in _QUICK:
            known = ", ".join(_QUICK)
            yield Fault(f"quick.{key}", "nothing of that name is replaced", f"use {known}")


def combination_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield what no single key shows to be wrong; of raw values, so that all is found at once."""
    hospitals, rows, grid = (
        found if isinstance(found := values.get(key), dict) else {}
        for key in ("hospitals", "rows", "grid")
    )
    ways = [way for way in ("folder", "phantoms", "deal") if hospitals.get(way) is not None]
    if isinstance(values.get("hospitals"), dict) and len(ways) != 1:
        said = " and ".join(ways) or "none"
        yield Fault("hospitals", f"patients come from {said}", "give one of folder, phantoms, deal")
    seeds = values.get("seeds", [0])
    if isinstance(seeds, list) and len({str(seed) for seed in seeds}) < len(seeds):
        yield Fault("seeds", "a seed stands there twice", "give each once")
    if not rows and not grid:
        yield Fault("rows", "there is nothing to compare", "add rows, or a grid")
    for name, axis in grid.items():
        if isinstance(axis, list | dict) and not axis:
            yield Fault(f"grid.{name}", "the axis has no point", "add some, or remove it")
    for name, row in rows.items():
        if isinstance(row, dict):
            yield from _row_faults(f"rows.{name}", row)


def _row_faults(where: str, row: dict[str, Any]) -> Iterator[Fault]:
    kind = row.get("kind", "federated")
    for key, owner in _OWNERS.items():
        if key in row and kind != owner:
            yield Fault(f"{where}.{key}", f"a {kind} row has none", f"use it with kind = {owner!r}")
        if kind == owner and key in _NEEDED and not row.get(key):
            yield Fault(f"{where}.{key}", f"a {kind} row needs it", "add it")
    if kind == "vote" and row.get("study"):
        yield Fault(f"{where}.study", "a vote trains nothing", "leave it out")
