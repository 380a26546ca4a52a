"""Warns of an image that is unlike those that the site trained on, whatever the network says of it.

The distance of an image is that to its k-th nearest neighbour among the training images, in the
backbone's pooled features brought to length one (Sun et al. 2022, "Out-of-Distribution Detection
with Deep Nearest Neighbors", ICML). It asks for no covariance of hundreds of features, which the
few patients of one site could not give, and not for one cluster: several scanners may be several.

How far is too far say the site's own held-out images, which the network was not trained on: the
conformal p-value of Bates et al. 2023, "Testing for outliers with conformal p-values" (Annals of
Statistics 51). Of images like those, a share of ``LEVEL`` is warned of by mistake, at most.
Shapes: N training images, M held-out images, B images, D features, S image size.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from client.dataset import Images, TaskData
from client.features import batches_of, channel_statistics
from client.preprocess import normalise
from common.errors import DivergedError
from common.files import canonical_json, replacing
from common.held_out import HELD_OUT
from common.models import FederatedModel

NEIGHBOURS = 5
"""Which neighbour; Sun et al. found that it matters little, and few images ask for few."""
LEVEL = 0.05
"""Share of images like the site's own that a warning may name."""
FEWEST = round(1 / LEVEL) - 1
"""Held-out images without which no p-value can be as small as ``LEVEL``."""
_PRIVATE = 0o600
_NOTES = "rarefed"
_AT_ONCE = 256

Floats = NDArray[np.float32]


class Known(NamedTuple):
    """What is known of the images that the site has."""

    trained: Floats
    """Features of training images, each of length one, shape (N, D)."""
    held_out: Floats
    """Distances of held-out images to those, in ascending order, shape (M,)."""


class Likeness(NamedTuple):
    """How one image lies to those of the site."""

    distance: float
    """From 0, the same direction, to 2."""
    p_value: float
    """Share of the site's own held-out images, and of this one, that are at least as far."""

    @property
    def far(self) -> bool:
        """Whether a warning is due."""
        return self.p_value <= LEVEL


def pooled_features(model: FederatedModel, images: Images, *, device: torch.device) -> Floats:
    """Return the backbone's pooled features of images, shape (B, D).

    Args:
        model: The network on ``device``, in evaluation mode.
        images: What it looks at; at least one.
        device: Where the arithmetic runs.

    Raises:
        DivergedError: A feature is not finite.
    """
    mean, std = channel_statistics(model, device)
    with torch.inference_mode():
        parts = [
            model.features(normalise(images.pixels[some].to(device), mean, std)).float().cpu()
            for some in batches_of(images)
        ]
    features_BD: Floats = torch.cat(parts).numpy()
    if not np.isfinite(features_BD).all():
        raise DivergedError("The model gives no finite features of an image.")
    return features_BD


def learn(model: FederatedModel, data: TaskData, *, device: torch.device) -> Known | None:
    """Return what is known of a task's images; None where too few are held out, or trained on.

    Raises:
        DivergedError: A feature is not finite.
    """
    held = [data.splits[split] for split in HELD_OUT if len(data.splits[split])]
    if sum(map(len, held)) < FEWEST or len(data.splits["train"]) < NEIGHBOURS:
        return None
    trained_ND = unit(pooled_features(model, data.splits["train"], device=device))
    others = [unit(pooled_features(model, images, device=device)) for images in held]
    return Known(trained_ND, np.sort(distances(trained_ND, np.concatenate(others))))


def likeness(known: Known, features_BD: Floats) -> list[Likeness]:
    """Return how each image lies to those of the site, by its pooled features."""
    found_B = distances(known.trained, unit(features_BD))
    n = len(known.held_out)
    as_far_B = n - np.searchsorted(known.held_out, found_B, side="left")
    return [
        Likeness(float(one), float((1 + more) / (1 + n)))
        for one, more in zip(found_B, as_far_B, strict=True)
    ]


def distances(trained_ND: Floats, unit_BD: Floats) -> Floats:
    """Return the distance of each to its ``NEIGHBOURS``-th nearest neighbour, shape (B,).

    Args:
        trained_ND: Vectors of length one.
        unit_BD: Others of length one.
    """
    cuts = range(_AT_ONCE, len(unit_BD), _AT_ONCE)
    found = []
    for some in np.split(unit_BD, cuts):
        squares = np.maximum(2 - 2 * (some @ trained_ND.T), 0)
        found.append(np.sqrt(np.partition(squares, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]))
    return np.concatenate(found).astype(np.float32)


def unit(features_BD: Floats) -> Floats:
    """Return vectors brought to length one; one of zeros stays as it is."""
    lengths = np.linalg.norm(features_BD, axis=1, keepdims=True)
    return np.asarray(features_BD / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def save(known: Known, file: Path, notes: dict[str, str]) -> None:
    """Keep what is known at the site, readable by its owner alone."""
    header = {_NOTES: canonical_json(notes).decode()}
    with replacing(file, mode=_PRIVATE) as temporary:
        save_file(known._asdict(), temporary, metadata=header)


def load(file: Path, notes: dict[str, str]) -> Known | None:
    """Return what was kept with the very same notes; None where it was not, or is damaged."""
    try:
        with safe_open(file, framework="numpy") as opened:
            if json.loads((opened.metadata() or {}).get(_NOTES, "{}")) != notes:
                return None
        return Known(**load_file(file))
    except (OSError, SafetensorError, TypeError, ValueError):
        return None
