"""What a network says of held-out images of several sites, each measured as the study says.

Shapes: N images, K classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from client.dataset import Images
from client.evaluate import logits_of
from common.models import FederatedModel
from common.study import Study


def ask_at_sites(
    study: Study,
    model: FederatedModel,
    images: Images,
    task: str,
    places: Mapping[str, slice],
    *,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the logits of images of all sites laid together, shape (N, K).

    Args:
        study: Whose ``evaluation.normalisation`` counts: statistics are those of one site's images.
        model: The network on ``device``.
        images: Of one task and split.
        task: Whose head is asked.
        places: Which of the images are each site's; together all of them.
        device: Where the arithmetic runs.

    Raises:
        DivergedError: A logit is not finite.
    """
    if not study.evaluation.adapted:
        return logits_of(model, images, task, device=device)
    found = np.zeros((len(images), len(study.tasks[task].classes)), np.float32)
    for at in places.values():
        found[at] = logits_of(model, part(images, at), task, device=device, adapted=True)
    return found


def part(images: Images, place: slice) -> Images:
    """Return some of the images, without where they came from."""
    return Images(images.pixels[place], images.labels[place], images.patients[place])
