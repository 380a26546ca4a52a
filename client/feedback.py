"""What clinicians say of the cases that a report showed them; it stays at the hospital.

A report saves their opinions as a file of its own. Here such a file is checked as a whole and
joined to what is kept. Nothing that was said is ever lost: of each case the newest opinion counts,
and those before it stay in the file. A later study may take the corrected labels from there.
"""

import hmac
import json
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from client.config import SiteConfig, site_key
from client.manifest import Row
from client.prepared import deal
from common.errors import DataError, MissingFolderError, StudyMismatchError
from common.faults import Fault
from common.file_lock import locked
from common.files import write_json
from common.section import Section
from common.study import Study
from common.study_faults import validated

FORMAT, KEPT_FORMAT = "rarefed-feedback-1", "rarefed-feedback-kept-1"
MAX_BYTES = 16 * 1024 * 1024
LISTED_FAULTS = 50
NOTE_CHARACTERS = 2000
_OWNER_ONLY = 0o600
_CLOCKS_APART = timedelta(days=1)  # between the clinician's machine and this one
_REMEDY = "Give the file as the report's button saved it."


def _moment(value: str) -> str:
    datetime.fromisoformat(value)
    return value


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Moment = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$"),
    AfterValidator(_moment),
]
"""UTC to the millisecond, as JavaScript's ``toISOString`` writes it: in order as text."""


class Opinion(Section):
    """What somebody says of one case."""

    case: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """See ``case_id``."""
    task: Annotated[str, Field(max_length=63)]
    opinion: Literal["agree", "disagree", "unsure", ""]
    """Of what the network says; empty where there is a note or a label alone."""
    label: Annotated[str, Field(max_length=200)] = ""
    """The class that it should have, where the manifest's is thought to be wrong."""
    note: Annotated[str, Field(max_length=NOTE_CHARACTERS)] = ""
    time: Moment


class Feedback(Section):
    """What a report saved."""

    format: Literal["rarefed-feedback-1"]
    study: Digest
    model: Digest
    """SHA-256 of the arrays of the network that was shown."""
    site: Annotated[str, Field(max_length=100)]
    cases: Annotated[list[Opinion], Field(max_length=100_000)]


class KeptOpinion(Opinion):
    """An opinion, and which network it is of."""

    model: Digest


class Kept(Section):
    """All that was said of a study's cases at this site."""

    format: Literal["rarefed-feedback-kept-1"]
    study: Digest
    opinions: list[KeptOpinion]
    """By case, then by time."""


class Known(NamedTuple):
    """A case that a report may have shown."""

    task: str
    row: Row


def case_id(key: bytes, task: str, row: Row, folder: Path) -> str:
    """Return the opaque name of a row, 32 hexadecimal digits: a keyed hash of task and path.

    It stays the same from report to report, while the file stays where it is beside the manifest;
    without the site's key nobody can tell the file from it.

    Args:
        key: The site's.
        task: Name of the task.
        row: Of the manifest.
        folder: The manifest's.
    """
    words = (task, row.patient, os.path.relpath(row.path, folder.resolve()))
    return hmac.digest(key, b"case\0" + "\0".join(words).encode(), "sha256").hex()[:32]


def known_cases(config: SiteConfig, study: Study) -> dict[str, Known]:
    """Return every test row of the site's tasks by the name that reports give it.

    Raises:
        DataError: As ``prepared.deal``.
    """
    key = site_key(config)
    return {
        case_id(key, task, row, config.data[task].manifest.parent): Known(task, row)
        for task, dealt in deal(study, config).items()
        for row in dealt.rows["test"]
    }


def read_feedback(
    file: Path, study: Study, *, site: str, model: str, known: Mapping[str, Known]
) -> Feedback:
    """Read a file that a report saved, and check all of it.

    Args:
        file: What the report saved.
        study: The study that it should be of.
        site: The site's name.
        model: SHA-256 of the arrays of the network that it should be of.
        known: As ``known_cases`` returns them.

    Raises:
        MissingFolderError: There is no such file.
        StudyMismatchError: It is of another study, another network or another site.
        DataError: It is no such file, or has faults; all are listed.
    """
    values = _values(file)
    _check_whose(file, values, study, site, model)
    found, faults = validated(Feedback, values)
    if found is not None:
        faults += _case_faults(found.cases, study, known)
    if found is None or faults:
        raise _refusal(file, faults)
    return found


