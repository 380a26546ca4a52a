"""``summary.json``: what a played study was and found, in the shape that docs/summary.md fixes."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common.study import Study
from server import history
from server.history import RoundRecord
from server.roster import each_image
from simulations.across import Across
from simulations.federation import Engine, Played

PACKAGES = ("rarefed", "flwr", "torch", "torchvision", "timm", "numpy", "pydicom")


def summarise(
    study: Study,
    played: Played,
    *,
    engine: Engine,
    yardsticks: Mapping[str, Any] | None,
    across: Across | None = None,
) -> dict[str, Any]:
    """Return the summary of a played study, ready for JSON."""
    records = played.outcome.records
    return {
        "study": study.name,
        "study_digest": study.digest(),
        "engine": engine,
        "sites": [member.name for member in played.outcome.members],
        "refused": dict(played.outcome.refused),
        "rounds": study.rounds,
        "rounds_made": sum(record.combined for record in records),
        "model_round": records[-1].model_round,
        "averaged": list(records[-1].averaged),
        "stopped": records[-1].stopped,
        "seed": study.seed,
        "strategy": study.federation.strategy,
        "normalisation": played.normalisation,
        "weights": {"source": played.start.source, "left_out": list(played.start.left_out)},
        "tasks": _tasks(records[-1]),
        "yardsticks": dict(yardsticks) if yardsticks is not None else None,
        "matrix": across.matrix if across is not None else None,
        "benefit": across.benefit if across is not None else None,
        "unreadable": _unreadable(played),
        "each_image": each_image(played.outcome.members),
        "bytes": {way: _bytes(records, way) for way in ("down", "up")},
        "seconds": _seconds(records, played, engine),
        "versions": _versions(),
    }


def _tasks(last: RoundRecord) -> dict[str, Any]:
    """Figures of the final model on the test patients."""
    return {task: splits["test"] for task, splits in last.tasks.items() if "test" in splits}


def _unreadable(played: Played) -> dict[str, dict[str, int]]:
    return {m.name: dict(m.declaration.unreadable) for m in played.outcome.members}


def _bytes(records: Sequence[RoundRecord], way: str) -> dict[str, list[int]]:
    """Bytes by site, one number an exchange; 0 where a site was not asked."""
    sites = sorted({site for record in records for site in record.bytes})
    return {site: [record.bytes.get(site, {}).get(way, 0) for record in records] for site in sites}


def _seconds(
    records: Sequence[RoundRecord], played: Played, engine: Engine
) -> dict[str, float | None]:
    """Wall time, and the sums over sites of what was training and evaluation.

    On Ray sites work side by side, so what is left of the wall time says nothing there.
    """
    training = history.total(records, "training")
    evaluation = history.total(records, "evaluation")
    overhead = played.seconds - training - evaluation
    return {
        "total": played.seconds,
        "training": training,
        "evaluation": evaluation,
        "overhead": overhead if engine == "inline" else None,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
