"""Does a map point at the lesion? Phantoms, of which the lesion's place is known to the pixel.

For each task of the phantoms a small network is trained, on patients that are not those of the
test. Its maps of diseased test patients play the pointing game against the lesions, and so do the
maps of the same network with its weights exchanged at random (Adebayo et al. 2018). Chance is the
share of the image in which a point would be counted as a hit. Maps have as many cells as the
lesions of the training patients ask for: one is no larger than a square of a lesion's mean area.
The details also have Grad-CAM of the layer that is taken without knowing the lesions' size.
"""

import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

import simulations
from client.cam_layers import LEAST_CELLS, Layer, cam_layer
from client.dataset import Images, batches
from client.evaluate import logits_of
from client.explain import METHODS, Method, explain
from client.faithfulness import randomised
from client.features import channel_statistics
from client.geometry import geometry_of, to_image
from client.intensity import intensities
from client.localisation import Localisation, localised
from client.pictures import Reading
from client.preprocess import normalise, prepare
from client.train import train
from common.models import FederatedModel, build_model
from common.seeds import stream
from common.study import Study
from simulations.benches.result import Result
from simulations.drawing import Mask, Phantom
from simulations.phantoms import TASKS, scanner

WEIGHTS = Path(simulations.__file__).parent / "weights" / "phantom_resnet.safetensors"
"""Of a network that saw phantoms of other diseases."""
SIZE = 128
LEAST_AUROC, LEAST_POINTING, NEAR_CHANCE = 0.95, 0.8, 0.15
CPU = torch.device("cpu")


class Sample(NamedTuple):
    """Prepared phantoms of one task, half of them diseased."""

    images: Images
    pictures: list[np.ndarray[Any, np.dtype[np.float32]]]
    masks: list[Mask]


def main(
    images: Annotated[int, typer.Option(min=16, help="Phantoms to train on, by task.")] = 480,
    tested: Annotated[int, typer.Option(min=8, help="Phantoms to test on, by task.")] = 120,
    epochs: Annotated[int, typer.Option(min=1, help="How often each is seen.")] = 8,
    seed: Annotated[int, typer.Option(help="Of patients, scanners and training.")] = 0,
) -> None:
    """Measure, print, and end with 1 where a task's maps do not point at its lesions."""
    torch.set_num_threads(1)
    found = {task: measure(task, images, tested, epochs, seed, list(METHODS)) for task in TASKS}
    worst = min(found, key=lambda task: float(found[task]["gradcam"]["pointing"]))
    pointing, chance = (float(found[worst]["gradcam"][k]) for k in ("pointing", "chance"))
    result = Result(
        name="localisation",
        figure=pointing,
        against={"what": f"chance, {worst}", "figure": chance, "unit": "pointing game"},
        ratio=pointing / chance,
        limit=LEAST_POINTING,
        holds=all(holds(of) for of in found.values()),
        details={"pixels": SIZE, "tasks": found},
    )
    raise typer.Exit(result.tell())


def holds(of: dict[str, Any]) -> bool:
    """Say whether a task's figures keep the limits: those of Grad-CAM and the sanity check."""
    trained, other = of["gradcam"], of["randomised"]
    return bool(
        of["auroc"] > LEAST_AUROC
        and trained["pointing"] > LEAST_POINTING
        and abs(other["pointing"] - other["chance"]) <= NEAR_CHANCE
    )


