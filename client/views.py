"""Variations of training images that are made once for a study, so that their features can be kept.

Shapes: N images of a split, n places, C channels, S image size.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from client.augment import augmented
from client.dataset import Images
from common.imaging import Varied, varied
from common.seeds import stream
from common.study import Study


class Views(NamedTuple):
    """How training images are varied once."""

    per_image: int
    """How many variations an image has."""
    by: Mapping[str, Varied]
    """How much may change, by task; images of other tasks are not varied."""
    seed: int
    """Start of their random numbers."""

    def drawn(self, images: Images, indices: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw one variation of each of some images; return their places, int64, shape (n,).

        Place v * N + i is variation v of image i.
        """
        drawn = torch.randint(self.per_image, indices.shape, generator=generator)
        return drawn * len(images) + indices

    def made(self, images: Images, task: str, places: Tensor) -> Tensor:
        """Return variations of a task's images, float32 in [0, 1], shape (n, C, S, S).

        Each has random numbers of its own, so that it is the same whenever it is made.
        """
        x_nCSS = images.pixels[places % len(images)]
        seeds = [stream(self.seed, task, place) for place in places.tolist()]
        made = [
            augmented(one[None], self.by[task], torch.Generator().manual_seed(seed))
            for one, seed in zip(x_nCSS, seeds, strict=True)
        ]
        return torch.cat(made)


def views_of(study: Study, site: str) -> Views | None:
    """Return how a site's images are varied once, if the study asks for that.

    Args:
        study: Its tasks and seed.
        site: The site's name.
    """
    if not study.training.views:
        return None
    by = {
        name: varied(task.augmentation, task.modality)
        for name, task in study.tasks.items()
        if task.augmentation is not None
    }
    return Views(study.training.views, by, stream(study.seed, site, "views"))
