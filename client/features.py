"""What the frozen part of a network gives of images: computed once, used in every round.

What does not train gives an image the same from the first round to the last. Shapes: N images of
a split, n of them, C channels, S image size; ... is what the frozen part gives of an image.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from client.dataset import Images
from client.frozen_stages import FrozenPart, frozen_part
from client.preprocess import normalise
from common.models import FederatedModel

BATCH = 64
"""Images that go through the frozen part at once; a matter of speed alone."""
KEPT_BYTES = 2**29
"""Most memory that features take; those of further images are computed at each use."""


class FrozenFeatures:
    """The features of each split's images, kept until ``forget``, as many as there is room for.

    Args:
        part: What of the network does not train.
        model: The network.
        device: Where the arithmetic runs.
    """

    def __init__(self, part: FrozenPart, model: FederatedModel, device: torch.device) -> None:
        self.part, self._device = part, device
        self.network = part.behind
        """From features and the name of a task to logits."""
        self._mean, self._std = channel_statistics(model, device)
        self._known: WeakKeyDictionary[Images, Tensor | None] = WeakKeyDictionary()

    def of(self, images: Images, indices: Tensor) -> Tensor:
        """Return the features of some images, on the device.

        Args:
            images: All images of a split.
            indices: Which of them, int64, shape (n,).

        Returns:
            float32, shape (n, ...).
        """
        if images not in self._known:
            self._known[images] = self._all(images)
        known = self._known[images]
        if known is None:
            return self._computed(images, indices)
        return known[indices.to(self._device)]

    def forget(self) -> None:
        """Forget all features: the frozen part has got other weights."""
        self._known.clear()

    def _all(self, images: Images) -> Tensor | None:
        """Return the features of all images; None of none, and where there is no room for them."""
        if not (batches := batches_of(images)):
            return None
        first, *others = batches
        start = self._computed(images, first)
        kept = sum(known.nbytes for known in self._known.values() if known is not None)
        if kept + start.nbytes / len(first) * len(images) > KEPT_BYTES:
            return None
        return torch.cat([start, *(self._computed(images, some) for some in others)])

    def _computed(self, images: Images, indices: Tensor) -> Tensor:
        x_nCSS = images.pixels[indices].to(self._device)
        return self.part(normalise(x_nCSS, self._mean, self._std))


def frozen_features(
    model: FederatedModel, device: torch.device, size: int
) -> FrozenFeatures | None:
    """Return where features are kept; None where no part of the network can be run once.

    Args:
        model: The network on ``device``.
        device: Where the arithmetic runs.
        size: Height and width of the images, in pixels.
    """
    part = frozen_part(model, size)
    return None if part is None else FrozenFeatures(part, model, device)


def batches_of(images: Images) -> list[Tensor]:
    """Return the indices of all images in their order, ``BATCH`` at a time; none of no images."""
    return [some for some in torch.arange(len(images)).split(BATCH) if len(some)]


def channel_statistics(model: FederatedModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation that the backbone expects, each of shape (3, 1, 1)."""
    mean = torch.tensor(model.mean, device=device).view(3, 1, 1)
    std = torch.tensor(model.std, device=device).view(3, 1, 1)
    return mean, std
