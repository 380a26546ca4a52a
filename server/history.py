"""What each round was: one JSON line a round, and the metrics that it measured."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import metrics
from common.files import append_line
from common.metrics import MetricState
from common.study import Study

HISTORY = "history.jsonl"
Figures = dict[str, float | int | None]


@dataclass
class RoundRecord:
    """One exchange with the sites: the arriving model was measured, then trained further."""

    round: int
    """1, 2, ...; the last exchange, which only measures, is ``rounds + 1``."""
    model_round: int
    """Rounds that the measured model had been trained for."""
    trained: bool
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Why a site's reply was not used, by site."""
    silent: list[str] = field(default_factory=list)
    """Sites that had not answered when the round closed."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """By task, then split: ``pooled`` and ``per_site`` figures."""
    training: dict[str, dict[str, float]] = field(default_factory=dict)
    """Steps and mean loss by site."""
    bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """``down`` and ``up`` by site."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``total``, and the sums over sites of ``training`` and ``evaluation``."""


def figures(state: MetricState, positive: int | None) -> Figures:
    """Return every metric of a state, with the numbers of patients and images behind it."""
    computed = metrics.compute(state, positive)
    return {**computed, "n_patients": state.n_patients, "n_images": state.n_images}


def task_figures(
    study: Study, states: Mapping[str, Mapping[tuple[str, str], MetricState]]
) -> dict[str, Any]:
    """Return pooled and per-site figures of every task and split.

    Args:
        study: Names and classes of the tasks.
        states: Metric states by site, then by task and split.
    """
    result: dict[str, Any] = {}
    for name, task in study.tasks.items():
        for split in ("validation", "test"):
            parts = {s: found[name, split] for s, found in states.items() if (name, split) in found}
            if not parts:
                continue
            result.setdefault(name, {})[split] = {
                "pooled": figures(metrics.merge(parts.values()), task.positive_index),
                "per_site": {s: figures(v, task.positive_index) for s, v in sorted(parts.items())},
            }
    return result


def append(folder: Path, record: RoundRecord) -> None:
    """Add the round to the run's history, synced to disk."""
    append_line(folder / HISTORY, asdict(record))


def total(records: Iterable[RoundRecord], what: str) -> float:
    """Return the sum over rounds of one of ``seconds``."""
    return sum(record.seconds.get(what, 0.0) for record in records)
