"""The local training of one round, on one page.

Shapes: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.alignment import Alignment
from client.anchor import Near
from client.augment import augmented
from client.dataset import Batch, Images
from client.features import FrozenFeatures, channel_statistics
from client.objective import Objective, make_pull
from client.optim import make_optimizer, set_rates
from client.preprocess import normalise
from client.schedule import rate_factors
from common.errors import DivergedError
from common.imaging import varied
from common.models import FederatedModel
from common.study import Study

Inputs = Callable[[str, NDArray[np.int64]], Tensor]
"""From a task and indices of its training images to what the network takes of them."""


class Trained(NamedTuple):
    """What one round of local training did."""

    steps: int
    loss: float
    """Mean loss over the images, by the study's loss, as they were trained on."""


def train(
    model: FederatedModel,
    images: Mapping[str, Images],
    batches: Iterable[Batch],
    study: Study,
    *,
    device: torch.device,
    number: int = 1,
    lowered: int = 0,
    near: Near | None = None,
    alignment: Alignment | None = None,
    features: FrozenFeatures | None = None,
    generator: torch.Generator | None = None,
) -> Trained:
    """Train ``model`` in place on the batches, in their order.

    Args:
        model: The network on ``device``.
        images: Training images by task.
        batches: Which images make each gradient step.
        study: Loss, optimizer, schedule, strategy and augmentation.
        device: Where the arithmetic runs.
        number: The round, from 1, which says where in its schedule the study is.
        lowered: How many times the schedule ``plateau`` has lowered the rates so far.
        near: What holds the network near its initial backbone, if the study asks for it.
        alignment: What makes its features like those of other sites, if the study asks for it.
        features: Where those of the images are kept; None where the whole network is run.
        generator: Whence augmentation takes its randomness; torch's global one by default.

    Raises:
        DivergedError: The loss or an array is no longer finite; the caller discards the model.
    """
    objective = Objective(
        model, images, study, device=device, near=near, alignment=alignment, features=features
    )
    pull, optimizer = make_pull(model, study, near), make_optimizer(model, study.training)
    inputs = training_inputs(
        model, images, study, device=device, features=features, generator=generator
    )
    batches, clip_norm = list(batches), study.training.clip_norm
    steps, seen, total = len(batches), 0, 0.0
    factors = rate_factors(study.training.schedule, number, study.rounds, steps, lowered=lowered)
    model.train()
    (model if features is None else features.network).train()
    for step, (batch, factor) in enumerate(zip(batches, factors, strict=True)):
        set_rates(optimizer, factor)
        asked = objective.of(batch, inputs(batch.task, batch.indices), step / steps)
        optimizer.zero_grad(set_to_none=True)
        asked.objective.backward()
        pull()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()

        seen, total = seen + len(batch.indices), total + asked.loss.item() * len(batch.indices)
        if not math.isfinite(total):
            raise _diverged(f"The loss is {asked.loss.item()} after {step + 1} steps.")
    if not is_finite(model):  # the loss of the last batch came before its step
        raise _diverged(f"The network is no longer finite after {steps} steps.")
    return Trained(steps, total / seen if seen else 0.0)


def training_inputs(
    model: FederatedModel,
    images: Mapping[str, Images],
    study: Study,
    *,
    device: torch.device,
    features: FrozenFeatures | None,
    generator: torch.Generator | None,
) -> Inputs:
    """Return what brings training images into the form that is trained on.

    Images of a task with augmentation are varied anew at each call, so that features of them
    cannot be kept: those go through the frozen part again. With ``training.views`` they have
    variations that were made once, of which each call draws one.

    Args:
        model: The network on ``device``.
        images: Training images by task.
        study: Whose tasks say how images are varied.
        device: Where the arithmetic runs.
        features: Where those of the images are kept, if a part is frozen; the result are then
            features, else normalised images.
        generator: Whence augmentation takes its randomness; torch's global one by default.
    """
    mean, std = channel_statistics(model, device)
    variations = {
        name: varied(task.augmentation, task.modality)
        for name, task in study.tasks.items()
        if task.augmentation is not None
    }

    def inputs(task: str, indices: NDArray[np.int64]) -> Tensor:
        chosen = torch.from_numpy(indices)
        if features is not None and task not in variations:
            return features.of(images[task], chosen)
        if features is not None and features.has_views(task):
            return features.of_views(images[task], task, chosen, generator)
        x_BCHW = images[task].pixels[chosen].to(device)
        if task in variations:
            x_BCHW = augmented(x_BCHW, variations[task], generator)
        x_BCHW = normalise(x_BCHW, mean, std)
        return x_BCHW if features is None else features.part(x_BCHW)

    return inputs


def is_finite(model: FederatedModel) -> bool:
    """Say whether every array of the network is finite."""
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        what, remedy="Lower training.head_lr or training.backbone_lr, or set training.clip_norm."
    )
