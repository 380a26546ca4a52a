"""What the frozen part of a network gives of images: computed once, used in every round.

What does not train gives an image the same in every round. Shapes: N images of a split, n of
them, C channels, S image size; ... is what the frozen part gives of an image.
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from client.dataset import Images
from client.frozen_stages import FrozenPart, frozen_part
from client.preprocess import normalise
from client.views import Views
from common.arrays import digest
from common.models import FederatedModel

BATCH = 64
"""Images that go through the frozen part at once; a matter of speed alone."""
KEPT_BYTES = 2**29
"""Most memory that features take; those of further images are computed at each use."""


Kept = WeakKeyDictionary[Images, Tensor | None]
"""Features by the images that they are of; None where there was no room."""


class FrozenFeatures:
    """The features of each split's images, kept until ``forget``, as many as there is room for.

    Args:
        part: What of the network does not train.
        model: The network, in the phase of the study that the features are for.
        device: Where the arithmetic runs.
        views: How training images are varied once, if they are.
    """

    def __init__(
        self,
        part: FrozenPart,
        model: FederatedModel,
        device: torch.device,
        views: Views | None = None,
    ) -> None:
        self.part, self._device, self._views = part, device, views
        self.network = part.behind
        """From features and the name of a task to logits."""
        self._mean, self._std = channel_statistics(model, device)
        self._known: Kept = WeakKeyDictionary()
        self._known_views: Kept = WeakKeyDictionary()
        self._held = _held_by_phase(model)
        self._digest = self._digest_of_held()

    def of(self, images: Images, indices: Tensor) -> Tensor:
        """Return the features of some images, on the device.

        Args:
            images: All images of a split.
            indices: Which of them, int64, shape (n,).

        Returns:
            float32, shape (n, ...).
        """
        computed = partial(self._computed, images)
        return self._looked_up(self._known, images, len(images), indices, computed)

    def has_views(self, task: str) -> bool:
        """Say whether the training images of a task are varied once and for all."""
        return self._views is not None and task in self._views.by

    def of_views(
        self, images: Images, task: str, indices: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the features of some images, each of one of its variations, drawn at random.

        Args:
            images: All training images of a task that ``has_views``.
            task: The task.
            indices: Which of them, int64, shape (n,).
            generator: Whence the draw comes, on the CPU; torch's global one by default.

        Returns:
            float32, shape (n, ...).
        """
        if self._views is None:
            raise ValueError("the images are not varied once")
        views, total = self._views, self._views.per_image * len(images)
        places = views.drawn(images, indices, generator)
        computed = partial(self._computed_views, images, task, views)
        return self._looked_up(self._known_views, images, total, places, computed)

    def refresh(self) -> None:
        """Forget all features if what this phase alone does not train has got other values."""
        if (found := self._digest_of_held()) != self._digest:
            self._digest = found
            self.forget()

    def forget(self) -> None:
        """Forget all features: the frozen part has got other weights."""
        self._known.clear()
        self._known_views.clear()

    def _looked_up(
        self,
        kept: Kept,
        images: Images,
        total: int,
        places: Tensor,
        computed: Callable[[Tensor], Tensor],
    ) -> Tensor:
        if images not in kept:
            kept[images] = self._all(total, computed)
        known = kept[images]
        return computed(places) if known is None else known[places.to(self._device)]

    def _all(self, total: int, computed: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return the features at all places; None of none, and where there is no room for them."""
        if not (batches := _batches(total)):
            return None
        first, *others = batches
        start = computed(first)
        values = [*self._known.values(), *self._known_views.values()]
        taken = sum(known.nbytes for known in values if known is not None)
        if taken + start.nbytes / len(first) * total > KEPT_BYTES:
            return None
        return torch.cat([start, *(computed(some) for some in others)])

    def _computed(self, images: Images, indices: Tensor) -> Tensor:
        return self._of_pixels(images.pixels[indices])

    def _computed_views(self, images: Images, task: str, views: Views, places: Tensor) -> Tensor:
        return self._of_pixels(views.made(images, task, places))

    def _of_pixels(self, x_nCSS: Tensor) -> Tensor:
        return self.part(normalise(x_nCSS.to(self._device), self._mean, self._std))

    def _digest_of_held(self) -> str:
        return digest({name: value.detach().cpu().numpy() for name, value in self._held.items()})


def frozen_features(
    model: FederatedModel, device: torch.device, size: int, views: Views | None = None
) -> FrozenFeatures | None:
    """Return where features are kept; None where no part of the network can be run once.

    Args:
        model: The network on ``device``.
        device: Where the arithmetic runs.
        size: Height and width of the images, in pixels.
        views: How training images are varied once, if they are.
    """
    part = frozen_part(model, size)
    return None if part is None else FrozenFeatures(part, model, device, views)


def batches_of(images: Images) -> list[Tensor]:
    """Return the indices of all images in their order, ``BATCH`` at a time; none of no images."""
    return _batches(len(images))


def channel_statistics(model: FederatedModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation that the backbone expects, each of shape (3, 1, 1)."""
    mean = torch.tensor(model.mean, device=device).view(3, 1, 1)
    std = torch.tensor(model.std, device=device).view(3, 1, 1)
    return mean, std


def _batches(total: int) -> list[Tensor]:
    return [some for some in torch.arange(total).split(BATCH) if len(some)]


def _held_by_phase(model: FederatedModel) -> dict[str, Tensor]:
    """Return what trains in another phase and not in this one; its values travel in each round.

    It is empty where the study freezes the same in all rounds: a coordinator sends that once.
    """
    if not model.resting:
        return {}
    held: dict[str, Tensor] = dict(model.backbone.named_parameters())
    held = {name: value for name, value in held.items() if not value.requires_grad}
    for number, module in enumerate(model.resting):
        if isinstance(module, _BatchNorm):
            held |= {f"{number}.{name}": value for name, value in module.named_buffers()}
    return held
