"""Does a map lie where nothing can be found: on the border, on letters, beside the body?

Shapes: H height and W width of the image.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from client.burned_in import boxes_of_text
from client.fundus import retina_of
from client.intensity import body

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

FRAME = 0.05
"""The border is what lies within so much of the shorter side from an edge."""
LIMITS: Mapping[str, float] = {"border": 0.4, "text": 0.1, "outside": 0.3}
"""Share of a map above which it lies in the wrong place. A map that is the same everywhere has
some 0.19 of itself on the border, and little on letters."""
TIMES_EVEN: Mapping[str, float] = {"border": 1.0, "text": 2.0, "outside": 1.0}
"""What is more, a place must draw so many times what its area alone would: half of an image of a
head is air, and cells of a coarse map reach into it."""
_WORDS = {
    "border": "on the image's border",
    "text": "on text that is burned into the image",
    "outside": "outside of the body or of the retina",
}


class Share(NamedTuple):
    """What of a map lies in one place, of one image or as means over several."""

    of_map: float
    """Share of the map's sum, in [0, 1]."""
    of_area: float
    """Share of the image, in [0, 1]: what a map would have that is the same everywhere."""


def places(image: Floats, modality: str) -> dict[str, Mask]:
    """Return where in an image nothing of a disease can be, by name.

    Args:
        image: Values in [0, 1], shape (H, W) or (H, W, 3).
        modality: The task's; of fundus photographs the disc of the retina is looked for, of CT and
            MR the body.

    Returns:
        ``border`` always, ``text`` where there is some, and ``outside`` where body or retina were
        found and do not fill the image. Each of shape (H, W).
    """
    height, width = image.shape[:2]
    edge = max(1, round(FRAME * min(height, width)))
    border = np.ones((height, width), np.bool_)
    border[edge : height - edge, edge : width - edge] = False
    found = {"border": border}
    if boxes := boxes_of_text(image):
        found["text"] = _marked(boxes, height, width)
    outside = _outside(image, modality)
    if outside is not None and outside.any():
        found["outside"] = outside
    return found


def shares(map_HW: Floats, image: Floats, modality: str) -> dict[str, Share]:
    """Return what of a map lies in each of the places of its image; nothing of an empty map.

    Args:
        map_HW: In [0, 1], over the image itself.
        image: Values in [0, 1], shape (H, W) or (H, W, 3).
        modality: The task's.
    """
    total = float(map_HW.sum(dtype=np.float64))
    if total <= 0:
        return {}
    return {
        name: Share(float(map_HW[mask].sum(dtype=np.float64)) / total, float(mask.mean()))
        for name, mask in places(image, modality).items()
    }


def mean_shares(found: Sequence[Mapping[str, Share]]) -> dict[str, Share]:
    """Return the means over the images in which a place was found, by place."""
    means = {}
    for name in LIMITS:
        rows = [one[name] for one in found if name in one]
        if rows:
            of_map, of_area = np.mean(rows, axis=0)
            means[name] = Share(float(of_map), float(of_area))
    return means


def warnings_of(found: Mapping[str, Share]) -> list[str]:
    """Name the wrong places that draw more of a map, or of the maps' mean, than they may."""
    return [
        f"{share.of_map:.0%} of the attention lies {_WORDS[name]}, which is {share.of_area:.0%} of "
        "the area: the network may have learnt something else than the disease."
        for name, share in found.items()
        if is_wrong(name, share)
    ]


def is_wrong(name: str, share: Share) -> bool:
    """Say whether a place draws more than it may."""
    return share.of_map > max(LIMITS[name], TIMES_EVEN[name] * share.of_area)


def _marked(boxes: Sequence[tuple[float, float, float, float]], height: int, width: int) -> Mask:
    """Return the boxes of signs, with the gaps between them."""
    mask = np.zeros((height, width), np.bool_)
    for x, y, across, down in boxes:
        gap = down / 2
        mask[
            max(0, round(y - gap)) : round(y + down + gap),
            max(0, round(x - gap)) : round(x + across + gap),
        ] = True
    return mask


def _outside(image: Floats, modality: str) -> Mask | None:
    """Return what is beside the body or the retina; None where neither is looked for or found."""
    height, width = image.shape[:2]
    if modality == "fundus":
        disc = retina_of(image)
        if disc is None:
            return None
        rows, columns = np.ogrid[:height, :width]
        return np.asarray(np.hypot(rows - disc.y, columns - disc.x) > disc.radius, np.bool_)
    if modality in {"CT", "MR"}:
        colour = image.ndim == 3  # noqa: PLR2004 - an export of a viewer
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if colour else image
        return ~body([np.asarray(grey, np.float32)])[0]
    return None
