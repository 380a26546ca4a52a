"""Laws of the small networks that pretrained ones are compared with."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import WeightsError
from common.models import build_model
from common.plain_networks import LeNet5
from common.study import Study
from server.initial_weights import initial_model

StudyOf = Callable[..., Study]


def test_lenet_is_the_one_of_the_article() -> None:
    """At 32 pixels maps and layers are of the article's sizes, and C5 is a convolution of 5 x 5."""
    network = LeNet5()
    x: Tensor = torch.randn(2, 3, 32, 32)
    shapes = []
    for layer in network.features:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[::3] == [(6, 28, 28), (16, 10, 10)]
    assert shapes[2::3] == [(6, 14, 14), (16, 5, 5)]
    first = network.classifier[0]
    assert isinstance(first, nn.Linear)
    c5 = F.conv2d(x, first.weight.view(120, 16, 5, 5), first.bias).flatten(1)
    torch.testing.assert_close(first(network.pool(x)), c5)


@pytest.mark.parametrize(("name", "features"), [("lenet5", 84), ("baseline_cnn", 256)])
@pytest.mark.parametrize("size", [32, 47, 224])
def test_images_of_any_size_have_as_many_features(
    study_of: StudyOf, name: str, features: int, size: int
) -> None:
    """Features are (B, D) at any size from 32 pixels on, also an odd one."""
    model = build_model(study_of(name))
    assert model.features(torch.randn(2, 3, size, size)).shape == (2, features)


@pytest.mark.parametrize("name", ["lenet5", "baseline_cnn"])
def test_signals_neither_fade_nor_explode(study_of: StudyOf, name: str) -> None:
    """At random weights features of unit noise differ between images, and are below 10 or so."""
    model = build_model(study_of(name))
    with torch.inference_mode():
        features = model.features(torch.randn(64, 3, 32, 32))
    assert 0.01 < features.std(0).mean() < 10
    assert features.abs().mean() < 10


@pytest.mark.parametrize(
    ("name", "train", "first"),
    [
        ("lenet5", "last:1", "classifier.0.weight"),
        ("baseline_cnn", "last:1", "features.3.0.weight"),
        ("baseline_cnn", "last:3", "features.1.0.weight"),
    ],
)
def test_what_trains_begins_at_a_stage(
    study_of: StudyOf, name: str, train: str, first: str
) -> None:
    """The last stages train from their first layer on."""
    model = build_model(study_of(name, train=train))
    trained = [n for n, value in model.backbone.named_parameters() if value.requires_grad]
    everything = [n for n, _ in model.backbone.named_parameters()]
    assert trained == everything[everything.index(first) :]


@pytest.mark.parametrize("name", ["lenet5", "baseline_cnn"])
def test_nobody_has_weights_of_them(study_of: StudyOf, name: str) -> None:
    """Pretrained weights are refused with what to write instead; a random start is one."""
    with pytest.raises(WeightsError, match=f"no pretrained weights of {name}") as refused:
        initial_model(study_of(name, "pretrained"))
    assert 'backbone.weights = "none"' in refused.value.remedy
    assert initial_model(study_of(name, "none")).source == "none"
