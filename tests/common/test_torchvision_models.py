"""Laws of the backbones that torchvision has and timm has not."""

from pathlib import Path

import pytest
import torch
import torchvision

from common.errors import WeightsError
from common.models import build_model
from common.study import Study
from server.initial_weights import initial_model


def study_of(weights: str, train: str = "all") -> Study:
    return Study.parse(
        {
            "name": "s",
            "rounds": 1,
            "backbone": {"name": "squeezenet1_1", "weights": weights, "image_size": 64},
            "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
            "training": {"train": train},
        }
    )


def test_it_is_torchvisions_network() -> None:
    """With torchvision's arrays the features are torchvision's, to the last bit."""
    model = build_model(study_of("start.safetensors")).eval()
    theirs = torchvision.models.squeezenet1_1(weights=None).eval()
    model.backbone.features.load_state_dict(theirs.features.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.features(x), theirs.features(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("train", "first"), [("last:1", 9), ("last:2", 6), ("last:3", 3), ("all", 0)]
)
def test_its_stages_lie_between_its_poolings(train: str, first: int) -> None:
    """What trains begins behind a pooling layer, and goes on to the end."""
    model = build_model(study_of("start.safetensors", train))
    trained = {
        int(name.split(".")[1])
        for name, value in model.backbone.named_parameters()
        if value.requires_grad
    }
    layers = {int(name.split(".")[1]) for name, _ in model.backbone.named_parameters()}
    assert trained == {layer for layer in layers if layer >= first}


def test_its_weights_come_from_a_file_alone() -> None:
    """Torchvision's own download is never read; the refusal says what to give instead."""
    with pytest.raises(WeightsError, match="never read"):
        initial_model(study_of("pretrained"))


def test_real_weights_fit(shared: Path) -> None:
    """The real file has every array of the backbone, and only the classifier beside it."""
    file = shared / "weights" / "squeezenet1_1_onnxzoo.torchvision.safetensors"
    assert initial_model(study_of(str(file))).left_out == (
        "classifier.1.bias",
        "classifier.1.weight",
    )
