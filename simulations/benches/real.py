"""Real images: the federated model against pooled data and against the sites alone.

Every folder of data sets with a ``labels.csv`` (docs/simulation.md) becomes one task, dealt by
patient or group to two hospitals; all tasks make one study over one pretrained backbone. The
federated AUROC must be at most 0.02 below that of the pooled data, and above the mean of the
sites alone, for each task. All three are judged on the same test patients.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from common.errors import DataError, MissingFolderError
from common.study import Study
from simulations import hospitals
from simulations.benches.result import Result
from simulations.dealing import labels_of
from simulations.run import run_simulation
from simulations.tables import tables

LIMIT = 0.02
SHARED = Path(os.environ.get("RAREFED_SHARED", "../shared"))
KNOWN = ("ct_iqoth", "mri_brain_tumour", "fundus_idrid")
"""What is dealt by default of a folder that holds more; ``--task`` names others."""
MODALITIES = (("ct", "CT"), ("mri", "MR"), ("mr", "MR"), ("fundus", "fundus"), ("oct", "OCT"))
STUDY: dict[str, Any] = {
    "name": "real",
    "rounds": 12,
    "backbone": {"image_size": 96, "normalisation": "frozen"},
    "training": {"head_lr": 1e-3, "backbone_lr": 2e-4},
    # A task with many patients would else own the backbone: 1,371 groups here, 35 there.
    "federation": {"weighting": "equal"},
}
BACKBONES = {
    "mobilenetv2_100": "mobilenetv2_100_tfslim.timm.safetensors",
    "squeezenet1_1": "squeezenet1_1_onnxzoo.torchvision.safetensors",
}
"""Backbones by name, with the file of their pretrained weights."""
BACKBONE = "mobilenetv2_100"
DATA = SHARED / "data"
WEIGHTS = SHARED / "weights" / BACKBONES[BACKBONE]
Data = Annotated[Path, typer.Option(help="Folder of data sets.")]
Weights = Annotated[Path, typer.Option(help="Weights of mobilenetv2_100.")]
Tasks = Annotated[list[str] | None, typer.Option(help="Folders to use; repeatable.")]


def main(
    data: Data = DATA,
    weights: Weights = WEIGHTS,
    task: Tasks = None,
    positive: Annotated[list[str] | None, typer.Option(help="FOLDER=CLASS; repeatable.")] = None,
    skew: Annotated[str, typer.Option(help="How patients are dealt.")] = "iid",
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 12,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Seed of deal and study.")] = 0,
) -> None:
    """Measure, print, and end with 1 if a task is below the limit."""
    folders = find_datasets(data, task)
    chosen = dict(item.split("=", 1) for item in positive or ())
    study = study_of(folders, weights, chosen, rounds=rounds, seed=seed, image_size=image_size)
    with tempfile.TemporaryDirectory() as name:
        made = dealt(folders, Path(name) / "hospitals", skew=skew, seed=seed)
        summary = run_simulation(
            study, made, Path(name) / "run", with_yardsticks=True, console=Console(stderr=True)
        )
    for table in tables(summary):
        Console().print(table)
    raise typer.Exit(judged(summary).tell())


def study_of(
    folders: list[Path],
    weights: Path,
    positive: Mapping[str, str],
    *,
    rounds: int,
    seed: int = 0,
    image_size: int = 96,
    backbone: str = BACKBONE,
) -> Study:
    """Return the study of all data sets; ``positive`` names classes by folder."""
    return Study.parse(
        {
            **STUDY,
            "rounds": rounds,
            "seed": seed,
            "backbone": {
                **STUDY["backbone"],
                "name": backbone,
                "image_size": image_size,
                "weights": str(weights),
            },
            "tasks": {slug(f.name): task_of(f, positive.get(f.name)) for f in folders},
        }
    )


def dealt(folders: list[Path], out: Path, *, skew: str = "iid", seed: int = 0) -> list[Path]:
    """Deal each data set to two hospitals below ``out``, and return them all."""
    made = []
    for number, folder in enumerate(folders):
        task, first = slug(folder.name), 2 * number + 1
        made += hospitals.deal(folder, out, sites=2, task=task, skew=skew, seed=seed, first=first)
    return made


def find_datasets(data: Path, names: list[str] | None) -> list[Path]:
    """Return the folders of data sets, those of ``names`` or the known ones or all.

    Raises:
        MissingFolderError: None of them has a ``labels.csv``.
    """
    found = sorted(path.parent for path in data.glob("*/labels.csv"))
    found = [path for path in found if len(labels_of(path)) > 1]
    wanted = names or [path.name for path in found if path.name in KNOWN]
    chosen = [path for path in found if not wanted or path.name in wanted]
    for path in sorted(set(data.glob("*")) - set(chosen)):
        Console(stderr=True).print(f"not used: {path.name}", highlight=False)
    if not chosen:
        raise MissingFolderError(
            f"No data set in {data}: no folder below it has a labels.csv with two labels.",
            remedy="Give --data, or set RAREFED_SHARED.",
        )
    return chosen


def task_of(folder: Path, positive: str | None) -> dict[str, Any]:
    """Return the study's table of a data set: classes from its labels, modality from its name."""
    classes = labels_of(folder)
    modality = next((m for start, m in MODALITIES if folder.name.startswith(start)), "other")
    task: dict[str, Any] = {"modality": modality, "classes": classes}
    if len(classes) == 2:
        task["positive"] = positive or classes[1]
    return task


def slug(name: str) -> str:
    """Return a folder's name as the name of a task."""
    return re.sub(r"[^a-z0-9_-]", "-", name.lower())


def judged(summary: dict[str, Any]) -> Result:
    """Compare the federated AUROC of each task with its yardsticks.

    The figure is the worst margin, federated minus pooled; an undefined AUROC does not hold.

    Raises:
        DataError: No task has a defined AUROC.
    """
    rows = {}
    for task, found in summary["tasks"].items():
        yardsticks = {
            name: figures[task]["auroc"] for name, figures in summary["yardsticks"].items()
        }
        rows[task] = {"federated": found["pooled"]["auroc"], **yardsticks}
    undefined = sorted(task for task, row in rows.items() if None in row.values())
    judgeable = {task: row for task, row in rows.items() if task not in undefined}
    if not judgeable:
        raise DataError(
            "No task has an AUROC: no class has both positives and negatives to test on.",
            remedy="Give larger data sets with --data, or another --seed.",
        )
    margins = {task: row["federated"] - row["pooled"] for task, row in judgeable.items()}
    worst = min(margins, key=margins.__getitem__)
    above = all(row["federated"] > row["alone"] for row in judgeable.values())
    return Result(
        name="real",
        figure=margins[worst],
        against={"what": f"pooled, {worst}", "figure": rows[worst]["pooled"], "unit": "AUROC"},
        ratio=rows[worst]["federated"] / rows[worst]["pooled"],
        limit=-LIMIT,
        holds=margins[worst] >= -LIMIT and above and not undefined,
        details={
            "auroc": rows,
            "federated_minus_pooled": margins,
            "above_alone": above,
            "undefined": undefined,
        },
    )


if __name__ == "__main__":
    typer.run(main)
