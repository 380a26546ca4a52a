"""Backbones that torchvision has and timm has not, in the form that timm gives its own.

Each is entered in timm's list of models under torchvision's name, so that a study names it like any
other. Its arrays are called as in torchvision's state dict.

Shapes: B batch, H height, W width, D features.
"""

from typing import Any, cast

from timm.models import register_model
from torch import Tensor, nn
from torchvision.models import squeezenet1_1 as torchvision_squeezenet1_1

__all__ = ["SqueezeNet", "squeezenet1_1"]

_STAGES = (0, 3, 6, 9)
"""Where the four parts of SqueezeNet 1.1 begin among its layers: a pooling lies between them."""


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360) without its classifier.

    It has no normalisation layer at all. Images have to be 32 x 32 pixels at least.
    """

    head_hidden_size = 512
    """Features of an image, D."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision_squeezenet1_1(weights=None).features
        self.pretrained_cfg = {
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "classifier": "classifier.1",
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last feature map over its grid, shape (B, D).

        torchvision's classifier is a convolution of 1 x 1 in front of such a mean; a linear layer
        behind it computes the same.
        """
        return cast("Tensor", self.features(x)).mean(dim=(2, 3))

    def group_matcher(self, *, coarse: bool = False) -> Any:
        """Return how arrays are divided into stages, as timm's own models do."""
        if coarse:
            return _stage_of
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}


@register_model
def squeezenet1_1(*, pretrained: bool = False, **_: object) -> SqueezeNet:
    """Return SqueezeNet 1.1 with random weights; what timm adds to every call is of no use here.

    Raises:
        RuntimeError: Pretrained weights are asked for.
    """
    if pretrained:
        raise RuntimeError("torchvision publishes a checkpoint of torch, which is never read")
    return SqueezeNet()


def _stage_of(name: str) -> int:
    layer = int(name.split(".")[1])
    return sum(layer >= first for first in _STAGES) - 1
