"""The gate: which rows of a task are trained on, and what is odd about them.

Rows with an error are left out. A code that the hospital accepts leaves nothing out, but for rows
that gave no image. More rows with errors that are not accepted than the hospital tolerates, and the
site does not take part.
"""

import difflib
import logging
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from client.config import SiteConfig
from client.duplicates import alike, nearly_alike
from client.findings import CODES, Finding, plural
from client.gate_counts import kind_of, scanner_of, size_of
from client.image_checks import UNREAD, image_findings
from client.manifest import Manifest, Row
from client.reading_pass import RowRead
from client.shortcuts import Shortcut, shortcuts
from client.split import SPLITS
from common.errors import DataError, ImageError
from common.study import Task

SHOWN_VALUES = 6
"""Values of a column that a finding spells out."""
LISTED_ROWS = 50
"""Rows that a refusal spells out."""


class Terms(NamedTuple):
    """What a hospital asks of the rows of one task."""

    max_unreadable: float
    """Share of the rows, in [0, 1], that may have errors."""
    minimum_patients: int = 1
    accept: frozenset[str] = frozenset()
    """Codes of findings that it lives with."""
    each_image: bool = False
    """Whether each image counts as a patient of its own."""
    unlabelled: int = 0
    """Rows of the table that have no label of the task."""
    notes: tuple[str, ...] = ()
    """Columns of the table that are ignored and look like a slip."""
    held_elsewhere: frozenset[str] = frozenset()
    """Patients who are held out in another task."""


class Verdict(NamedTuple):
    """What the gate says of a task's rows."""

    findings: tuple[Finding, ...]
    """The severest first."""
    left_out: Mapping[int, str]
    """Lines that are not trained on, and the code of why."""
    refusal: DataError | None
    """Why the site may not take part; for the hospital's eyes."""


def terms_of(
    config: SiteConfig, name: str, manifest: Manifest, held_elsewhere: Collection[str] = ()
) -> Terms:
    """Return what a hospital asks of the rows of one of its tasks.

    Raises:
        DataError: The configuration accepts a code that there is none of.
    """
    files = config.data[name]
    if unknown := [code for code in files.accept if code not in CODES]:
        like = difflib.get_close_matches(unknown[0], CODES, n=1)
        raise DataError(
            f"[data.{name}] accepts {', '.join(unknown)}: there is no such finding.",
            remedy=f"Did you mean {like[0]}?" if like else "The codes are in docs/findings.md.",
        )
    return Terms(
        config.limits.max_unreadable,
        config.limits.minimum_patients,
        frozenset(files.accept),
        files.patients == "each_image",
        manifest.unlabelled,
        manifest.notes,
        frozenset(held_elsewhere),
    )


def judge(reads: Mapping[str, Sequence[RowRead]], task: Task, terms: Terms) -> Verdict:
    """Judge the rows of a task that were read once.

    Args:
        reads: What each row gave, by split; pixels are not looked at.
        task: What the images are of.
        terms: What the hospital asks.
    """
    everything = [read for split in SPLITS for read in reads[split]]
    split_of = {read.row.line: split for split in SPLITS for read in reads[split]}
    found = [*image_findings(everything, task.modality)]
    found += _duplicates(everything, split_of)
    found += _leaking(reads["train"], terms)
    left_out = {
        line: finding.code
        for finding in sorted(found, key=_place, reverse=True)
        if finding.severity == "error"
        and (finding.code in UNREAD or finding.code not in terms.accept)
        for line in finding.rows
    }
    kept = {s: [r for r in reads[s] if r.row.line not in left_out] for s in SPLITS}
    found += _small_classes(kept, task, terms)
    found += _told([read for split in SPLITS for read in kept[split]], task)
    found += _of_the_table(terms)
    accepted = [replace(f, accepted=f.code in terms.accept) for f in sorted(found, key=_place)]
    return Verdict(tuple(accepted), left_out, _refusal(accepted, everything, terms))


def log_verdict(verdict: Verdict, reads: Sequence[RowRead], log: logging.Logger) -> None:
    """Tell the site's own log which rows are left out, and which findings are accepted."""
    for finding in verdict.findings:
        if finding.accepted:
            count = len(finding.rows)
            log.warning("accepted: %s, %d rows: %s", finding.code, count, finding.what)
    for read in reads:
        if code := verdict.left_out.get(read.row.line):
            log.warning("left out: %s", _named(read, code))


def _named(read: RowRead, code: str) -> str:
    """Say what is wrong with a row, and name its file; for the hospital's own log."""
    what = read.error or f"{read.row.path}: {CODES[code].title.lower()} ({code})"
    return f"line {read.row.line}: {what}"


def _place(finding: Finding) -> int:
    return list(CODES).index(finding.code)


def _duplicates(reads: Sequence[RowRead], split_of: Mapping[int, str]) -> Iterator[Finding]:
    """Yield what is found of images that are the same, and of those that are nearly so."""
    seen = [read for read in reads if read.look is not None]
    rows = [read.row for read in seen]
    same = alike([_pixels_of(read) for read in seen])
    grouped: dict[str, list[list[Row]]] = {}
    for group in same:
        for code in _same_codes([rows[i] for i in group], split_of):
            grouped.setdefault(code, []).append([rows[i] for i in group])
    copies = {i for group in same for i in group[1:]}
    others = [i for i in range(len(seen)) if i not in copies]
    looks = [read.look for read in seen if read.look is not None]
    near = nearly_alike([looks[i].phash for i in others], [looks[i].fine for i in others])
    for group in near:
        members = [rows[others[i]] for i in group]
        code = "near_" + _relation(members, split_of)
        grouped.setdefault(code, []).append(members)
    for code, groups in grouped.items():
        lines = tuple(tuple(row.line for row in group) for group in groups)
        every = tuple(sorted({line for group in lines for line in group}))
        what = f"{len(every)} rows in {plural(len(lines), 'group')} of "
        what += "nearly the same image." if code.startswith("near") else "the same pixels."
        yield Finding(code, what, every, lines)


