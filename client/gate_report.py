"""The report of a check: a JSON file, and one page of HTML with small pictures.

Both stay at the hospital. They name rows by their line in the manifest, and no patient, group or
path. The page refers to nothing outside itself and may not fetch anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from client.check import Checked, TaskCheck, shown_rows
from client.findings import Finding
from client.gate_counts import Line, by_column, by_split
from client.split import SPLITS
from common.files import write_atomic, write_json

OWNER_ONLY = 0o600
LISTED_RANGES = 100
"""Runs of lines that the page spells out; the JSON has all."""


class Figure(NamedTuple):
    """One row of a finding, as the page shows it."""

    line: int
    label: str
    split: str
    why: str
    picture: str
    """A data URI, or nothing where the row gave no image."""


class Shown(NamedTuple):
    """One finding, as the page shows it."""

    finding: Finding
    lines: str
    figures: list[list[Figure]]
    """Rows with a picture; those that belong together, together."""
    unread: list[Figure]
    """Rows without one."""
    hidden: int
    """Rows that are not shown."""


def as_json(checked: Checked) -> dict[str, Any]:
    """Return what a script may want to know: the declaration, and all findings by task."""
    return {
        **checked.declaration.model_dump(),
        "joins": checked.refusal is None,
        "refusal": "" if checked.refusal is None else checked.refusal.code,
        "findings": {one.name: [_said(f) for f in one.verdict.findings] for one in checked.tasks},
        "left_out": {
            one.name: {str(line): code for line, code in sorted(one.verdict.left_out.items())}
            for one in checked.tasks
        },
        "counts": {one.name: _counts(one) for one in checked.tasks},
    }


def write_report(checked: Checked, json_file: Path, html_file: Path) -> None:
    """Write both reports, readable by their owner alone.

    Raises:
        OSError: A file cannot be written.
    """
    write_json(json_file, as_json(checked), mode=OWNER_ONLY)
    write_atomic(html_file, page_of(checked).encode(), mode=OWNER_ONLY)


def page_of(checked: Checked) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("client"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tasks = [
        {
            "name": one.name,
            "classes": one.task.classes,
            "modality": one.task.modality,
            "rows": sum(len(reads) for reads in one.reads.values()),
            "left_out": len(one.verdict.left_out),
            "splits": by_split(one.reads, one.task),
            "columns": by_column(one.reads, one.task),
            "findings": list(_shown(one)),
        }
        for one in checked.tasks
    ]
    return environment.get_template("check.html").render(
        site=checked.site,
        study=checked.study,
        refusal=checked.refusal,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        split_names=SPLITS,
        tasks=tasks,
    )


def ranges(lines: Sequence[int]) -> str:
    """Return line numbers as text, those that follow one another as a range, at most so many."""
    if not lines:
        return ""
    breaks = [i for i, (one, other) in enumerate(pairwise(lines), 1) if other != one + 1]
    runs = [lines[i:j] for i, j in pairwise([0, *breaks, len(lines)])]
    text = ", ".join(
        f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:LISTED_RANGES]
    )
    rest = sum(map(len, runs[LISTED_RANGES:]))
    return f"{text} and {rest} more" if rest else text


def _said(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "accepted": finding.accepted,
        "title": finding.title,
        "what": finding.what,
        "remedy": finding.remedy,
        "rows": list(finding.rows),
        "groups": [list(group) for group in finding.groups],
        "why": {str(line): why for line, why in finding.why.items()},
    }


def _counts(one: TaskCheck) -> dict[str, Any]:
    def said(lines: Sequence[Line], names: Sequence[str]) -> dict[str, Any]:
        return {
            line.value: {
                name: count._asdict() for name, count in zip(names, line.counts, strict=True)
            }
            for line in lines
        }

    classes = [*one.task.classes, "all"]
    return {
        "label": said(by_split(one.reads, one.task), [*SPLITS, "all"]),
        **{
            column: said(lines, classes) for column, lines in by_column(one.reads, one.task).items()
        },
    }


def _shown(one: TaskCheck) -> Iterator[Shown]:
    rows = {
        read.row.line: (read.row, split) for split, reads in one.reads.items() for read in reads
    }
    for finding in one.verdict.findings:
        chosen = set(shown_rows(finding.rows, finding.groups))
        groups: Sequence[Sequence[int]] = finding.groups or [finding.rows]
        figures = [
            [_figure(one, rows, finding, line) for line in group if line in chosen]
            for group in groups
        ]
        yield Shown(
            finding,
            ranges(finding.rows),
            [drawn for group in figures if (drawn := [one for one in group if one.picture])],
            [one for group in figures for one in group if not one.picture],
            len(finding.rows) - len(chosen),
        )


def _figure(
    one: TaskCheck, rows: Mapping[int, tuple[Any, str]], finding: Finding, line: int
) -> Figure:
    row, split = rows[line]
    return Figure(
        line,
        one.task.classes[row.label],
        split,
        finding.why.get(line, ""),
        one.thumbnails.get(line, ""),
    )
