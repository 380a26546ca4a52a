"""Class activation maps: which part of an image speaks for a class. The maps never leave the site.

The formulas are those of the package grad-cam. It is given a network whose gradients begin at the
layer looked at, so that nothing before it is differentiated and no gradient of a weight is left.
Shapes: B batch, K classes, H and W a layer's grid, S image size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn

from client.cam_layers import Layer, evaluating
from common.errors import DivergedError
from common.models import FederatedModel

Method = Literal["gradcam", "gradcam++", "hirescam", "layercam", "eigencam"]
Maps = NDArray[np.float32]

METHODS: dict[Method, type[BaseCAM]] = {
    "gradcam": GradCAM,  # Selvaraju et al. 2017
    "gradcam++": GradCAMPlusPlus,  # Chattopadhay et al. 2018
    "hirescam": HiResCAM,  # Draelos and Carin 2020
    "layercam": LayerCAM,  # Jiang et al. 2021
    "eigencam": EigenCAM,  # Muhammad and Yeasin 2020; it knows no class
}
"""The methods by their names on the command line."""

_ROUNDING = 1e-3  # of the sum of absolute values


class Explained(NamedTuple):
    """What the network says of images, and where it looks."""

    logits: NDArray[np.float32]
    """Shape (B, K)."""
    maps: Maps
    """At the layer's grid, in [0, 1], 1 at the highest cell of each; shape (B, H, W). A map in
    which nothing speaks for the class is 0 everywhere."""


class TaskNetwork(nn.Module):
    """The network and one task's head, as a function of images alone.

    Args:
        model: The network.
        task: Whose head is asked.
    """

    def __init__(self, model: FederatedModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Return the logits of normalised images, shape (B, K)."""
        return self.model(x_BCSS, self.task)  # type: ignore[no-any-return]


class LogOdds:
    """The score that is explained: the log-odds of a class against all others together.

    With two classes it is the difference of their logits. A logit alone will not do: what two
    logits have in common, which training never sees, would show in the map and move no
    probability.

    Args:
        label: Index of the class.
    """

    def __init__(self, label: int) -> None:
        self.label = label

    def __call__(self, logits_K: Tensor) -> Tensor:
        """Return the log-odds of one image's logits."""
        others_K = torch.cat([logits_K[: self.label], logits_K[self.label + 1 :]])
        return logits_K[self.label] - others_K.logsumexp(0)


def explain(
    model: FederatedModel,
    x_BCSS: Tensor,
    task: str,
    labels: NDArray[np.int64],
    layer: Layer,
    method: Method = "hirescam",
) -> Explained:
    """Return the logits and the maps of a batch, each image as if it were alone.

    Mode, gradients and ``requires_grad`` of the network are afterwards what they were.

    Args:
        model: The network; layers of it may be frozen.
        x_BCSS: Normalised images on the network's device.
        task: Whose head is asked.
        labels: Index of the class that is explained of each image, shape (B,).
        layer: Of the network's backbone.
        method: Which formula.

    Raises:
        DivergedError: A logit or a map is not finite.
    """
    network = TaskNetwork(model, task)
    with _as_it_was(model), _gradients_begin_at(layer.module):
        cam = METHODS[method](network, [layer.module], reshape_transform=layer.to_maps)
        try:
            logits, maps = _maps(cam, x_BCSS, [LogOdds(int(label)) for label in labels], layer)
        finally:
            cam.activations_and_grads.release()
    if not (np.isfinite(logits).all() and np.isfinite(maps).all()):
        raise DivergedError(f"The model gives no finite map for {task}.")
    return Explained(logits, maps)


def scores(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities of logits of shape (B, K), by softmax."""
    found: NDArray[np.float32] = torch.from_numpy(logits).softmax(dim=1).numpy()
    return found


def enlarged(map_HW: Maps, height: int, width: int) -> Maps:
    """Return a map at another size, by bilinear interpolation between the centres of its cells."""
    found = cv2.resize(map_HW, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(found, np.float32)


def _maps(
    cam: BaseCAM, x_BCSS: Tensor, targets: list[LogOdds], layer: Layer
) -> tuple[NDArray[np.float32], Maps]:
    held: Any = cam.activations_and_grads
    with torch.enable_grad():
        logits_BK = held(x_BCSS)
        if cam.uses_gradients:
            # The score of one image depends on that image alone: their sum gives each its own.
            torch.stack(
                [of(one) for of, one in zip(targets, logits_BK, strict=True)]
            ).sum().backward()
    activations = held.activations[0].float().numpy()
    gradients = held.gradients[0].float().numpy() if cam.uses_gradients else None
    weighted = cam.get_cam_image(
        x_BCSS, layer.module, targets, activations, gradients, eigen_smooth=False
    )
    maps = np.maximum(np.asarray(weighted, np.float32), 0)
    if isinstance(cam, HiResCAM):
        # What is left where positive and negative parts cancel to rounding errors is no map: so it
        # is ahead of a normalisation, over which gradient and activation are at right angles.
        gross = np.abs(activations * gradients).sum(axis=1).max(axis=(1, 2))
        maps[maps.max(axis=(1, 2)) < _ROUNDING * gross] = 0
    highest = maps.max(axis=(1, 2), keepdims=True)
    maps = np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)
    return logits_BK.detach().float().cpu().numpy(), maps


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Have no weight ask for a gradient, and put modes, gradients and flags back afterwards."""
    kept = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with evaluating(model):
        try:
            for parameter, _, _ in kept:
                parameter.requires_grad = False
            yield
        finally:
            for parameter, asked, gradient in kept:
                parameter.requires_grad = asked
                parameter.grad = gradient


@contextmanager
def _gradients_begin_at(module: nn.Module) -> Iterator[None]:
    """Have a layer's output begin the graph of gradients: what is before it costs a forward pass.

    Hooks run in the order of their registration, so this one has to be there before the package's.
    """

    def begin(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # A leaf may not be changed in place, as some networks do: its copy may.
        return output.detach().requires_grad_().clone()

    hook = module.register_forward_hook(begin)
    try:
        yield
    finally:
        hook.remove()
