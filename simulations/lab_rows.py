"""The lines of a lab's table: its rows at each point of its grid, each with its study."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.backbones import Backbone
from common.errors import MissingFolderError
from common.faults import Fault
from common.study import Study
from common.study_faults import combination_faults, with_right_keys
from simulations.lab import Classical, Kind, Loaded, Point, Row, changed

_FIXED = ("name", "seed", "split")
_FIXED_OF_TASK = ("modality", "classes", "positive", "per_patient")
"""Keys that no row may change: the same patients are asked the same question."""
_SEPARATOR = " / "


class Vote(NamedTuple):
    """Whose predictions a line averages, and how."""

    of: tuple[str, ...]
    """Names of lines."""
    weights: Literal["equal", "validation"]
    across_seeds: bool


class Line(NamedTuple):
    """One line of the table."""

    name: str
    kind: Kind
    study: Study | None
    """Of any seed; None of a vote, and of what cannot apply."""
    reason: str = ""
    """Why it cannot apply; empty where it can."""
    vote: Vote | None = None
    rounds_after: int = 0
    """Of a tuned line."""
    classical: Classical | None = None
    """Of a classical line."""


class _Draft(NamedTuple):
    name: str
    row: Row
    where: str
    """What the lab file calls it."""
    changes: tuple[Point, ...]


class _Read(NamedTuple):
    """What came of a row's study."""

    study: Study | None
    """None where a key is wrong."""
    wrong: list[Fault]
    """Keys that a study does not have, and values that are wrong each by itself."""
    apart: list[Fault]
    """What contradicts each other."""

    @property
    def faults(self) -> list[Fault]:
        """All that is wrong."""
        return [*self.wrong, *self.apart]


_ReadBy = Mapping[str, _Read]


def lines(loaded: Loaded) -> list[Line]:
    """Return the lines of a lab that has no ``row_faults``, in the order of its file.

    A row whose keys are right each by itself and contradict each other cannot apply: it stands in
    the table with the reason, so that a grid may have such points.
    """
    drafts = list(_drafts(loaded))
    trained = [draft for draft in drafts if draft.row.kind != "vote"]
    read = {draft.name: _read(loaded, draft) for draft in trained}
    votes = {d.name: _members(d, trained) for d in drafts if d.row.kind == "vote"}
    return [_line(draft, read, votes) for draft in drafts]


def row_faults(loaded: Loaded, *, whole: bool = True) -> list[Fault]:
    """Return what is wrong with the rows of a lab.

    Keys that a study does not have, and values of the wrong type, are faults; a row that
    contradicts itself is one only where all rows do.

    Args:
        loaded: The lab.
        whole: Whether it has all its rows; else a vote may be of one that was left out.

    Raises:
        MissingFolderError: ``--weights`` names no folder.
    """
    drafts = list(_drafts(loaded))
    faults = list(_fixed_faults(drafts, loaded.lab.grid))
    trained = [draft for draft in drafts if draft.row.kind != "vote"]
    read = {draft.name: _read(loaded, draft) for draft in trained}
    faults += _study_faults(_read(loaded, _Draft("", Row(), "", ())), trained, read)
    for draft in drafts:
        if whole and draft.row.kind == "vote" and not _members(draft, trained):
            known = ", ".join(other.name for other in trained)
            what = "no row that trains has such a name"
            faults.append(Fault(f"{draft.where}.of", what, f"use {known}"))
    names = [draft.name for draft in drafts]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        faults.append(Fault("rows", f"two are called {', '.join(twice)}", "rename one"))
    return faults


def with_seed(study: Study, seed: int) -> Study:
    """Return the study with another seed."""
    return study.model_copy(update={"seed": seed})


def _line(draft: _Draft, read: _ReadBy, votes: Mapping[str, tuple[str, ...]]) -> Line:
    name, row = draft.name, draft.row
    if name in votes:
        vote = Vote(votes[name], row.weights, row.across_seeds)
        return Line(name, "vote", None, vote=vote)
    study, faults = read[name].study, read[name].faults
    if faults:
        return Line(name, row.kind, None, reason=" ".join(map(str, faults)))
    classical = None
    if row.features is not None and row.classifier is not None:
        classical = Classical(row.features, row.classifier, row.pooled)
    return Line(name, row.kind, study, rounds_after=row.rounds_after or 0, classical=classical)


def _drafts(loaded: Loaded) -> Iterator[_Draft]:
    """Yield each row at each point of the grid, points first in the name."""
    lab = loaded.lab
    points = [dict(_points(key, axis)) for key, axis in lab.grid.items()]
    for row_name, row in (lab.rows or {"": Row()}).items():
        where = f"rows.{row_name}" if row_name else "grid"
        whole = bool(points) and row.grid and row.kind != "vote"
        for chosen in product(*(axis.items() for axis in points)) if whole else [()]:
            name = _SEPARATOR.join([point for point, _ in chosen] + [row_name] * bool(row_name))
            yield _Draft(name, row, where, (*(change for _, change in chosen), row.study))


