"""What a study's network says of images that no manifest lists, and whether it knows such images.

Each file, or folder of a series, is a case of its own: where it gives several images, their
predictions become one as the study says for a patient (``per_patient``). Images go through exactly
what they went through in training. Shapes: n images of a case, K classes, D features.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from client.config import SiteConfig
from client.dataset import Images
from client.final_model import FinalModel
from client.manifest import Row
from client.operating_point import Operating
from client.out_of_distribution import (
    Known,
    Likeness,
    likeness,
    pooled_features,
)
from client.patients import by_patient
from client.reading_pass import RowRead, read_rows, workers_of
from common.errors import DivergedError
from common.study import Task

Progress = Callable[[int], None]


class Prediction(NamedTuple):
    """What is said of one file."""

    file: Path
    label: str
    """The class that it is said to be of."""
    probabilities: dict[str, float]
    """By class."""
    images: int
    """Images that the file gave."""
    likeness: Likeness | None
    """Of its middle image by p-value; None where the site cannot tell."""


class Unread(NamedTuple):
    """A file that gave no image."""

    file: Path
    error: str
    """For the hospital's eyes."""


class Asked(NamedTuple):
    """What is asked, the same for all files."""

    final: FinalModel
    task: str
    operating: Operating
    known: Known | None
    device: torch.device
    exported: bool = True
    """Whether the network is an export, rather than what the site keeps."""


def predict(
    files: Sequence[Path], asked: Asked, config: SiteConfig, progress: Progress | None = None
) -> Iterator[Prediction | Unread]:
    """Read files and yield what the network says of each, in their order.

    Args:
        files: Images, or folders with the slices of a series.
        asked: What is asked.
        config: The hospital.
        progress: Called with the number of files that are done.

    Raises:
        DivergedError: The network gives no finite numbers.
    """
    study, workers = asked.final.study, workers_of(config)
    rows = [
        Row(line=number, path=file.absolute(), label=0, patient=str(number), unit=str(number))
        for number, file in enumerate(files, 1)
    ]
    size = study.backbone.image_size
    reads = read_rows(
        rows,
        study.tasks[asked.task],
        size=size,
        cache=None,
        workers=workers[0],
        apart=workers[1],
        progress=progress,
    )
    for file, read in zip(files, reads, strict=True):
        yield _predicted(file, read, asked)


def statement_of(one: Likeness | None, unknown: str) -> str:
    """Say in a sentence whether an image is like those that the site trained on."""
    if one is None:
        return unknown
    if one.far:
        return (
            f"WARNING: unlike the site's training images (p = {one.p_value:.3f}); do not rely on "
            "what is said of it."
        )
    return f"Like the site's training images (p = {one.p_value:.2f})."


def _predicted(file: Path, read: RowRead, asked: Asked) -> Prediction | Unread:
    if read.pixels is None:
        return Unread(file, read.error)
    n = len(read.pixels)
    images = Images(torch.from_numpy(read.pixels), torch.zeros(n, dtype=torch.int64), ("",) * n)
    model = asked.final.model
    features_nD = pooled_features(model, images, device=asked.device)
    with torch.inference_mode():
        head = model.heads[asked.task]
        logits_nK = head(torch.from_numpy(features_nD).to(asked.device)).float().cpu().numpy()
    if not np.isfinite(logits_nK).all():
        raise DivergedError(f"The model gives no finite numbers for {asked.task}.")
    task = asked.final.study.tasks[asked.task]
    chances_K = joined(logits_nK, task, asked.operating.temperature)
    alike = None if asked.known is None else likeness(asked.known, features_nD)
    return Prediction(
        file,
        decided(chances_K, task, asked.operating.threshold),
        dict(zip(task.classes, map(float, chances_K), strict=True)),
        n,
        None if alike is None else _middle(alike),
    )


def joined(logits_nK: NDArray[Any], task: Task, temperature: float) -> NDArray[np.float64]:
    """Return the probabilities of a case, (K,), from the logits of its images."""
    n = len(logits_nK)
    labels = np.zeros(n, np.int64)
    said, _ = by_patient(logits_nK, labels, [""] * n, task.per_patient, task.positive_index)
    # In this order: temperature and threshold were chosen on what was joined.
    found: NDArray[np.float64] = softmax(said[0] / temperature)
    return found


def decided(chances_K: NDArray[np.float64], task: Task, threshold: float | None) -> str:
    """Return the class: positive from the threshold on; without one, the likeliest."""
    positive = task.positive_index
    if positive is None or threshold is None:
        return task.classes[int(chances_K.argmax())]
    return task.classes[positive if chances_K[positive] >= threshold else 1 - positive]


def caveats_of(asked: Asked) -> list[str]:
    """Say what a reader of the probabilities must know, beside that this is no medical device."""
    lines = []
    if not asked.operating.known:
        lines.append("No temperature was fitted: the probabilities may be too sure.")
    if asked.operating.threshold is None:
        lines.append("No operating point is known: the class is that of the highest probability.")
    if asked.final.study.backbone.normalisation == "local" and asked.exported:
        lines.append(
            "Batch normalisation stayed at each site: an export has that of the study's beginning. "
            "Give the study.toml for the network that this site keeps."
        )
    if asked.final.study.evaluation.adapted:
        lines.append(
            "The study's figures are with batch normalisation re-estimated on many images: a "
            "prediction has the stored statistics, and says something else."
        )
    return lines


def as_json(one: Prediction, operating: Operating, unknown: str) -> dict[str, Any]:
    """Return what is printed of a prediction for a program."""
    alike = one.likeness
    return {
        "file": str(one.file),
        "class": one.label,
        "probabilities": one.probabilities,
        "threshold": operating.threshold,
        "images": one.images,
        "likeness": None if alike is None else alike._asdict(),
        "unlike_training": None if alike is None else alike.far,
        "statement": statement_of(alike, unknown),
    }


def columns_of(task: Task) -> list[str]:
    """Return the columns of a table of predictions."""
    chances = [f"probability_{name}" for name in task.classes]
    return ["file", "class", *chances, "threshold", "p_value", "unlike_training"]


def as_row(one: Prediction, task: Task, operating: Operating) -> dict[str, str]:
    """Return a prediction as a row of such a table; a cell of what is unknown is empty."""
    point, alike = operating.threshold, one.likeness
    last = (
        "" if point is None else f"{point:.6f}",
        "" if alike is None else f"{alike.p_value:.6f}",
        "" if alike is None else str(int(alike.far)),
    )
    chances = (f"{value:.6f}" for value in one.probabilities.values())
    return dict(zip(columns_of(task), (str(one.file), one.label, *chances, *last), strict=True))


def _middle(alike: Sequence[Likeness]) -> Likeness:
    """Return the middle image by p-value, the lower of two: one slice alone is no case."""
    ordered = sorted(alike, key=lambda one: one.p_value)
    return ordered[(len(ordered) - 1) // 2]
