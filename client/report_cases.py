"""Which cases a report shows, and how a report looks at one: image, map, and what both say.

A case is a test row of the manifest. Of a row with several images the one is shown that is most
likely to be of the class that the map is of. Shapes: H and W the size of an image, K classes.
"""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from client.attention_warnings import Share, shares
from client.cam_layers import Layer
from client.explain import Method, explain
from client.features import channel_statistics
from client.geometry import geometry_of, to_image
from client.images import read_images
from client.local_figures import Case
from client.localisation import Localisation, Mask, localised, mark_of
from client.manifest import Row
from client.overlay import blended
from client.pictures import Facts, reading_of
from client.preprocess import normalise, prepare
from common.errors import ImageError
from common.models import FederatedModel
from common.study import Task

Floats = NDArray[np.float32]

SIDE = 480
"""Pixels of the longer side of an image on the page, at most."""
_QUALITY = 85  # of JPEG
RIGHT, WRONG = "right", "wrong"
OUTCOMES = (
    "false positive", "false negative", "true positive", "true negative", WRONG, RIGHT,
)  # fmt: skip
"""In the order of the page: errors come first."""


class Shown(NamedTuple):
    """A test row, and what the network says of it."""

    row: Row
    label: str
    said: str
    outcome: str
    """One of ``OUTCOMES``."""
    explained: int
    """Index of the class that the map is of: the positive one, else the one that is said."""
    probabilities: tuple[float, ...]
    """Of each class: of several images their mean, or the most suspicious, as the study says."""
    part: str
    """Which image of the row is shown."""
    images: int
    margin: float
    """How far the network is from saying something else; larger is surer."""


class Asked(NamedTuple):
    """Who is asked for maps, the same for all cases of a task."""

    model: FederatedModel
    layer: Layer | None
    """None where the network has no layer with a grid: then there are no maps."""
    name: str
    task: Task
    size: int
    method: Method
    device: torch.device


class Looked(NamedTuple):
    """What was found in one case."""

    image: Floats
    """In [0, 1], as windowed, shape (H, W) or (H, W, 3)."""
    attended: Floats | None
    """The map over the image, in [0, 1], shape (H, W); None where there is no layer for one."""
    mask: Mask | None
    facts: Facts
    attention: Mapping[str, Share]
    localisation: Localisation | None
    mask_fault: str
    """Why the row's mask is of no use; for the hospital's log."""


def shown_rows(
    cases: Sequence[Case], rows: Sequence[Row], task: Task, threshold: float | None
) -> list[Shown]:
    """Return every test row that was measured, with its outcome, in the manifest's order.

    Args:
        cases: What the network says of each test image.
        rows: The manifest's test rows.
        task: The task.
        threshold: Probability from which a row counts as positive; None is the highest
            probability, as in a task of several classes.
    """
    by_row: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
    for case in cases:
        by_row[case.file, case.patient, case.label].append(case)
    found = [
        (row, by_row.get((str(row.path), row.patient, task.classes[row.label]), [])) for row in rows
    ]
    return [_shown(row, own, task, threshold) for row, own in found if own]


def _shown(row: Row, cases: Sequence[Case], task: Task, threshold: float | None) -> Shown:
    table_NK = np.array([case.probabilities for case in cases])
    positive = task.positive_index
    if positive is not None and task.per_patient == "max":
        chances_K = table_NK[table_NK[:, positive].argmax()]
    else:
        chances_K = table_NK.mean(axis=0)
    said, margin = _said(chances_K, positive, threshold)
    explained = said if positive is None else positive
    chosen = cases[int(table_NK[:, explained].argmax())]
    return Shown(
        row=row,
        label=task.classes[row.label],
        said=task.classes[said],
        outcome=_outcome(row.label, said, positive),
        explained=explained,
        probabilities=tuple(chances_K.tolist()),
        part=chosen.part,
        images=len(cases),
        margin=margin,
    )


def _said(
    chances_K: NDArray[np.float64], positive: int | None, threshold: float | None
) -> tuple[int, float]:
    """Return the class that is said, and how far the next one is."""
    if positive is None or threshold is None:
        order = np.sort(chances_K)
        return int(chances_K.argmax()), float(order[-1] - order[-2])
    chance = float(chances_K[positive])
    # Each side of the threshold has its own length: shares of it make the two comparable.
    if chance >= threshold:
        return positive, (chance - threshold) / max(1 - threshold, 1e-9)
    return 1 - positive, (threshold - chance) / max(threshold, 1e-9)


def _outcome(label: int, said: int, positive: int | None) -> str:
    if positive is None:
        return RIGHT if label == said else WRONG
    return (
        f"{'true' if label == said else 'false'} {'positive' if said == positive else 'negative'}"
    )


