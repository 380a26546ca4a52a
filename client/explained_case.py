"""One held-out case explained: its map, its overlay, and the scalars that both give.

Shapes: N pictures of a row, K classes, H and W the size of a picture, S the study's image size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.attention_warnings import Share, shares, warnings_of
from client.cam_layers import Layer, evaluating
from client.explain import Explained, Method, explain, scores
from client.faithfulness import Faithfulness, faithfulness, likeness
from client.features import channel_statistics
from client.geometry import geometry_of, to_image
from client.images import read_images
from client.localisation import Localisation, localised, mark_of
from client.manifest import Row
from client.overlay import overlay
from client.pictures import Picture, reading_of
from client.preprocess import normalise, prepare
from common.models import FederatedModel
from common.study import Task


class Asked(NamedTuple):
    """What is explained, the same for all cases."""

    model: FederatedModel
    """On ``device``."""
    other: FederatedModel
    """The network with randomised weights, for the sanity check."""
    layer: Layer
    name: str
    """Of the task."""
    task: Task
    size: int
    method: Method
    device: torch.device


class Look(NamedTuple):
    """Where the network looks in the picture of a row that matters most, and what is there."""

    image: NDArray[np.float32]
    """The picture, shape (H, W) or (H, W, 3)."""
    part: str
    """Which slice or frame of the row it is."""
    pixels: torch.Tensor
    """The picture as the network takes it, shape (1, 3, S, S)."""
    label: int
    """Index of the class that is explained."""
    found: Explained
    """Logits (1, K), and the map at the layer's grid."""
    map: NDArray[np.float32]
    """The map over the picture, shape (H, W)."""
    mask: NDArray[np.bool_] | None
    """What the manifest marks in it."""
    localisation: Localisation | None
    """None where the row marks nothing, or has another label than the class that is explained."""
    attention: dict[str, Share]

    def scalars(self) -> dict[str, float]:
        """Return the numbers of the map, by name; a part of those of a case."""
        return _of_map(self.localisation, self.attention)


@dataclass(frozen=True)
class Case:
    """What is known of one explained picture. It names no patient and no file but the overlay."""

    line: int
    """Of the manifest."""
    part: str
    """Which slice or frame of the row was looked at: of several, the one most likely to be of the
    class that is explained."""
    patient: str
    """Keyed hash; it is written nowhere."""
    label: str
    explained: str
    """The class that the map is of: the positive one, or of several the predicted one."""
    probability: float
    """Of that class, in [0, 1]."""
    predicted: str
    """The class of the highest probability."""
    localisation: Localisation | None
    """None where the row marks nothing, or has another label than the class that is explained."""
    attention: dict[str, Share]
    faithfulness: Faithfulness | None
    """None of an empty map."""
    likeness: float | None
    """Rank correlation with the map of the randomised network."""
    empty: bool
    """Whether nothing in the map speaks for the class."""
    overlay: str = ""
    """Name of the file."""

    def scalars(self) -> dict[str, float]:
        """Return the numbers of which means may be made, by name."""
        found: dict[str, float] = {"empty": float(self.empty)}
        if self.faithfulness is not None:
            found |= self.faithfulness._asdict()
        if self.likeness is not None:
            found["randomised_likeness"] = self.likeness
        return found | _of_map(self.localisation, self.attention)

    def as_json(self) -> dict[str, Any]:
        """Return what the site's own file says of the case."""
        return {
            "line": self.line,
            "part": self.part,
            "label": self.label,
            "explained": self.explained,
            "probability": self.probability,
            "predicted": self.predicted,
            "scalars": self.scalars(),
            "warnings": warnings_of(self.attention),
            "overlay": self.overlay,
        }


