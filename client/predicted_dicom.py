"""A prediction as DICOM: the report, and the picture of where the network looked."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from client.attention_warnings import shares, warnings_of
from client.cam_layers import cam_layer
from client.dicom_out import Statement, write_overlay, write_report
from client.dicom_source import source_of
from client.explain import Method, explain
from client.features import channel_statistics
from client.geometry import geometry_of, to_image
from client.images import read_images
from client.overlay import overlay
from client.pictures import Picture, Source, reading_of
from client.predict import Asked, Prediction, caveats_of, statement_of
from client.preprocess import normalise, prepare

METHOD: Method = "hirescam"


def write_both(folder: Path, one: Prediction, asked: Asked, unknown: str) -> tuple[Path, Path]:
    """Write the report and the picture of one prediction, and return their files.

    Args:
        folder: Where they go, readable by their owner alone.
        one: The prediction.
        asked: What was asked.
        unknown: Why likeness is unknown, where it is.

    Raises:
        ImageError: The file is no DICOM, or does not say which study it is of.
        OutputError: They cannot be written.
    """
    source = source_of(one.file)
    picture, warnings = attention(one, asked)
    said = statement(one, asked, unknown, warnings)
    return write_report(folder, source, said), write_overlay(folder, source, picture, said)


def statement(one: Prediction, asked: Asked, unknown: str, warnings: list[str]) -> Statement:
    """Return what a report says of a prediction."""
    final = asked.final
    return Statement(
        task=asked.task,
        label=one.label,
        probabilities=one.probabilities,
        model=f"rarefed {final.study.name}, round {final.model_round}",
        sha256=final.sha256,
        likeness=statement_of(one.likeness, unknown),
        threshold=asked.operating.threshold,
        notes=(*caveats_of(asked), *(f"Attention: {warning}" for warning in warnings)),
    )


def attention(one: Prediction, asked: Asked) -> tuple[NDArray[np.uint8], list[str]]:
    """Return where the network looked on the picture that speaks most for the predicted class.

    Returns:
        Red, green and blue, shape (H, W, 3), and what is odd about it.
    """
    final, task = asked.final, asked.final.study.tasks[asked.task]
    size, label = final.study.backbone.image_size, task.classes.index(one.label)
    source = read_images(one.file, reading_of(task))
    side = source.facts.laterality
    picture, x_1CSS = _most_telling(source, asked, label)
    layer = cam_layer(final.model.backbone, size, asked.device)
    found = explain(final.model, x_1CSS, asked.task, np.array([label]), layer, METHOD)
    geometry = geometry_of(picture.values, size, task.preparation, task.modality, side)
    map_HW = to_image(found.maps[0], geometry)
    warnings = warnings_of(shares(map_HW, picture.values, task.modality))
    words = [
        f"{asked.task}: {one.label}, probability {one.probabilities[one.label]:.2f}",
        f"{final.study.name}, round {final.model_round}; {METHOD} of layer {layer.name}"
        + (f"; image {picture.part}" if picture.part else ""),
        *([statement_of(one.likeness, "")] if one.likeness and one.likeness.far else []),
        *warnings,
    ]
    drawn = Image.open(io.BytesIO(overlay(picture.values, map_HW, words)))
    return np.asarray(drawn.convert("RGB"), np.uint8), warnings


def _most_telling(source: Source, asked: Asked, label: int) -> tuple[Picture, torch.Tensor]:
    """Return the picture that speaks most for a class, also as the network takes it."""
    final, task = asked.final, asked.final.study.tasks[asked.task]
    size, side = final.study.backbone.image_size, source.facts.laterality
    mean, std = channel_statistics(final.model, asked.device)
    found = []
    for picture in source.pictures:
        image = prepare(picture.values, size, task.preparation, task.modality, side)
        x_1CSS = normalise(image[None].to(asked.device), mean, std)
        with torch.inference_mode():
            chance = final.model(x_1CSS, asked.task).softmax(dim=1)[0, label].item()
        found.append((chance, picture, image))
    _, picture, image = max(found, key=lambda one: one[0])
    return picture, normalise(image[None].to(asked.device), mean, std)