def _values(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MissingFolderError(f"There is no file {file}.", remedy=_REMEDY)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file} is larger than any feedback.", remedy=_REMEDY)
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON file: {error}.", remedy=_REMEDY) from error
    if not isinstance(values, dict):
        raise DataError(f"{file} is no feedback: it has no keys.", remedy=_REMEDY)
    return values


def _check_whose(
    file: Path, values: Mapping[str, Any], study: Study, site: str, model: str
) -> None:
    """Refuse what is well formed and of something else; what is not a text is a fault below."""
    wanted = {"study": study.digest(), "model": model, "site": site}
    others = [
        name
        for name, value in wanted.items()
        if isinstance(values.get(name), str) and values[name] != value
    ]
    if others:
        raise StudyMismatchError(
            f"{file} is feedback on another {' and another '.join(others)}.",
            remedy="Give the study, and with --model the network, of the report it was saved from.",
        )


def _case_faults(
    opinions: Sequence[Opinion], study: Study, known: Mapping[str, Known]
) -> list[Fault]:
    faults = []
    latest = datetime.now(UTC) + _CLOCKS_APART
    for number, one in enumerate(opinions):
        where = f"cases.{number}"
        row = known.get(one.case)
        if row is None or row.task != one.task:
            remedy = "was its file moved since, or is the file from another report?"
            faults.append(Fault(f"{where}.case", "no test case of this site's task", remedy))
        elif one.label and one.label not in study.tasks[one.task].classes:
            classes = ", ".join(study.tasks[one.task].classes)
            faults.append(Fault(f"{where}.label", "no class of the task", f"use one of {classes}"))
        if datetime.fromisoformat(one.time) > latest:
            remedy = "set the clock of the machine that the report was read on"
            faults.append(Fault(f"{where}.time", "it lies in the future", remedy))
    return faults


def _refusal(file: Path, faults: Sequence[Fault]) -> DataError:
    lines = [f"  - {fault}" for fault in faults[:LISTED_FAULTS]]
    if len(faults) > LISTED_FAULTS:
        lines.append(f"  - and {len(faults) - LISTED_FAULTS} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return DataError(f"{file} has {count}:\n" + "\n".join(lines), remedy=_REMEDY)


def file_of(config: SiteConfig, study: Study) -> Path:
    """Return where a site keeps what was said of a study's cases."""
    return config.state / f"feedback-{study.digest()[:16]}.json"


def kept(file: Path, study: Study) -> list[KeptOpinion]:
    """Return all opinions that are kept, by case and time; none where there is no file.

    Raises:
        DataError: The file is damaged.
    """
    if not file.exists():
        return []
    found, faults = validated(Kept, _values(file))
    if found is None or found.study != study.digest():
        raise _refusal(file, faults or [Fault("study", "it is of another one", "restore the file")])
    return found.opinions


def merge(file: Path, study: Study, feedback: Feedback) -> int:
    """Join opinions to those that are kept; the same ones twice change nothing.

    Args:
        file: As ``file_of`` returns it; it becomes its owner's alone (0600).
        study: The study.
        feedback: As ``read_feedback`` returns it.

    Returns:
        How many are new.

    Raises:
        DataError: What is kept is damaged; it stays as it is.
        OSError: The file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        old = kept(file, study)
        given = [KeptOpinion(**one.model_dump(), model=feedback.model) for one in feedback.cases]
        every = {one.model_dump_json(): one for one in [*old, *given]}
        ordered = sorted(every.items(), key=lambda pair: (pair[1].case, pair[1].time, pair[0]))
        values = {
            "format": KEPT_FORMAT,
            "study": study.digest(),
            "opinions": [one.model_dump() for _, one in ordered],
        }
        write_json(file, values, mode=_OWNER_ONLY)
    return len(every) - len(old)


def newest(opinions: Collection[KeptOpinion], model: str) -> dict[str, KeptOpinion]:
    """Return by case the newest opinion of one network's predictions.

    Args:
        opinions: In the order of ``kept``.
        model: SHA-256 of the network's arrays.
    """
    return {one.case: one for one in opinions if one.model == model}