def _pixels_of(read: RowRead) -> Hashable:
    """Return what two rows share when their pixels are the same, whatever file is around them."""
    look = read.look
    if look is None:
        return read.row.line
    return look.phash, look.fine, look.mean, look.dark, look.bright, look.parts, read.row.box


def _same_codes(group: Sequence[Row], split_of: Mapping[int, str]) -> Iterator[str]:
    """Yield what it means that all rows of a group have the same pixels."""
    relation, differ = _relation(group, split_of), len({row.label for row in group}) > 1
    if differ:
        yield "labels_differ"
    if not differ or relation != "duplicate":
        yield relation


def _relation(group: Sequence[Row], split_of: Mapping[int, str]) -> str:
    """Say what rows of one image have to do with one another."""
    if len({split_of[row.line] for row in group}) > 1:
        return "duplicate_across_splits"
    if len({row.patient for row in group}) > 1 and len({row.unit for row in group}) > 1:
        return "duplicate_across_patients"
    return "duplicate"


def _leaking(trained: Sequence[RowRead], terms: Terms) -> Iterator[Finding]:
    """Yield the training rows of patients who are held out in another task.

    The backbone sees the images of all tasks, so that it would be tested on whom it knows.
    """
    rows = [read.row.line for read in trained if read.row.patient in terms.held_elsewhere]
    if rows:
        what = f"{plural(len(rows), 'training row')} of patients held out in another task."
        yield Finding("patient_in_two_splits", what, tuple(sorted(rows)))


def _small_classes(
    kept: Mapping[str, Sequence[RowRead]], task: Task, terms: Terms
) -> Iterator[Finding]:
    few = []
    for split in SPLITS:
        for label, name in enumerate(task.classes):
            patients = len({r.row.patient for r in kept[split] if r.row.label == label})
            if patients < terms.minimum_patients:
                few.append(f"{name} in {split}: {patients}")
    if few:
        what = f"Fewer patients than {terms.minimum_patients}: {'; '.join(few)}."
        yield Finding("class_below_minimum", what)


def _told(kept: Sequence[RowRead], task: Task) -> Iterator[Finding]:
    """Yield the columns that tell the label."""
    columns = {
        "scanner": [scanner_of(read) for read in kept],
        "site": [read.row.site for read in kept],
        "source": [read.row.source or "own" for read in kept],
        "image size": [size_of(read) for read in kept],
        "kind of file": [kind_of(read) for read in kept],
    }
    labels = [read.row.label for read in kept]
    patients = [read.row.patient for read in kept]
    for found in shortcuts(labels, patients, columns):
        values = zip(kept, columns[found.column], strict=True)
        why = {
            read.row.line: f"{found.column} {value or 'unknown'}"
            for read, value in values
            if value in found.telling
        }
        what = _told_text(found, task.classes[found.label])
        groups: dict[str, list[int]] = {}
        for line, value in why.items():
            groups.setdefault(value, []).append(line)
        tied = tuple(map(tuple, groups.values()))
        yield Finding("shortcut", what, tuple(sorted(why)), tied, why)


def _told_text(found: Shortcut, name: str) -> str:
    """Say how well a column tells a class, and what its commonest values say."""
    common = sorted(found.shares.items(), key=lambda item: -item[1][1])[:SHOWN_VALUES]
    shares = "; ".join(
        f"{value or 'unknown'}: {share:.0%} of {patients}" for value, (share, patients) in common
    )
    return (
        f"The {found.column} alone tells {name} with a balanced accuracy of {found.accuracy:.2f} "
        f"(0.5 is chance). Patients who are {name}: {shares}."
    )


def _of_the_table(terms: Terms) -> Iterator[Finding]:
    if terms.notes:
        yield Finding("odd_column", " ".join(f"{n[:1].upper()}{n[1:]}" for n in terms.notes))
    if terms.unlabelled:
        what = f"{plural(terms.unlabelled, 'row')} without a label of this task."
        yield Finding("label_empty", what)
    if terms.each_image:
        yield Finding("each_image", "The site's configuration says so; the declaration says it.")


def _refusal(
    findings: Sequence[Finding], reads: Sequence[RowRead], terms: Terms
) -> DataError | None:
    """Return why the site may not take part, if more rows have errors than it tolerates."""
    wrong: dict[int, str] = {}
    for finding in findings:
        if finding.severity == "error" and not finding.accepted:
            wrong = dict.fromkeys(finding.rows, finding.code) | wrong
    if len(wrong) <= terms.max_unreadable * len(reads):
        return None
    told = [f"  - {_named(read, wrong[read.row.line])}" for read in reads if read.row.line in wrong]
    if (more := len(told) - LISTED_ROWS) > 0:
        told = [*told[:LISTED_ROWS], f"  - and {more} more; rarefed-client check lists them"]
    unread = set(wrong.values()) <= set(UNREAD)
    kind, what = (
        (ImageError, "images cannot be read") if unread else (DataError, "rows have errors")
    )
    return kind(
        f"{len(wrong)} of {len(reads)} {what}:\n" + "\n".join(told),
        remedy="Repair or remove them; or accept their codes, or raise limits.max_unreadable, in "
        "site.toml.",
    )