def measure(
    task: str, images: int, tested: int, epochs: int, seed: int, methods: list[Method]
) -> dict[str, Any]:
    """Train a network for a task, and return its AUROC and how its maps lie."""
    study = study_of(task)
    model = build_model(study)
    known_weights = load_file(WEIGHTS)
    model.backbone.load_state_dict({n: v for n, v in known_weights.items() if n[:3] != "fc."})
    known = drawn(task, images, stream(seed, task, "train"))
    order = batches({task: images}, batch_size=16, epochs=epochs, seed=stream(seed, task))
    train(model, {task: known.images}, order, study, device=CPU)
    unseen = drawn(task, tested, stream(seed, task, "test"))
    logits = logits_of(model, unseen.images, task, device=CPU)
    found: dict[str, Any] = {
        "auroc": float(roc_auc_score(unseen.images.labels, logits[:, 1] - logits[:, 0]))
    }
    fine = cam_layer(model.backbone, SIZE, CPU, cells_for(known.masks))
    found |= {"layer": fine.name, "cells": fine.grid[0]}
    for method in methods:
        found[method] = means(maps_against(model, unseen, task, method, fine))
    usual = cam_layer(model.backbone, SIZE, CPU)
    found["usual_cells"] = usual.grid[0]
    found["gradcam_of_usual_cells"] = means(maps_against(model, unseen, task, "gradcam", usual))
    other = randomised(model, seed)
    same = fine._replace(module=other.backbone.get_submodule(fine.name))
    found["randomised"] = means(maps_against(other, unseen, task, "gradcam", same))
    return found


def cells_for(masks: list[Mask]) -> int:
    """Return how many cells of a side make one no larger than the mean lesion."""
    area = float(np.mean([mask.mean() for mask in masks if mask.any()]))
    return max(LEAST_CELLS, round(1 / math.sqrt(area)))


def study_of(task: str) -> Study:
    """Return a study of one phantom task."""
    known = TASKS[task]
    tasks = {
        task: {
            "modality": known.modality,
            "classes": list(known.classes),
            "positive": known.positive,
        }
    }
    backbone = {"name": "test_resnet", "weights": WEIGHTS.name, "image_size": SIZE}
    training = {"batch_size": 16, "backbone_lr": 1e-3, "head_lr": 1e-2}
    return Study.parse(
        {"name": "maps", "rounds": 1, "backbone": backbone, "tasks": tasks, "training": training}
    )


def drawn(task: str, count: int, seed: int) -> Sample:
    """Draw phantoms, each of a new patient on a new scanner, healthy and diseased in turn."""
    rng = np.random.default_rng(seed)
    phantoms = [
        TASKS[task].draw(int(rng.integers(2**62)), 0, diseased=bool(i % 2), scanner=scanner(i, rng))
        for i in track(range(count), f"drawing {task}", console=Console(stderr=True))
    ]
    pictures = [_shown(phantom, TASKS[task].modality) for phantom in phantoms]
    prepared = [prepare(picture, SIZE).expand(3, -1, -1) for picture in pictures]
    labels = torch.arange(count) % 2
    return Sample(
        Images(torch.stack(prepared), labels, tuple(map(str, range(count)))),
        pictures,
        [phantom.mask for phantom in phantoms],
    )


def maps_against(
    model: FederatedModel, sample: Sample, task: str, method: Method, layer: Layer
) -> list[Localisation | None]:
    """Return how the maps of the diseased lie; None of an empty map."""
    mean, std = channel_statistics(model, CPU)
    diseased = torch.nonzero(sample.images.labels)[:, 0]
    found = []
    for some in diseased.split(16):
        x_BCSS = normalise(sample.images.pixels[some], mean, std)
        maps = explain(model, x_BCSS, task, np.ones(len(some), np.int64), layer, method).maps
        for i, map_HW in zip(some.tolist(), maps, strict=True):
            whole = to_image(map_HW, geometry_of(sample.pictures[i], SIZE))
            found.append(localised(whole, sample.masks[i]))
    return found


def means(found: list[Localisation | None]) -> dict[str, float]:
    """Return the means over images; an empty map points nowhere, and counts as a miss."""
    kept = [one for one in found if one is not None]
    values = {
        name: float(np.mean([getattr(one, name) for one in kept])) if kept else 0.0
        for name in Localisation._fields
    }
    values["pointing"] *= len(kept) / len(found)
    return values | {"images": len(found), "empty": len(found) - len(kept)}


def _shown(phantom: Phantom, modality: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Bring a phantom to [0, 1], as the client does with its file."""
    if modality == "fundus":
        return np.asarray(phantom.pixels / 255, np.float32)
    unit = "hounsfield" if modality == "CT" else "signal"
    return intensities([phantom.pixels], unit, Reading(modality, None), inverted=False)[0]


if __name__ == "__main__":
    typer.run(main)
