"""What each round was: one JSON line a round, and the metrics that it measured."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import attention as attention_sums
from common import metrics
from common.attention import Table
from common.chained_log import Head
from common.errors import OutputError
from common.files import append_line, write_atomic
from common.held_out import HELD_OUT, OF_PATIENTS, SPLIT_OF
from common.metrics import MetricState
from common.spread import spread
from common.study import Study
from server import last_figures

HISTORY = "history.jsonl"
MEMBERS = "members"
"""Where the pooled figures of an ensemble's members stand, beside those of a task's validation."""
Figures = dict[str, float | int | None]
_VALIDATION = {"test": "validation", OF_PATIENTS["test"]: OF_PATIENTS["validation"]}
"""The states on which is chosen what test states are held to."""


@dataclass
class RoundRecord:
    """One exchange with the sites: the arriving model was measured, then trained further."""

    round: int
    """1, 2, ...; an exchange after the last round only measures."""
    model_round: int
    """Rounds that the measured model had been trained for."""
    trained: bool
    combined: bool = False
    """Whether the replies became the next model; never of the last exchange."""
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Why a site's reply was not used, by site."""
    silent: list[str] = field(default_factory=list)
    """Sites that had not answered when the round closed."""
    late: list[str] = field(default_factory=list)
    """Sites whose reply to an earlier round came now; it was left out."""
    resent: list[str] = field(default_factory=list)
    """Sites whose order was lost with a machine and sent again, once for each time."""
    joined: list[str] = field(default_factory=list)
    """Sites that take part from this round on."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """By task, then split: ``pooled`` and ``per_site`` figures, and the same of ``patients``.

    Of the last exchange there are ``intervals`` too, and of its test images what
    ``server/last_figures.py`` says.
    """
    training: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Steps and mean loss by site; no loss in a study with privacy."""
    bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """``down`` and ``up`` by site."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``total``, and the sums over sites of ``training`` and ``evaluation``."""
    central_privacy: dict[str, float | int] = field(default_factory=dict)
    """Noise multiplier, bound and number of sites of a combined round, and epsilon at delta of all
    rounds so far; empty in a study without noise at the coordinator."""
    audit_heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Where the audit log of each site that answered stood: ``entries`` and ``head``."""
    audit_faults: dict[str, str] = field(default_factory=dict)
    """Why that does not follow from what stood there before, by site."""
    each_image: dict[str, list[str]] = field(default_factory=dict)
    """Tasks whose patients are not known, by site: there each image counts as one patient."""
    declared: dict[str, Any] = field(default_factory=dict)
    """By site, task and split: ``patients`` and ``images``, exact or rounded as the site states."""
    score: float | None = None
    """Validation score of the measured model, the higher the better; see ``server/scores.py``."""
    lowered: int = 0
    """How often a schedule ``plateau`` had lowered the learning rates of this round."""
    averaged: list[int] = field(default_factory=list)
    """Rounds whose models were averaged into the measured one."""
    stopped: str = ""
    """Of an exchange that only measures: why the study ended before its last round, if it did."""
    votes: dict[str, list[float]] = field(default_factory=dict)
    """Of an exchange that only measures: what each member of an ensemble weighs in the measured
    model, by task; empty where a study leaves them the same."""


def figures(state: MetricState, positive: int | None) -> Figures:
    """Return every metric of a state, with the numbers of patients and images behind it."""
    computed = metrics.compute(state, positive)
    return {**computed, "n_patients": state.n_patients, "n_images": state.n_images}


def task_figures(
    study: Study,
    states: Mapping[str, Mapping[tuple[str, str], MetricState]],
    attention: Mapping[str, Mapping[str, Table]] | None = None,
    *,
    last: bool = False,
) -> dict[str, Any]:
    """Return pooled and per-site figures of every task and split.

    A site that suppressed a state is not among the ``per_site`` of it, and pooled is of the others;
    a split that no site reported is left out. Where a site has several images of a patient, figures
    in which each patient counts once stand beneath ``patients``.

    Args:
        study: Names and classes of the tasks.
        states: Metric states by site, then by task and name of the state.
        attention: Sums of attention by site, then by task; where there are some they stand beneath
            ``attention`` of the test images.
        last: Whether these are of the last exchange, which has more (``server/last_figures.py``).
    """
    result: dict[str, Any] = {}
    for name, task in study.tasks.items():
        found = _parts(name, states)
        for key, parts in found.items():
            told = _of_parts(parts, task.positive_index)
            if last:
                told["intervals"] = last_figures.all_intervals(study, name, key, parts)
            if last and key in _VALIDATION:
                validation = found.get(_VALIDATION[key], {})
                told |= last_figures.on_test(task, validation, parts)
            if key in HELD_OUT:
                result.setdefault(name, {})[key] = told
            else:
                result[name][SPLIT_OF[key]]["patients"] = told
        sums = {site: of[name] for site, of in (attention or {}).items() if name in of}
        if sums:
            result[name]["test"]["attention"] = _means(sums)
    return result


def _means(sums: Mapping[str, Table]) -> dict[str, Any]:
    """Return where the network looks, as means over patients."""
    return {
        "pooled": attention_sums.means(attention_sums.merge(sums.values())),
        "per_site": {site: attention_sums.means(of) for site, of in sorted(sums.items())},
    }


def _parts(
    task: str, states: Mapping[str, Mapping[tuple[str, str], MetricState]]
) -> dict[str, dict[str, MetricState]]:
    """Return a task's states by name of the state, then by site; no name without a site."""
    result: dict[str, dict[str, MetricState]] = {}
    for split in HELD_OUT:
        parts, sent = (
            {s: found[task, name] for s, found in states.items() if (task, name) in found}
            for name in (split, OF_PATIENTS[split])
        )
        if parts:
            result[split] = parts
        if parts and sent:
            # Where each patient has one image, the two counts are one.
            same = {s: v for s, v in parts.items() if v.n_patients == v.n_images}
            result[OF_PATIENTS[split]] = same | sent
    return result