def gallery(rows: Sequence[Shown], count: int, *, by_class: bool) -> list[tuple[Shown, str]]:
    """Return the rows to show: of each kind the surest and the least sure, each patient once.

    Args:
        rows: As ``shown_rows`` returns them.
        count: How many of a kind at most.
        by_class: Whether right and wrong rows of each class are kinds of their own.

    Returns:
        Rows, errors first, each with why it was taken: ``most sure`` or ``least sure``.
    """
    kinds: dict[tuple[int, str], list[Shown]] = defaultdict(list)
    for one in rows:
        kinds[OUTCOMES.index(one.outcome), one.label if by_class else ""].append(one)
    found = []
    for _, own in sorted(kinds.items()):
        ordered = _once(sorted(own, key=lambda one: (-one.margin, one.row.line)))
        least = min(count, len(ordered)) // 2
        most = min(count, len(ordered)) - least
        found += [(one, "most sure") for one in ordered[:most]]
        found += [(one, "least sure") for one in ordered[len(ordered) - least :][::-1]]
    return found


def _once(rows: Sequence[Shown]) -> list[Shown]:
    """Return the first row of each patient."""
    return list({one.row.patient: one for one in reversed(rows)}.values())[::-1]


def look(one: Shown, asked: Asked) -> Looked:
    """Read a row's image and make the map of its class.

    Raises:
        ImageError: The image cannot be read.
        DivergedError: The network gives no finite numbers.
    """
    source = read_images(one.row.path, reading_of(asked.task), one.row.slices)
    picture = next((p for p in source.pictures if p.part == one.part), source.pictures[0])
    image, side = picture.values, one.row.laterality or source.facts.laterality
    mask, fault = None, ""
    if len(source.pictures) == 1:  # a mask is of one picture, and nothing says of which
        try:
            mask = mark_of(one.row, *image.shape[:2])
        except ImageError as error:
            fault = error.message
    if asked.layer is None:
        return Looked(image, None, mask, source.facts, {}, None, fault)
    map_HW = _map(image, side, one.explained, asked, asked.layer)
    shown = mask is not None and one.row.label == one.explained
    return Looked(
        image=image,
        attended=map_HW,
        mask=mask,
        facts=source.facts,
        attention=shares(map_HW, image, asked.task.modality),
        localisation=localised(map_HW, mask) if mask is not None and shown else None,
        mask_fault=fault,
    )


def _map(image: Floats, side: str, label: int, asked: Asked, layer: Layer) -> Floats:
    """Return the map of a class over an image, shape (H, W)."""
    task, size = asked.task, asked.size
    mean, std = channel_statistics(asked.model, asked.device)
    x_CSS = prepare(image, size, task.preparation, task.modality, side)
    x_1CSS = normalise(x_CSS[None].to(asked.device), mean, std)
    found = explain(asked.model, x_1CSS, asked.name, np.array([label]), layer, asked.method)
    geometry = geometry_of(image, size, task.preparation, task.modality, side)
    return to_image(found.maps[0], geometry)


def picture_of(looked: Looked) -> str:
    """Return the image as it was windowed, as a data URI (RFC 2397) of a JPEG."""
    height, width = _fitted(looked.image)
    small = cv2.resize(looked.image, (width, height), interpolation=cv2.INTER_AREA)
    levels = np.asarray(np.rint(255 * np.clip(small, 0, 1)), np.uint8)
    return _uri(levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2))  # noqa: PLR2004 - colour


def overlay_of(looked: Looked) -> str:
    """Return the map over its image, with the outline of a mask; empty where there is no map."""
    if looked.attended is None:
        return ""
    height, width = _fitted(looked.image)
    image = cv2.resize(looked.image, (width, height), interpolation=cv2.INTER_AREA)
    map_HW = cv2.resize(looked.attended, (width, height), interpolation=cv2.INTER_AREA)
    drawn = blended(np.clip(image, 0, 1).astype(np.float32), map_HW.astype(np.float32))
    if looked.mask is None:
        return _uri(drawn)
    shares_HW = cv2.resize(
        looked.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    )
    marked = (shares_HW > 0).astype(np.uint8)  # a small lesion must not vanish
    near, far = (cv2.dilate(marked, np.ones((n, n), np.uint8)) for n in (3, 5))
    drawn = drawn.copy()
    drawn[(far > near)] = 0
    drawn[(near > marked)] = 255
    return _uri(drawn)


def _fitted(image: Floats) -> tuple[int, int]:
    """Return height and width on the page."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _uri(levels_HWC: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(
        ".jpg",
        cv2.cvtColor(levels_HWC, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, _QUALITY],
    )
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
