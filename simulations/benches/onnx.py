"""The network as ONNX against torch: the largest difference of a logit, over several backbones.

Images are random ones, and real ones of each data set that is there, read and prepared as a site
does it. One backbone has real pretrained weights where they are there; the others are random.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from client.images import read_images
from client.pictures import reading_of
from client.preprocess import prepare
from common.study import Study
from server.initial_weights import initial_model
from server.onnx_export import LARGEST_DIFFERENCE, ONNX, OPSET, export_onnx
from simulations.benches.real import BACKBONES, DATA, KNOWN, WEIGHTS, Data, Weights
from simulations.benches.result import Result

SIZES = {
    "test_resnet": 96,
    "test_vit": 160,
    "test_efficientnet": 96,
    "squeezenet1_1": 96,
    "mobilenetv2_100": 160,
    "convnext_atto": 96,
    "vit_tiny_patch16_224": 224,
}
"""Backbones, with the size of their images."""
REAL = "mobilenetv2_100"
TASKS: dict[str, dict[str, Any]] = {
    "lung": {"modality": "CT", "classes": ["no", "yes"], "positive": "yes"},
    "eye": {"modality": "fundus", "classes": ["none", "mild", "severe"]},
}
IMAGES = 4
"""Of each data set."""
LIKE_TRAINED = 30.0
"""A new head's weights times this give logits of the size that a trained one gives."""


def main(data: Data = DATA, weights: Weights = WEIGHTS) -> None:
    """Measure, print, and end with 1 if a backbone differs by more than the limit."""
    found = {name: _difference(name, size, data, weights) for name, size in SIZES.items()}
    worst = max(found, key=lambda name: found[name][0])
    figure = found[worst][0]
    result = Result(
        name="onnx",
        figure=figure,
        against={"what": f"torch, {worst}", "figure": 0.0, "unit": "logit"},
        ratio=figure / LARGEST_DIFFERENCE,
        limit=LARGEST_DIFFERENCE,
        holds=figure <= LARGEST_DIFFERENCE,
        details={
            "opset": OPSET,
            "largest_difference": {name: gap for name, (gap, _) in found.items()},
            "real_images": {name: count for name, (_, count) in found.items()},
            "real_weights": weights.name if weights.is_file() else None,
        },
    )
    raise typer.Exit(result.tell())


def _difference(name: str, size: int, data: Path, weights: Path) -> tuple[float, int]:
    """Return the largest difference of one backbone, and how many real images it was shown."""
    real = name == REAL and weights.is_file() and weights.name == BACKBONES[REAL]
    source = str(weights) if real else "none"
    backbone = {"name": name, "weights": source, "image_size": size}
    study = Study.parse({"name": "bench", "rounds": 1, "backbone": backbone, "tasks": TASKS})
    images = real_images(data, study)
    model = initial_model(study).model.eval()
    with torch.no_grad():
        for head in model.heads.parameters():
            head.mul_(LIKE_TRAINED)
    with tempfile.TemporaryDirectory() as folder:
        found = export_onnx(model, study, Path(folder) / ONNX, images)
    return found.largest_difference, found.images


def real_images(data: Path, study: Study) -> NDArray[np.float32] | None:
    """Return prepared images of the data sets, shape (N, 3, S, S); None where there are none."""
    task = study.tasks["eye"]
    files = [
        file
        for folder in KNOWN
        for file in sorted((data / folder / "images").glob("*.*"))[:: 1 << 4][:IMAGES]
    ]
    made = [
        prepare(picture.values, study.backbone.image_size).numpy().astype(np.float32)
        for file in files
        for picture in read_images(file, reading_of(task)).pictures[:1]
    ]
    # Grey images get three channels, as colour ones have.
    shape = (3, study.backbone.image_size, study.backbone.image_size)
    return np.stack([np.broadcast_to(image, shape) for image in made]) if made else None


if __name__ == "__main__":
    typer.run(main)
