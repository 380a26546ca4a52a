"""What pretrained weights are worth with about 100 training images of a task, on real images.

The rows of the named lab ``transfer-gain`` are the same network from random weights, and with
pretrained ones frozen and fine-tuned. Of each task and backbone the better pretrained way is
compared with the random start by AUROC, the mean over the lab's seeds. The figure is the least
gain; the limit is that of every task and backbone. With ``--out`` the lab's folder is kept, and
one that was run before is not run again.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from simulations.benches.result import Result
from simulations.lab import find_lab
from simulations.lab_reading import load
from simulations.lab_results import compare

LAB, LIMIT = "transfer-gain", 0.05
SCRATCH = "from scratch"
PRETRAINED = ("pretrained, frozen", "pretrained, fine-tuned")
SHARED = Path(os.environ.get("RAREFED_SHARED", "../shared"))


def main(
    data: Annotated[Path, typer.Option(help="Folder of data sets.")] = SHARED / "data",
    weights: Annotated[Path, typer.Option(help="Folder of weights.")] = SHARED / "weights",
    out: Annotated[Path | None, typer.Option(help="The lab's folder, which is kept.")] = None,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 is all cores.")] = 0,
) -> None:
    """Measure, print, and end with 1 where pretrained weights do not gain enough."""
    loaded = load(find_lab(LAB), data=data, weights=weights)
    with tempfile.TemporaryDirectory() as name:
        table = compare(loaded, out or Path(name), threads=threads, console=Console(stderr=True))
    gains = {task: gains_of(found["rows"]) for task, found in table["tasks"].items()}
    least = min(gain for of_task in gains.values() for gain in of_task.values())
    result = Result(
        name="transfer_gain",
        figure=least,
        against={"what": "random weights", "figure": 0.0, "unit": "AUROC"},
        ratio=least / LIMIT,
        limit=LIMIT,
        holds=least >= LIMIT,
        details={
            "gains": gains,
            "test_patients": {task: found["patients"] for task, found in table["tasks"].items()},
            "auroc": {
                task: {row["row"]: row["metrics"]["auroc"] for row in found["rows"]}
                for task, found in table["tasks"].items()
            },
        },
    )
    raise typer.Exit(result.tell())


def gains_of(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """Return by backbone how much the better pretrained way has above random weights.

    Args:
        rows: Of one task, as in the lab's ``table.json``.
    """
    aurocs = {row["row"]: row["metrics"]["auroc"]["mean"] for row in rows}
    backbones = [name.removesuffix(f" / {SCRATCH}") for name in aurocs if name.endswith(SCRATCH)]
    return {
        backbone: max(aurocs[f"{backbone} / {way}"] for way in PRETRAINED)
        - aurocs[f"{backbone} / {SCRATCH}"]
        for backbone in backbones
    }


if __name__ == "__main__":
    typer.run(main)
