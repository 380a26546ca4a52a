"""Laws of the backbones that torchvision has and timm has not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from common.errors import StudyError, WeightsError
from common.models import IMAGENET_MEAN, IMAGENET_STD, FederatedModel, build_model
from common.study import Study
from server.initial_weights import initial_model

NAMES = ("squeezenet1_1", "alexnet", "googlenet")
StudyOf = Callable[..., Study]


def test_it_is_torchvisions_network(study_of: StudyOf) -> None:
    """With torchvision's arrays the features are torchvision's, to the last bit."""
    model = build_model(study_of("squeezenet1_1")).eval()
    theirs = torchvision.models.squeezenet1_1(weights=None).eval()
    features: Any = model.backbone.features
    features.load_state_dict(theirs.features.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.features(x), theirs.features(x).mean((2, 3)))


def test_alexnet_is_torchvisions(study_of: StudyOf) -> None:
    """With torchvision's arrays and its last layer the logits are torchvision's."""
    model = build_model(study_of("alexnet")).eval()
    theirs = torchvision.models.alexnet(weights=None).eval()
    assert left_of(model, theirs) == {"classifier.6.weight", "classifier.6.bias"}
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(theirs.classifier[6](model.features(x)), theirs(x))


def test_googlenet_is_torchvisions_on_its_own_input(study_of: StudyOf) -> None:
    """Of one image it says what torchvision's says, which turns ImageNet's input into another."""
    model = build_model(study_of("googlenet")).eval()
    theirs = torchvision.models.googlenet(
        weights=None, transform_input=True, aux_logits=False, init_weights=True
    ).eval()
    assert left_of(model, theirs) == {"fc.weight", "fc.bias"}
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    imagenet_mean, imagenet_std = (
        torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    with torch.inference_mode():
        ours = theirs.fc(model.features((image - mean) / std))
        torch.testing.assert_close(ours, theirs((image - imagenet_mean) / imagenet_std))


def left_of(model: FederatedModel, theirs: nn.Module) -> set[str]:
    """Load torchvision's arrays; return the names of those for which there is no place."""
    loaded = model.backbone.load_state_dict(theirs.state_dict(), strict=False)
    assert not loaded.missing_keys
    return set(loaded.unexpected_keys)


@pytest.mark.parametrize(
    ("name", "train", "first"),
    [
        ("alexnet", "last:1", "classifier.1.weight"),
        ("alexnet", "last:2", "features.6.weight"),
        ("googlenet", "last:1", "inception5a.branch1.conv.weight"),
        ("googlenet", "last:3", "inception3a.branch1.conv.weight"),
    ],
)
def test_stages_begin_behind_poolings(study_of: StudyOf, name: str, train: str, first: str) -> None:
    """The last stages train from their first layer on; the classifier of AlexNet is one stage."""
    model = build_model(study_of(name, train=train))
    everything = list(model.backbone.state_dict())
    trained = [n for n, value in model.backbone.named_parameters() if value.requires_grad]
    assert trained[0] == first
    assert set(trained) <= set(everything[everything.index(first) :])


@pytest.mark.parametrize(
    ("train", "first"), [("last:1", 9), ("last:2", 6), ("last:3", 3), ("all", 0)]
)
def test_its_stages_lie_between_its_poolings(study_of: StudyOf, train: str, first: int) -> None:
    """What trains begins behind a pooling layer, and goes on to the end."""
    model = build_model(study_of("squeezenet1_1", train=train))
    trained = {
        int(name.split(".")[1])
        for name, value in model.backbone.named_parameters()
        if value.requires_grad
    }
    layers = {int(name.split(".")[1]) for name, _ in model.backbone.named_parameters()}
    assert trained == {layer for layer in layers if layer >= first}


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_a_file_alone(study_of: StudyOf, name: str) -> None:
    """Torchvision's own download is never read; the refusal says what to give instead."""
    with pytest.raises(WeightsError, match="never read") as refused:
        initial_model(study_of(name, "pretrained"))
    assert f"torchvision.models.{name}(" in refused.value.remedy
    assert hasattr(torchvision.models, name)


def test_too_small_an_image_is_refused(study_of: StudyOf) -> None:
    """AlexNet cannot take 62 pixels, and the study that asks for it is refused."""
    with pytest.raises(StudyError, match="62 x 62 pixels"):
        build_model(study_of("alexnet", image_size=62))


def test_real_weights_fit(study_of: StudyOf, shared: Path) -> None:
    """The real file has every array of the backbone, and only the classifier beside it."""
    file = shared / "weights" / "squeezenet1_1_onnxzoo.torchvision.safetensors"
    assert initial_model(study_of("squeezenet1_1", str(file))).left_out == (
        "classifier.1.bias",
        "classifier.1.weight",
    )
