"""Real images with differential privacy: what does a bound on each patient's part cost?

The study of ``real`` with privacy of several epsilons against the same study without, on the same
hospitals and for several seeds. What trains may be the heads alone or the last stages with them.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from common.study import Study
from server.history import load
from simulations.benches.real import (
    BACKBONE,
    BACKBONES,
    DATA,
    SHARED,
    Data,
    Tasks,
    dealt,
    find_datasets,
    study_of,
)
from simulations.benches.result import Result
from simulations.run import run_simulation

LIMIT = 0.05
JUDGED = 8.0
BATCH = 8
"""The smallest data set leaves some ten training patients to a site."""


def main(
    data: Data = DATA,
    task: Tasks = None,
    backbone: Annotated[str, typer.Option(help=" or ".join(BACKBONES) + ".")] = BACKBONE,
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone.")] = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="Repeatable.")] = None,
    train: Annotated[str, typer.Option(help="What trains: head, last:1, all.")] = "head",
    seeds: Annotated[int, typer.Option(help="How many seeds of deal and study.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 12,
) -> None:
    """Measure, print, and end with 1 if epsilon 8 costs a task more AUROC than the limit."""
    folders = find_datasets(data, task)
    weights = weights or SHARED / "weights" / BACKBONES[backbone]
    asked: list[float | None] = [None, *(epsilon or [JUDGED, 3.0, 1.0])]
    found: dict[str, dict[str, list[float]]] = {str(e): {} for e in asked}
    for seed in range(seeds):
        study = study_of(folders, weights, {}, rounds=rounds, seed=seed, backbone=backbone)
        with tempfile.TemporaryDirectory() as name:
            made = dealt(folders, Path(name) / "hospitals", seed=seed)
            for value in asked:
                figures = _auroc(_variant(study, train, value), made, Path(name) / str(value))
                Console(stderr=True).print_json(
                    data={"seed": seed, "epsilon": value, "auroc": figures}, indent=None
                )
                for each, auroc in figures.items():
                    found[str(value)].setdefault(each, []).append(auroc)
    means = {e: {t: float(np.mean(v)) for t, v in rows.items()} for e, rows in found.items()}
    plain, private = means["None"], means[str(asked[1])]
    lost = {name: plain[name] - private[name] for name in plain}
    worst = max(lost, key=lost.__getitem__)
    result = Result(
        name="dp_utility",
        figure=lost[worst],
        against={"what": f"no privacy, {worst}", "figure": plain[worst], "unit": "AUROC"},
        ratio=private[worst] / plain[worst],
        limit=LIMIT,
        holds=lost[worst] <= LIMIT,
        details={
            "backbone": backbone,
            "train": train,
            "seeds": seeds,
            "judged": asked[1],
            "auroc": found,
        },
    )
    raise typer.Exit(result.tell())


def _variant(study: Study, train: str, epsilon: float | None) -> Study:
    values: dict[str, Any] = study.model_dump(mode="json")
    values["training"] |= {"train": train, "batch_size": BATCH}
    values["privacy"] = None if epsilon is None else {"epsilon": epsilon}
    return Study.parse(values)


def _auroc(study: Study, made: list[Path], out: Path) -> dict[str, float]:
    run_simulation(study, made, out, with_yardsticks=False, console=Console(stderr=True))
    last = load(out)[-1]
    return {task: splits["test"]["pooled"]["auroc"] for task, splits in last.tasks.items()}


if __name__ == "__main__":
    typer.run(main)
