"""``rarefed-sim demo``: phantom hospitals of three modalities, one study, one table."""

from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import OutputError
from common.study import Study
from simulations import hospitals
from simulations.phantoms import TASKS
from simulations.run import run_simulation

MARK = "rarefed-demo.txt"
"""A file that tells a folder made by the demo from any other, before ``--again`` removes it."""

WEIGHTS = Path(__file__).parent / "weights" / "phantom_resnet.safetensors"
"""A small network that ``simulations/pretrain.py`` trained on phantoms of other tasks."""

SITES, PATIENTS, IMAGES = 6, 60, 3


def study(weights: str) -> Study:
    """Return the demo's study.

    Args:
        weights: ``phantoms`` for the network in this repository, ``pretrained`` for a larger one
            with weights from timm's hub.
    """
    if weights == "phantoms":
        backbone = {"name": "test_resnet", "weights": str(WEIGHTS), "image_size": 96}
    else:
        backbone = {"name": "resnet18", "weights": "pretrained", "image_size": 128}
    tasks = {
        name: {"modality": task.modality, "classes": list(task.classes), "positive": task.positive}
        for name, task in TASKS.items()
    }
    return Study.parse(
        {
            "name": "demo",
            "rounds": 12,
            "seed": 1,
            "backbone": {**backbone, "normalisation": "local"},
            "tasks": tasks,
            "training": {"local_epochs": 2, "head_lr": 3e-3, "backbone_lr": 1e-3},
        }
    )


def run(out: Path, *, weights: str, console: Console) -> dict[str, Any]:
    """Make the hospitals, play the study with its yardsticks, and return the summary.

    Args:
        out: Folder for ``hospitals`` and ``run``.
        weights: ``phantoms`` or ``pretrained``.
        console: Where progress is shown, if it is a terminal.

    Raises:
        OutputError: ``out`` exists and is not empty, or cannot be made.
        WeightsError: ``pretrained`` was asked for and timm's hub cannot be reached.
    """
    claim(out, MARK, "rarefed-sim demo")
    with console.status("drawing phantoms"):
        made = hospitals.make(out / "hospitals", sites=SITES, patients=PATIENTS, images=IMAGES)
    return run_simulation(study(weights), made, out / "run", with_yardsticks=True, console=console)


def claim(out: Path, mark: str, program: str) -> None:
    """Make an empty folder and leave a mark in it, by which ``program`` may know it again.

    Raises:
        OutputError: It is not empty, or cannot be made.
    """
    try:
        if out.exists() and any(out.iterdir()):
            raise OutputError(
                f"{out} is not empty.", remedy="Give another --out, or --again to replace one."
            )
        out.mkdir(parents=True, exist_ok=True)
        text = f"Made by '{program}', which may remove it.\n"
        (out / mark).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"Cannot make {out}: {error.strerror}.", remedy="Give another --out."
        ) from error
