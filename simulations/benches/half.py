"""Real images with ``update_dtype = "float16"``: does a change at half the bits cost accuracy?

The study of ``real``, federated on the same hospitals and seed: in float32, in float16, and as a
control once more in float32 with a head's learning rate that is larger by a millionth. How far
the control moves is what a rounding anywhere may move. How many bytes the halves save on the wire
measures ``wire_deployed``.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from common.study import Study
from server.history import load
from simulations.benches.real import (
    DATA,
    WEIGHTS,
    Data,
    Tasks,
    Weights,
    dealt,
    find_datasets,
    study_of,
)
from simulations.benches.result import Result
from simulations.run import run_simulation

LIMIT = 0.005
ARMS = (("float32", "float32", 1.0), ("float16", "float16", 1.0), ("control", "float32", 1 + 1e-6))
"""Name, type of the changes, and what the learning rate of the heads is multiplied by."""


def main(
    data: Data = DATA,
    weights: Weights = WEIGHTS,
    task: Tasks = None,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of deal and study.")] = 0,
) -> None:
    """Measure, print, and end with 1 if a task's AUROC moved by more than the limit."""
    folders = find_datasets(data, task)
    study = study_of(folders, weights, {}, rounds=rounds, seed=seed)
    with tempfile.TemporaryDirectory() as name:
        made = dealt(folders, Path(name) / "hospitals", seed=seed)
        found = {
            arm: _auroc(study, made, Path(name) / arm, dtype, factor) for arm, dtype, factor in ARMS
        }
    full, half, control = (found[arm] for arm, _, _ in ARMS)
    moved = {task: half[task] - full[task] for task in full}
    worst = max(moved, key=lambda task: abs(moved[task]))
    result = Result(
        name="half",
        figure=abs(moved[worst]),
        against={"what": f"float32, {worst}", "figure": full[worst], "unit": "AUROC"},
        ratio=half[worst] / full[worst],
        limit=LIMIT,
        holds=abs(moved[worst]) <= LIMIT,
        details={
            "auroc": found,
            "moved": moved,
            "control_moved": {task: control[task] - full[task] for task in full},
        },
    )
    raise typer.Exit(result.tell())


def _auroc(study: Study, made: list[Path], out: Path, dtype: str, factor: float) -> dict[str, Any]:
    federation = study.federation.model_copy(update={"update_dtype": dtype})
    training = study.training.model_copy(update={"head_lr": study.training.head_lr * factor})
    study = study.model_copy(update={"federation": federation, "training": training})
    run_simulation(study, made, out, with_yardsticks=False, console=Console(stderr=True))
    last = load(out)[-1]
    return {task: splits["test"]["pooled"]["auroc"] for task, splits in last.tasks.items()}


if __name__ == "__main__":
    typer.run(main)
