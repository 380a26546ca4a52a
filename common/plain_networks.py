"""Small networks that studies of transfer learning compare with; nobody publishes weights of them.

Each is entered in timm's list of models, so that a study names it like any other: ``lenet5`` and
``baseline_cnn``. Both take images of 32 x 32 pixels and more, whose channels go from -1 to 1.

Shapes: B batch, H height, W width, D features.
"""

import itertools
from typing import Any, cast

from timm.models import register_model
from torch import Tensor, nn

from common.errors import WeightsError

__all__ = ["BaselineCnn", "LeNet5", "baseline_cnn", "lenet5"]

SETTINGS = {"input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998, doi:10.1109/5.726791) for three channels, without its output.

    At 32 x 32 pixels its layers are those of the article's figure 2, but that S2 and S4 have no
    coefficients, and C3 sees all maps of S2. Larger images come to the 5 x 5 cells that C5 sees
    by a further mean.
    """

    head_hidden_size = 84
    """Features of an image, D: those of layer F6."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(5), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh()
        )
        self.pretrained_cfg = SETTINGS | {"classifier": "head"}

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (B, D)."""
        return cast("Tensor", self.classifier(self.pool(self.features(x))))

    def group_matcher(self, *, coarse: bool = False) -> Any:  # noqa: ARG002 - timm's own signature
        """Return how arrays are divided: the convolutions, and the layers that see a whole image.

        There is no finer division.
        """
        return {"features": r"^features", "classifier": r"^classifier"}


class BaselineCnn(nn.Module):
    """The plain network that pretrained ones are compared with: four blocks, then a mean.

    A block is a convolution of 3 x 3, a ReLU, and a pooling that halves the sides.
    """

    head_hidden_size = 256
    """Features of an image, D: the channels of the last block."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 32, 64, 128, 256)
        layers = [nn.Conv2d(c, more, 3, padding=1) for c, more in itertools.pairwise(channels)]
        for layer in layers:  # He et al. 2015: signals keep their size from block to block
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.features = nn.Sequential(
            *(nn.Sequential(layer, nn.ReLU(), nn.MaxPool2d(2)) for layer in layers)
        )
        self.pretrained_cfg = SETTINGS | {"classifier": "head"}

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last block's maps over their grid, shape (B, D)."""
        return cast("Tensor", self.features(x)).mean(dim=(2, 3))

    def group_matcher(self, *, coarse: bool = False) -> Any:  # noqa: ARG002 - timm's own signature
        """Return how arrays are divided: into blocks, each of which has one layer with weights."""
        return {"blocks": r"^features\.(\d)"}


@register_model
def lenet5(*, pretrained: bool = False, **_: object) -> LeNet5:
    """Return LeNet-5 with random weights; what timm adds to every call is of no use here.

    Raises:
        WeightsError: Pretrained weights are asked for.
    """
    _refuse(pretrained, "lenet5")
    return LeNet5()


@register_model
def baseline_cnn(*, pretrained: bool = False, **_: object) -> BaselineCnn:
    """Return the plain network with random weights; what timm adds to every call is of no use.

    Raises:
        WeightsError: Pretrained weights are asked for.
    """
    _refuse(pretrained, "baseline_cnn")
    return BaselineCnn()


def _refuse(pretrained: bool, name: str) -> None:  # noqa: FBT001 - it is the flag that is judged
    if pretrained:
        raise WeightsError(
            f"There are no pretrained weights of {name}: nobody publishes any.",
            remedy='Set backbone.weights = "none", or to the path of a file of your own.',
        )