def _points(key: str, axis: list[Any] | dict[str, Point]) -> Iterator[tuple[str, Point]]:
    """Yield the points of an axis: their names, and what each changes."""
    if isinstance(axis, dict):
        yield from axis.items()
        return
    _, _, last = key.rpartition(".")
    for value in axis:
        yield (value if isinstance(value, str) else f"{last} {value}"), {key: value}


def _fixed_faults(drafts: list[_Draft], grid: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield which rows change what all rows must share."""
    seen = set()
    for draft in drafts:
        *points, own = draft.changes
        places = [*zip((f"grid.{key}" for key in grid), points, strict=False)]
        for where, change in [*places, (f"{draft.where}.study", own)]:
            for key in _changed_keys(change):
                if _is_fixed(key) and (where, key) not in seen:
                    seen.add((where, key))
                    what = f"{key} is the same for all rows"
                    yield Fault(where, what, "change it in the lab's study, or in its seeds")


def _is_fixed(key: str) -> bool:
    parts = key.split(".")
    of_task = parts[0] == "tasks" and (len(parts) < 3 or parts[2] in _FIXED_OF_TASK)  # noqa: PLR2004 - tasks, name, key
    return parts[0] in _FIXED or of_task


def _changed_keys(change: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, dict) and value:
            yield from _changed_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _read(loaded: Loaded, draft: _Draft) -> _Read:
    """Return a row's study, and its faults; there is a study if each key by itself is right."""
    values = dict(loaded.base)
    for change in draft.changes:
        values = changed(values, change)
    values["seed"] = loaded.lab.seeds[0]
    study, wrong = with_right_keys(Study, values)
    apart = combination_faults(values, wrong)
    if study is None:
        return _Read(None, wrong, apart)
    random = any(member.backbone.weights == "none" for member in study.members)
    if draft.row.features == "backbone" and random:
        what = "features of a random backbone tell nothing"
        apart.append(Fault("backbone.weights", what, "use pretrained weights"))
    members = [
        member.model_copy(
            update={"weights": _placed(alone.backbone, loaded), "sha256": alone.backbone.sha256}
        )
        for member, alone in zip(study.ensemble, study.members, strict=False)
    ]
    backbone = study.backbone.model_copy(update={"weights": _placed(study.backbone, loaded)})
    study = study.model_copy(update={"backbone": backbone, "ensemble": members})
    return _Read(study, wrong, apart)


def _placed(backbone: Backbone, loaded: Loaded) -> str:
    """Return a backbone's weights as this machine has them, a file by its whole path."""
    file = backbone.weights_file
    if backbone.weights == "pretrained" and loaded.weights is not None:
        file = _weights_of(backbone.name, loaded.weights)
    elif file is not None and not file.is_absolute():
        file = loaded.folder / file
    return backbone.weights if file is None else str(file.resolve())


def _weights_of(backbone: str, folder: Path) -> Path | None:
    """Return the file of a backbone's weights; None where the folder has none of that name.

    A file called just like the backbone wins; else its name goes on behind it, and the shortest is
    taken, as that of ``vgg16_bn`` goes on behind ``vgg16``.
    """
    if not folder.is_dir():
        raise MissingFolderError(
            f"There is no folder {folder}.", remedy="Give the folder of the weights to --weights."
        )
    found = [
        file
        for file in folder.glob("*.safetensors")
        if re.match(rf"{re.escape(backbone)}([._-]|$)", file.name)
    ]
    return min(found, key=lambda file: (len(file.name), file.name), default=None)


def _study_faults(base: _Read, trained: list[_Draft], read: _ReadBy) -> Iterator[Fault]:
    """Yield what is wrong with the rows' studies; what the base study has wrong for all, once."""
    found = [read[draft.name] for draft in trained]
    common = [fault for fault in base.faults if all(fault in of.faults for of in found)]
    for fault in common:
        yield fault._replace(where=f"study.{fault.where}")
    seen = set()
    none_applies = all(of.apart for of in found)
    for draft, of in zip(trained, found, strict=True):
        for fault in of.faults if none_applies else of.wrong:
            told = fault._replace(where=f"{draft.where}: {fault.where}")
            if fault not in common and told not in seen:
                seen.add(told)
                yield told


def _members(draft: _Draft, trained: list[_Draft]) -> tuple[str, ...]:
    """Return the names of the lines that vote."""
    return tuple(
        other.name
        for other in trained
        if any(fnmatchcase(other.name, pattern) for pattern in draft.row.of)
    )
