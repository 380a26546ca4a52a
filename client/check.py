"""The check: every row read once, judged by the gate, before a study begins.

Nothing is trained here and nothing leaves the machine. The reading fills the cache, so that the
study itself starts from it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from client.cache import Cache, cache_of
from client.config import SiteConfig
from client.gate import Verdict, judge, log_verdict
from client.manifest import Row
from client.prepared import (
    Dealt,
    deal,
    declaration_of,
    listed_patients,
    network_of,
    plan_for,
)
from client.reading_pass import RowRead, read_rows, workers_of
from client.split import SPLITS
from client.thumbnails import thumbnail
from common.errors import DataError, EmptyManifestError, PrivacyError, RarefedError
from common.statements import Declaration
from common.study import Study, Task

SHOWN_ROWS = 24
"""Rows of a finding that are shown as thumbnails."""

LEAST_OF_GROUP = 4
"""Of a group, so many are shown before those of the next."""

Progress = Callable[[str, int, int], None]
"""Told a task's name, the number of its rows that have been read, and that of all its rows."""


@dataclass(frozen=True)
class TaskCheck:
    """What the check found of one task."""

    name: str
    task: Task
    reads: Mapping[str, Sequence[RowRead]]
    """By split, without pixels."""
    verdict: Verdict
    thumbnails: Mapping[int, str]
    """A data URI by line, of some rows of each finding."""

    @property
    def kept(self) -> dict[str, list[RowRead]]:
        """The rows that the study would use, by split."""
        left_out = self.verdict.left_out
        return {
            split: [read for read in self.reads[split] if read.row.line not in left_out]
            for split in SPLITS
        }


@dataclass(frozen=True)
class Checked:
    """What the check found at a site."""

    site: str
    study: str
    tasks: tuple[TaskCheck, ...]
    declaration: Declaration
    """What the site would bring to the study."""
    refusal: RarefedError | None
    """Why it may not take part."""


def check_site(
    study: Study,
    config: SiteConfig,
    *,
    log: logging.Logger,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Read and judge all rows that a site has for a study.

    What can be refused without an image is refused before one is read.

    Args:
        study: The study.
        config: The hospital.
        log: The site's own log.
        workers: Rows that are read at a time; by default as the hospital's configuration says.
        progress: Told how far the reading is.

    Raises:
        DataError: Tables or configuration have faults.
        PrivacyError: The study cannot be private here as it asks, or as the hospital demands.
        StudyError: The study's backbone cannot be built.
        ServiceError: A process that reads cannot be started.
    """
    network_of(study)
    dealt = deal(study, config)
    plan_for(study, config, listed_patients(dealt), None)
    reader = _Reader(study, config, cache_of(config, log), workers, progress)
    tasks = tuple(_check(name, found, reader, log) for name, found in dealt.items())
    patients = {
        one.name: {split: _owners(reads) for split, reads in one.kept.items()} for one in tasks
    }
    declaration = declaration_of(
        patients, {one.name: len(one.verdict.left_out) for one in tasks}, config
    )
    refusals = list(_refusals(tasks, patients))
    try:
        plan_for(study, config, [set(owners["train"]) for owners in patients.values()], None)
    except PrivacyError as error:
        refusals.append(error)
    return Checked(config.name, study.name, tasks, declaration, _joined(refusals))


@dataclass(frozen=True)
class _Reader:
    """How the rows of a site are read."""

    study: Study
    config: SiteConfig
    cache: Cache | None
    workers: int | None
    progress: Progress | None

    def read(self, name: str, rows: Sequence[Row], *, told: bool = True) -> Iterator[RowRead]:
        """Read rows of a task."""
        workers, apart = workers_of(self.config)

        def tell(done: int) -> None:
            if told and self.progress is not None:
                self.progress(name, done, len(rows))

        return read_rows(
            rows,
            self.study.tasks[name],
            size=self.study.backbone.image_size,
            cache=self.cache,
            workers=min(self.workers or workers, max(1, len(rows))),
            apart=apart,
            progress=tell,
        )


def _check(name: str, dealt: Dealt, reader: _Reader, log: logging.Logger) -> TaskCheck:
    pairs = [(split, row) for split in SPLITS for row in dealt.rows[split]]
    reads: dict[str, list[RowRead]] = {split: [] for split in SPLITS}
    found = reader.read(name, [row for _, row in pairs])
    for (split, _), read in zip(pairs, found, strict=True):
        reads[split].append(read._replace(pixels=None))
    task = reader.study.tasks[name]
    verdict = judge(reads, task, dealt.terms)
    log_verdict(verdict, [read for split in SPLITS for read in reads[split]], log)
    shown = _shown(verdict)
    rows = [row for _, row in pairs if row.line in shown]
    pictures = {
        read.row.line: thumbnail(read.pixels)
        for read in reader.read(name, rows, told=False)
        if read.pixels is not None
    }
    return TaskCheck(name, task, reads, verdict, pictures)


def _shown(verdict: Verdict) -> set[int]:
    """Return the lines whose images the report shows."""
    return {
        line for finding in verdict.findings for line in shown_rows(finding.rows, finding.groups)
    }


def shown_rows(rows: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    """Return the rows of a finding that the report shows, some of each group.

    Args:
        rows: Lines of the finding.
        groups: Lines that belong together.
    """
    most = max(LEAST_OF_GROUP, SHOWN_ROWS // max(1, len(groups)))
    chosen = [line for group in groups for line in group[:most]] if groups else list(rows)
    return chosen[:SHOWN_ROWS]


def _owners(reads: Sequence[RowRead]) -> list[str]:
    """Return the patient of each image."""
    return [read.row.patient for read in reads if read.look is not None for _ in read.look.parts]


def _refusals(
    tasks: Sequence[TaskCheck], patients: Mapping[str, Mapping[str, Sequence[str]]]
) -> Iterator[RarefedError]:
    for one in tasks:
        if one.verdict.refusal is not None:
            yield one.verdict.refusal
        elif (left := len(patients[one.name]["train"])) < 2:  # noqa: PLR2004 - as load_task
            yield EmptyManifestError(
                f"{one.name}: {left} images are left to train on.",
                remedy="A task needs at least two training images; add patients to the manifest.",
            )


def _joined(refusals: Sequence[RarefedError]) -> RarefedError | None:
    """Return one refusal for all."""
    if len(refusals) < 2:  # noqa: PLR2004 - nothing to join
        return refusals[0] if refusals else None
    return DataError(
        "\n".join(error.message for error in refusals),
        remedy="\n".join(dict.fromkeys(error.remedy for error in refusals)),
    )