def explained_case(row: Row, asked: Asked) -> tuple[Case, bytes]:
    """Read a row, explain the picture of it that matters most, and draw the overlay as PNG.

    Raises:
        ImageError: The row's image or mask cannot be read, or they do not fit.
        DivergedError: The network gives no finite numbers.
    """
    look = look_at(row, asked)
    labels, maps = np.array([look.label]), look.found.maps
    empty = not maps.any()
    true = None if empty else faithfulness(asked.model, look.pixels, asked.name, labels, maps)[0]
    chances_K = scores(look.found.logits)[0]
    case = Case(
        line=row.line,
        part=look.part,
        patient=row.patient,
        label=asked.task.classes[row.label],
        explained=asked.task.classes[look.label],
        probability=float(chances_K[look.label]),
        predicted=asked.task.classes[int(chances_K.argmax())],
        localisation=look.localisation,
        attention=look.attention,
        faithfulness=true,
        likeness=_likeness(look.pixels, labels, asked),
        empty=empty,
    )
    return case, overlay(look.image, look.map, _words(case, asked), look.mask)


def look_at(row: Row, asked: Asked) -> Look:
    """Read a row, make the map of the picture of it that matters most, and measure the map.

    Raises:
        ImageError: The row's image or mask cannot be read, or they do not fit.
        DivergedError: The network gives no finite numbers.
    """
    source = read_images(row.path, reading_of(asked.task), row.slices)
    side = row.laterality or source.facts.laterality
    inputs = [_input(picture, asked, side) for picture in source.pictures]
    chosen, label = _most_telling(_logits(inputs, asked), asked.task.positive_index)
    image, x_1CSS = source.pictures[chosen].values, inputs[chosen]
    labels = np.array([label])
    found = explain(asked.model, x_1CSS, asked.name, labels, asked.layer, asked.method)
    geometry = geometry_of(image, asked.size, asked.task.preparation, asked.task.modality, side)
    map_HW = to_image(found.maps[0], geometry)
    single = len(source.pictures) == 1  # a mask is of one picture, and nothing says of which
    mask = mark_of(row, *image.shape[:2]) if single else None
    return Look(
        image=image,
        part=source.pictures[chosen].part,
        pixels=x_1CSS,
        label=label,
        found=found,
        map=map_HW,
        mask=mask,
        localisation=localised(map_HW, mask) if mask is not None and row.label == label else None,
        attention=shares(map_HW, image, asked.task.modality),
    )


def _of_map(localisation: Localisation | None, attention: Mapping[str, Share]) -> dict[str, float]:
    """Return the numbers of a map, by name."""
    found: dict[str, float] = {}
    if localisation is not None:
        found |= {name: float(value) for name, value in localisation._asdict().items()}
    for place, share in attention.items():
        found |= {f"{place}_attention": share.of_map, f"{place}_area": share.of_area}
    return found


def _likeness(x_1CSS: torch.Tensor, labels: NDArray[np.int64], asked: Asked) -> float | None:
    """Return how like the map of the randomised network is."""
    found = likeness(
        asked.model, asked.other, x_1CSS, asked.name, labels, asked.layer, asked.method
    )
    return found[0]


def _input(picture: Picture, asked: Asked, side: str) -> torch.Tensor:
    """Return a picture as the network takes it, shape (1, 3, S, S)."""
    mean, std = channel_statistics(asked.model, asked.device)
    made = prepare(picture.values, asked.size, asked.task.preparation, asked.task.modality, side)
    return normalise(made[None].to(asked.device), mean, std)


def _logits(inputs: list[torch.Tensor], asked: Asked) -> NDArray[np.float32]:
    with evaluating(asked.model), torch.inference_mode():
        rows = [asked.model(x_1CSS, asked.name).float().cpu() for x_1CSS in inputs]
    found: NDArray[np.float32] = torch.cat(rows).numpy()
    return found


def _most_telling(logits_NK: NDArray[np.float32], positive: int | None) -> tuple[int, int]:
    """Return which picture is explained, and the class that is explained of it."""
    chances_NK = scores(logits_NK)
    label = int(chances_NK.mean(axis=0).argmax()) if positive is None else positive
    return int(chances_NK[:, label].argmax()), label


def _words(case: Case, asked: Asked) -> list[str]:
    part = f", {case.part}" if case.part else ""
    words = [
        f"{asked.name}: {case.explained}, probability {case.probability:.2f}",
        f"Line {case.line} of the manifest{part}; labelled {case.label}.",
        f"{asked.method} of layer {asked.layer.name}; 1 is this map's highest value.",
    ]
    if case.empty:
        words.append("The map is empty: nothing at this layer speaks for the class.")
    return words + warnings_of(case.attention)