def _of_parts(parts: Mapping[str, MetricState], positive: int | None) -> dict[str, Any]:
    return {
        "pooled": figures(metrics.merge(parts.values()), positive),
        "per_site": {site: figures(part, positive) for site, part in sorted(parts.items())},
    }


def append(folder: Path, record: RoundRecord) -> None:
    """Add the round to the run's history, synced to disk.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        append_line(folder / HISTORY, asdict(record))
    except OSError as error:
        raise _not_written(folder, error) from error


def load(folder: Path) -> list[RoundRecord]:
    """Return the records of a run's history; a last line that was cut off by a crash is left out.

    Raises:
        OutputError: Another line is no record.
    """
    path = folder / HISTORY
    # Not splitlines: a site's words may hold other characters that it takes for a line's end.
    *lines, _torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    try:
        return [RoundRecord(**json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise OutputError(
            f"{path} is damaged: {error}.",
            remedy="Restore it from a backup, or move it away: the model goes on without it.",
        ) from error


def last_heads(records: Iterable[RoundRecord]) -> dict[str, Head]:
    """Return the last head of each site's audit log that came in these rounds."""
    return {s: Head(**head) for record in records for s, head in record.audit_heads.items()}


def last_aurocs(records: Sequence[RoundRecord]) -> dict[str, dict[str, Any]]:
    """Return each task's last pooled AUROC on test patients, by task.

    Each has ``auroc``, its 95 % ``interval`` (None but after the last exchange), ``n_patients``,
    the ``model_round`` that was measured and the ``spread`` over the sites that told theirs (None
    of fewer than two). Where patients have several images each counts once.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for task, splits in record.tasks.items():
            if "test" not in splits:
                continue
            told = splits["test"].get("patients", splits["test"])
            found[task] = {
                "auroc": told["pooled"]["auroc"],
                "interval": told.get("intervals", {}).get("pooled", {}).get("auroc"),
                "n_patients": told["pooled"]["n_patients"],
                "model_round": record.model_round,
                "spread": spread({s: of["auroc"] for s, of in told["per_site"].items()}, "auroc"),
            }
    return found


def rewind(folder: Path, number: int) -> list[RoundRecord]:
    """Return the history up to a round, and drop from the file what claims to be after it.

    A crash between a round's line and its model leaves a line whose round is redone.

    Raises:
        OutputError: A line is no record, or the folder cannot be written.
    """
    found = load(folder)
    kept = [r for r in found if not (r.combined and r.round > number)]
    path = folder / HISTORY
    lines = [json.dumps(asdict(r), ensure_ascii=False, allow_nan=False) + "\n" for r in kept]
    text = "".join(lines).encode()
    try:
        if path.exists() and path.read_bytes() != text:
            write_atomic(path, text)
    except OSError as error:
        raise _not_written(folder, error) from error
    return kept


def _not_written(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write {folder / HISTORY}: {error}.",
        remedy="Free space or choose another folder.",
    )


def total(records: Iterable[RoundRecord], what: str) -> float:
    """Return the sum over rounds of one of ``seconds``."""
    return sum(record.seconds.get(what, 0.0) for record in records)
