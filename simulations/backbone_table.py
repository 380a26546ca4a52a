"""What the backbones of the papers have, measured on the networks themselves.

    python -m simulations.backbone_table

prints the table of docs/methods.md; so does the same with names of other backbones behind it.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch.nn.modules.batchnorm import _BatchNorm

from client.cam_layers import cam_layer
from common.errors import PrivacyError
from common.models import FederatedModel, build_model
from common.private_models import check_private
from common.study import Study

BACKBONES = {
    "vgg16": "Simonyan and Zisserman 2015",
    "vgg16_bn": "the same, with batch normalisation",
    "resnet18": "He et al. 2016",
    "resnet50": "He et al. 2016",
    "densenet121": "Huang et al. 2017",
    "densenet201": "Huang et al. 2017",
    "inception_v3": "Szegedy et al. 2016",
    "googlenet": "Szegedy et al. 2015",
    "efficientnet_b0": "Tan and Le 2019",
    "efficientnet_b7": "Tan and Le 2019",
    "mobilenetv2_100": "Sandler et al. 2018",
    "mobilenetv3_large_100": "Howard et al. 2019",
    "squeezenet1_1": "Iandola et al. 2016",
    "alexnet": "Krizhevsky 2014",
    "lenet5": "LeCun et al. 1998",
    "baseline_cnn": "four blocks of convolution, ReLU and pooling",
    "convnext_atto": "Liu et al. 2022",
    "vit_tiny_patch16_224": "Dosovitskiy et al. 2021",
    "swin_tiny_patch4_window7_224": "Liu et al. 2021",
    "resnet50_gn": "Wu and He 2018",
    "resnetv2_50d_gn": "He et al. 2016, Wu and He 2018",
}
"""Backbones by their name in a study, with their source."""

COLUMNS = (
    *("backbone", "source", "from", "weights, millions", "pixels", "mean", "features", "stages"),
    *("layer groups", "batch norm layers", "private", "maps from", "cells"),
)


def rows(names: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the table in Markdown."""
    yield _line(COLUMNS)
    yield "|" + "---|" * len(COLUMNS)
    for name in names:
        yield row_of(name)


def row_of(name: str) -> str:
    """Build a backbone at its own size and return its line of the table."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        settings: Any = timm.create_model(name).pretrained_cfg
    size: int = settings["input_size"][-1]
    model = build_model(_study(name, size, "average"))
    backbone: Any = model.backbone
    layer = cam_layer(backbone, size, torch.device("cpu"))
    stages, groups = (
        len(group_parameters(backbone, backbone.group_matcher(coarse=coarse)))
        for coarse in (True, False)
    )
    return _line(
        (
            *(f"`{name}`", BACKBONES.get(name, "-"), _origin(name)),
            f"{sum(value.numel() for value in backbone.parameters()) / 1e6:.2f}",
            *(size, "ImageNet" if model.mean[0] != 0.5 else "0.5"),  # noqa: PLR2004 - of TensorFlow
            *(backbone.head_hidden_size, stages, groups),
            sum(isinstance(module, _BatchNorm) for module in backbone.modules()),
            _privacy(model, name, size),
            *(f"`{layer.name}`", f"{layer.grid[0]} x {layer.grid[1]}"),
        )
    )


def _privacy(model: FederatedModel, name: str, size: int) -> str:
    if _is_private(model):
        return "yes"
    return "frozen" if _is_private(build_model(_study(name, size, "frozen"))) else "no"


def _is_private(model: FederatedModel) -> bool:
    try:
        check_private(model)
    except PrivacyError:
        return False
    return True


def _origin(name: str) -> str:
    module = timm.model_entrypoint(name).__module__
    origins = {"common.plain_networks": "rarefed", "common.torchvision_models": "torchvision"}
    return origins.get(module, "timm")


def _study(name: str, size: int, normalisation: str) -> Study:
    weights = "a.safetensors"  # never read: what is asked does not depend on weights
    return Study.parse(
        {
            "name": "table",
            "rounds": 1,
            "backbone": {
                "name": name,
                "weights": weights,
                "image_size": size,
                "normalisation": normalisation,
            },
            "tasks": {"ct": {"modality": "CT", "classes": ["a", "b"]}},
        }
    )


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    for line in rows(sys.argv[1:] or BACKBONES):
        print(line)  # noqa: T201 - the table is what the program is for
