"""The local training of one round, on one page. Shapes: B batch, C channels, H height, W width."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from client.dataset import Batch, Images
from client.losses import make_loss
from client.optim import add_proximal_gradient, make_optimizer
from client.preprocess import normalise
from common.errors import DivergedError
from common.models import FederatedModel
from common.study import Study


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
) -> Trained:
    """Train ``model`` in place on the batches, in their order.

    Args:
        model: The network on ``device``.
        images: Training images by task.
        batches: Which images make each gradient step.
        study: Loss, optimizer and strategy.
        device: Where the arithmetic runs.

    Raises:
        DivergedError: The loss or an array of the network is no longer finite; the caller
            discards the model.
    """
    training = study.training
    loss_of, optimizer = make_loss(training), make_optimizer(model, training)
    mu = study.federation.option("proximal_mu") if study.federation.strategy == "fedprox" else 0.0
    start = {n: p.detach().clone() for n, p in model.named_parameters() if mu and p.requires_grad}
    mean, std = channel_statistics(model, device)
    model.train()
    steps, seen, total = 0, 0, 0.0
    for batch in batches:
        data = images[batch.task]
        chosen = torch.from_numpy(batch.indices)
        x_BCHW = normalise(data.pixels[chosen].to(device), mean, std)
        labels = data.labels[chosen].to(device)

        loss = loss_of(model(x_BCHW, batch.task), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if mu:
            add_proximal_gradient(model, start, mu)
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()

        steps, seen, total = steps + 1, seen + len(chosen), total + loss.item() * len(chosen)
        if not math.isfinite(total):
            raise _diverged(f"The loss is {loss.item()} after {steps} steps.")
    # The loss of the last batch came before its step.
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise _diverged(f"The network is no longer finite after {steps} steps.")
    return Trained(steps, total / seen if seen else 0.0)


def channel_statistics(
    model: FederatedModel, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation that the backbone expects, each of shape (3, 1, 1)."""
    mean = torch.tensor(model.mean, device=device).view(3, 1, 1)
    std = torch.tensor(model.std, device=device).view(3, 1, 1)
    return mean, std


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        what, remedy="Lower training.head_lr or training.backbone_lr, or set training.clip_norm."
    )
