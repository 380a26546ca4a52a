"""Which layer of a backbone a class activation map is made of, by the backbone's own structure.

Shapes: B batch, C channels, H and W the height and width of a layer's grid, T tokens.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from timm.layers import RmsNorm, RmsNorm2d
from torch import Tensor, nn

from common.ensemble import Members
from common.errors import StudyError

LEAST_CELLS = 6
"""Cells of a side below which a map says too little of where something is: with 3 x 3 cells the
highest one held a blob in a third of the images, with 6 x 6 in all of them."""

_NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, RmsNorm2d)  # over the channels of each place


class Layer(NamedTuple):
    """A layer, and how its output becomes maps."""

    name: str
    """Of the module within the backbone."""
    module: nn.Module
    to_maps: Callable[[Tensor], Tensor]
    """From the layer's output to a copy of it of shape (B, C, H, W)."""
    grid: tuple[int, int]
    """H and W for the study's images."""


def cam_layer(backbone: Any, size: int, device: torch.device, cells: int = LEAST_CELLS) -> Layer:
    """Return the deepest layer whose grid has at least so many cells a side.

    Of a vision transformer it is the normalisation before the last attention, behind which only
    the class token may count. Of other networks it is one of the stages that timm lists in
    ``feature_info``, or of the parts of ``features``, else any module; where none has so many
    cells, the finest. Where a normalisation over the channels comes next, that is taken: what it
    takes away, the length of each place's vector, is all that HiResCAM would look at. Of an
    ensemble it is the layer of the first member.

    Args:
        backbone: The network without a head; its mode is restored.
        size: Height and width of the images, in pixels.
        device: Where the network is.
        cells: A cell should be no larger than what is looked for.

    Raises:
        StudyError: The backbone has no layer with a grid.
    """
    if isinstance(backbone, Members):
        layer = cam_layer(backbone.members[0], size, device, cells)
        return layer._replace(name=f"members.0.{layer.name}")
    everything = [name for name, _ in backbone.named_modules() if name]
    for names in (_candidates(backbone), everything):
        layers = _layers(backbone, names, size, device)
        if layers:
            fine = [layer for layer in layers if min(layer.grid) >= cells]
            return fine[-1] if fine else max(layers, key=lambda layer: min(layer.grid))
    raise StudyError(
        f"{type(backbone).__name__} has no layer with a grid of which a map could be made.",
        remedy="Use a convolutional network, a ViT or a Swin transformer of timm.",
    )


def _candidates(backbone: Any) -> list[str]:
    """Return the names of layers that may do, from the first to the last."""
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        return [f"blocks.{len(backbone.blocks) - 1}.norm1"]
    known = getattr(backbone, "feature_info", [])
    # A list of dicts, or an object that lists them.
    stages = known.module_name() if hasattr(known, "module_name") else [s["module"] for s in known]
    features = getattr(backbone, "features", nn.Sequential())
    names = stages or [f"features.{name}" for name, _ in features.named_children()]
    modules = dict(backbone.named_modules())
    return [name for name in dict.fromkeys(names) if name in modules]


def _layers(backbone: nn.Module, names: list[str], size: int, device: torch.device) -> list[Layer]:
    """Return what has a grid, in the order in which an image passes."""
    modules = dict(backbone.named_modules())
    passed: list[tuple[str, Tensor]] = []
    followers: dict[str, str] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(modules[name], _NORMS) and inputs:
                followers.update({n: name for n, given in passed if given is inputs[0]})
            if isinstance(output, Tensor):
                passed.append((name, output))

        return hook

    watched = {*names, *(name for name, module in modules.items() if isinstance(module, _NORMS))}
    hooks = [modules[name].register_forward_hook(keep(name)) for name in watched]
    try:
        with evaluating(backbone), torch.inference_mode():
            backbone(torch.zeros(1, 3, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(name for name, _ in passed)
    shapes = {name: output.shape for name, output in passed if times[name] == 1}
    chosen = [followers.get(name, name) for name, _ in passed if name in names]
    return [
        Layer(name, modules[name], *form)
        for name in chosen
        if name in shapes and (form := _form_of(backbone, shapes[name])) is not None
    ]


def _form_of(
    backbone: Any, shape: torch.Size
) -> tuple[Callable[[Tensor], Tensor], tuple[int, int]] | None:
    """Return how an output of this shape becomes maps, and their grid; None if it has no grid.

    Each way ends in a copy: what follows a layer may change its output in place.
    """
    if len(shape) == 3:  # noqa: PLR2004 - (B, T, C)
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        side = math.isqrt(shape[1] - prefix)
        return (_from_tokens(prefix, side), (side, side)) if side**2 == shape[1] - prefix else None
    if len(shape) != 4:  # noqa: PLR2004 - (B, C, H, W)
        return None
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return _from_channels_last, (shape[1], shape[2])
    return torch.clone, (shape[2], shape[3])


def _from_tokens(prefix: int, side: int) -> Callable[[Tensor], Tensor]:
    """Return what lays the tokens of patches on their grid; class and register tokens go first."""

    def to_maps(x_BTC: Tensor) -> Tensor:
        x_BCT = x_BTC[:, prefix:].transpose(1, 2)
        return x_BCT.reshape(len(x_BCT), -1, side, side).clone()

    return to_maps


def _from_channels_last(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.permute(0, 3, 1, 2).clone()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its parts back into its own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
