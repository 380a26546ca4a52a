"""Laws of what a network must be to be trained with differential privacy."""

from typing import Any

import pytest
import torch
from torch import nn

from common.errors import PrivacyError
from common.models import FederatedModel, build_model
from common.private_models import check_private
from common.study import Study


def study_of(name: str, *, train: str = "all", normalisation: str = "average") -> Study:
    backbone: dict[str, Any] = {"name": name, "weights": "start.safetensors", "image_size": 32}
    return Study.parse(
        {
            "name": "study",
            "rounds": 1,
            "backbone": backbone | {"normalisation": normalisation},
            "tasks": {"ct": {"modality": "CT", "classes": ["a", "b"]}},
            "training": {"train": train},
        }
    )


def model_of(layer: nn.Module) -> FederatedModel:
    return FederatedModel(nn.Sequential(nn.Conv2d(3, 4, 3), layer), nn.ModuleDict())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_living_batch_norm_is_refused(name: str) -> None:
    """Every batch norm that lives is named, timm's fused BatchNormAct2d too, none is converted."""
    model = build_model(study_of(name))
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    with pytest.raises(PrivacyError, match=f"{len(layers)} layers") as refused:
        check_private(model)
    assert all(f"  - {name} (BatchNorm" in refused.value.message for name in layers)
    assert 'normalisation = "frozen"' in refused.value.remedy
    assert layers == [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_what_is_left_alive_of_a_partly_frozen_network_is_refused(name: str) -> None:
    """Freezing all stages but the last leaves its batch norm alive, and that alone is named."""
    everything = sum(isinstance(m, nn.BatchNorm2d) for m in build_model(study_of(name)).modules())
    with pytest.raises(PrivacyError) as refused:
        check_private(build_model(study_of(name, train="last:2")))
    assert 0 < refused.value.message.count("  - ") < everything


@pytest.mark.parametrize(
    ("name", "train", "normalisation"),
    [
        ("test_resnet", "all", "frozen"),
        ("test_efficientnet", "all", "frozen"),
        ("test_resnet", "head", "average"),
        ("test_convnext", "all", "average"),
        ("test_vit", "all", "average"),
    ],
)
def test_frozen_batch_norm_and_layer_norm_pass(name: str, train: str, normalisation: str) -> None:
    """Frozen statistics are constants and layer norm looks at one image: both are allowed."""
    model = build_model(study_of(name, train=train, normalisation=normalisation))
    check_private(model)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model.train()(torch.randn(4, 3, 32, 32), "ct")
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize(
    ("layer", "allowed"),
    [
        (nn.GroupNorm(2, 4), True),
        (nn.InstanceNorm2d(4), True),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
        (nn.BatchNorm1d(4), False),
        (nn.BatchNorm2d(4).requires_grad_(requires_grad=False), False),
        (nn.BatchNorm2d(4, affine=False).eval(), False),
        (nn.SyncBatchNorm(4), False),
    ],
)
def test_layers_are_judged_by_what_they_keep(layer: nn.Module, *, allowed: bool) -> None:
    """A norm within one image passes; one that mixes images or keeps statistics does not.

    Nor does one that only asks for no gradient, or stands in evaluation mode for now.
    """
    if allowed:
        check_private(model_of(layer))
    else:
        with pytest.raises(PrivacyError, match=r"backbone\.1 \("):
            check_private(model_of(layer))
