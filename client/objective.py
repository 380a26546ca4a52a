"""What the steps of a round minimise: the study's loss, and what holds the network meanwhile.

Shapes: B batch, D features, K classes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from client.alignment import Alignment
from client.anchor import Near
from client.dataset import Batch, Images
from client.features import FrozenFeatures
from client.losses import make_loss, make_losses
from client.optim import add_proximal_gradient
from client.source_weights import source_weights
from common.models import FederatedModel
from common.study import Study


class Asked(NamedTuple):
    """What a batch's step goes down along, and what is told of it."""

    objective: Tensor
    loss: Tensor
    """The study's loss alone, the mean over the images and over the members of an ensemble."""


class Objective:
    """What a round minimises, batch by batch.

    Args:
        model: The network on ``device``, before it is put into training mode.
        images: Training images by task.
        study: Its loss and weights.
        device: Where the arithmetic runs.
        near: What holds the network near its initial backbone, if the study asks for it.
        alignment: What makes its features like those of other sites, if the study asks for it.
        features: Where those of the images are kept; None where the whole network is run.

    Raises:
        DivergedError: A feature by which images are weighed is not finite.
    """

    def __init__(
        self,
        model: FederatedModel,
        images: Mapping[str, Images],
        study: Study,
        *,
        device: torch.device,
        near: Near | None,
        alignment: Alignment | None,
        features: FrozenFeatures | None,
    ) -> None:
        self._network = model if features is None else features.network
        self._images, self._device = images, device
        self._near, self._alignment = near, alignment
        self._task_weight = study.training.task_weight
        self._weights = source_weights(model, images, study, device=device, features=features)
        self._losses = {
            name: (make_losses if name in self._weights else make_loss)(
                study.training, _counts(own, len(study.tasks[name].classes))
            )
            for name, own in images.items()
        }

    def of(self, batch: Batch, x: Tensor, done: float) -> Asked:
        """Run the network on a batch.

        Args:
            batch: Whose labels are to be told.
            x: What the network takes of its images: pictures, or kept features.
            done: Share of the round's steps that are done, 0 to below 1.
        """
        network, indices = self._network, torch.from_numpy(batch.indices)
        labels = self._images[batch.task].labels[indices].to(self._device)
        features_BD = network.features(x)
        logits = network.classify_apart(features_BD, batch.task)
        loss = self._losses[batch.task](logits, labels.repeat(network.members))
        if batch.task in self._weights:
            weights_B = self._weights[batch.task][indices.to(self._device)]
            loss = (weights_B.repeat(network.members) * loss).mean()
        objective = network.members * loss  # their sum: each learns as it would by itself
        if self._near is not None:
            objective = self._task_weight * objective + self._near.penalty(x, features_BD)
        if self._alignment is not None:
            objective = objective + self._alignment.loss(features_BD, done)
        return Asked(objective, loss)


def make_pull(model: FederatedModel, study: Study, near: Near | None) -> Callable[[], None]:
    """Return what adds the gradients that hang on no image: towards where weights began.

    Args:
        model: The network as the round begins; later, its gradients are computed.
        study: Whose strategy may be FedProx.
        near: What holds the network near its initial backbone, if the study asks for it.
    """
    mu = study.federation.option("proximal_mu") if study.federation.strategy == "fedprox" else 0.0
    start = {n: p.detach().clone() for n, p in model.named_parameters() if mu and p.requires_grad}

    def pull() -> None:
        if near is not None:
            near.gradient(model)
        if mu:
            add_proximal_gradient(model, start, mu)

    return pull


def _counts(images: Images, classes: int) -> list[int]:
    """Return the number of images of each class."""
    counts: list[int] = torch.bincount(images.labels, minlength=classes).tolist()
    return counts
