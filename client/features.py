"""Features of images under a backbone that does not train: computed once, used in every round.

Where only heads train, the backbone gives an image the same features from the first round to the
last. Shapes: N images of a split, B batch, D features, K classes.
"""

from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from client.dataset import Images
from client.preprocess import normalise
from common.models import FederatedModel

BATCH = 64
"""Images that go through the backbone at once; a matter of speed alone."""


class Heads(nn.Module):
    """The heads alone: from the features of a backbone that does not train to logits."""

    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        """Return the logits of one task's classes, shape (B, K)."""
        return cast("Tensor", self.heads[task](x_BD))


class FrozenFeatures:
    """The features of each split's images, kept until ``forget``.

    Args:
        model: A network whose backbone does not train.
        device: Where the arithmetic runs.
    """

    def __init__(self, model: FederatedModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self._known: WeakKeyDictionary[Images, Tensor] = WeakKeyDictionary()

    def of(self, images: Images) -> Tensor:
        """Return the features of all images, float32, shape (N, D); no dropout in the backbone."""
        if images not in self._known:
            self._known[images] = self._computed(images)
        return self._known[images]

    def forget(self) -> None:
        """Forget all features: the backbone has got other weights."""
        self._known.clear()

    def _computed(self, images: Images) -> Tensor:
        mean, std = channel_statistics(self._model, self._device)
        with torch.no_grad():
            parts = [
                features_of(self._model, normalise(x_BCHW.to(self._device), mean, std))
                for x_BCHW in images.pixels.split(BATCH)
                if len(x_BCHW)
            ]
        width = next(iter(self._model.heads.parameters())).shape[-1]
        return torch.cat(parts) if parts else torch.zeros(0, width, device=self._device)


def frozen_features(model: FederatedModel, device: torch.device) -> FrozenFeatures | None:
    """Return where features are kept; None where they change, as the backbone trains."""
    changes = any(p.requires_grad for p in model.backbone.parameters()) or any(
        isinstance(module, _BatchNorm) for module in model.backbone.modules()
    )
    return None if changes else FrozenFeatures(model, device)


def channel_statistics(model: FederatedModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation that the backbone expects, each of shape (3, 1, 1)."""
    mean = torch.tensor(model.mean, device=device).view(3, 1, 1)
    std = torch.tensor(model.std, device=device).view(3, 1, 1)
    return mean, std


def features_of(model: FederatedModel, x_BCHW: Tensor) -> Tensor:
    """Return the features of normalised images, the backbone in evaluation mode; shape (B, D)."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        found = model.features(x_BCHW)
    model.train(mode)
    return found
