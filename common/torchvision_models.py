"""Backbones that torchvision has and timm has not, in the form that timm gives its own.

Each is entered in timm's list of models under torchvision's name, so that a study names it like any
other. Its arrays are called as in torchvision's state dict. None drops features out while it
trains, as none of timm's does by default; a study has ``training.dropout`` for that.

Shapes: B batch, H height, W width, D features.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torchvision
from timm.models import register_model
from torch import Tensor, nn
from torchvision.models import squeezenet1_1 as torchvision_squeezenet1_1

from common.errors import WeightsError

__all__ = ["AlexNet", "GoogLeNet", "SqueezeNet", "alexnet", "googlenet", "squeezenet1_1"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""What torchvision's own training took from the channels of its images."""


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360) without its classifier.

    It has no normalisation layer at all. Images have to be 32 x 32 pixels at least.
    """

    head_hidden_size = 512
    """Features of an image, D."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision_squeezenet1_1(weights=None).features
        self.pretrained_cfg = _settings("classifier.1", IMAGENET)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last feature map over its grid, shape (B, D).

        torchvision's classifier is a convolution of 1 x 1 in front of such a mean; a linear layer
        behind it computes the same.
        """
        return cast("Tensor", self.features(x)).mean(dim=(2, 3))

    def group_matcher(self, *, coarse: bool = False) -> Any:
        """Return how arrays are divided: into what lies between two poolings, or into layers."""
        if coarse:
            return _stages_from(0, 3, 6, 9)
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}


class AlexNet(torchvision.models.AlexNet):  # type: ignore[misc]  # it has no types
    """AlexNet as in Krizhevsky 2014 (arXiv:1404.5997), without its last linear layer.

    It has no normalisation layer. Images have to be 63 x 63 pixels at least.
    """

    head_hidden_size = 4096
    """Features of an image, D: those of the second fully connected layer."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        del self.classifier[6]
        self.pretrained_cfg = _settings("classifier.6", IMAGENET)

    def group_matcher(self, *, coarse: bool = False) -> Any:
        """Return how arrays are divided: into what lies between two poolings, or into layers.

        The fully connected layers are one stage.
        """
        if coarse:
            return _stages_from(0, 3, 6)
        return {"features": r"^features\.(\d+)", "classifier": r"^classifier\.(\d+)"}


class GoogLeNet(torchvision.models.GoogLeNet):  # type: ignore[misc]  # it has no types
    """GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842) with batch normalisation, without its heads.

    Neither the auxiliary classifiers are built nor the step that turns torchvision's usual input
    into that of the published weights: they are those of TensorFlow, which come with a mean and
    a standard deviation of 0.5. Images have to be 32 x 32 pixels at least.
    """

    head_hidden_size = 1024
    """Features of an image, D."""

    def __init__(self) -> None:
        super().__init__(aux_logits=False, transform_input=False, init_weights=True, dropout=0.0)
        self.fc = nn.Identity()
        self.pretrained_cfg = _settings("fc", {"mean": (0.5,) * 3, "std": (0.5,) * 3})

    def group_matcher(self, *, coarse: bool = False) -> Any:
        """Return how arrays are divided: into what lies between two poolings, or into modules."""
        if coarse:
            return {"stem": r"^conv\d", "blocks": r"^inception(\d)"}
        order = [name for name, _ in self.named_children()]
        return lambda name: order.index(name.split(".")[0])


@register_model
def squeezenet1_1(*, pretrained: bool = False, **_: object) -> SqueezeNet:
    """Return SqueezeNet 1.1 with random weights; what timm adds to every call is of no use here.

    Raises:
        WeightsError: Pretrained weights are asked for.
    """
    _refuse(pretrained, "squeezenet1_1")
    return SqueezeNet()


@register_model
def alexnet(*, pretrained: bool = False, **_: object) -> AlexNet:
    """Return AlexNet with random weights; what timm adds to every call is of no use here.

    Raises:
        WeightsError: Pretrained weights are asked for.
    """
    _refuse(pretrained, "alexnet")
    return AlexNet()


@register_model
def googlenet(*, pretrained: bool = False, **_: object) -> GoogLeNet:
    """Return GoogLeNet with random weights; what timm adds to every call is of no use here.

    Raises:
        WeightsError: Pretrained weights are asked for.
    """
    _refuse(pretrained, "googlenet")
    return GoogLeNet()


def _settings(classifier: str, normalisation: Mapping[str, Any]) -> dict[str, Any]:
    return {"input_size": (3, 224, 224), "classifier": classifier, **normalisation}


def _stages_from(*first: int) -> Callable[[str], int]:
    """Return what tells the stage of an array by its layer's number; a classifier is the last."""

    def stage_of(name: str) -> int:
        part, layer = name.split(".")[:2]
        return len(first) if part == "classifier" else sum(int(layer) >= n for n in first) - 1

    return stage_of


def _refuse(pretrained: bool, name: str) -> None:  # noqa: FBT001 - it is the flag that is judged
    if pretrained:
        raise WeightsError(
            f"torchvision publishes {name} as a checkpoint of torch, which is never read.",
            remedy="On a machine with a network save it with safetensors.torch.save_file("
            f"torchvision.models.{name}(weights='DEFAULT').state_dict(), 'weights.safetensors'), "
            "then set backbone.weights to that file's path.",
        )
