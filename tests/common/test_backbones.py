"""One contract that every backbone of the papers meets, whichever library it comes from.

Each is built at a small size that it can take, with random weights.
"""

from collections import Counter
from typing import Any, NamedTuple

import pytest
import safetensors.numpy
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from client.cam_layers import cam_layer
from client.explain import explain
from client.private_check import faults_of
from common.errors import PrivacyError
from common.models import FederatedModel, build_model
from common.private_models import check_private
from common.study import Study
from common.weights import layout_of, put, take
from simulations.backbone_table import BACKBONES

CPU = torch.device("cpu")
SIZES = {"alexnet": 64, "inception_v3": 96}
"""Pixels of a side for those that cannot take ``SIZE``."""
SIZE = 32
SLOW = {"vgg16", "vgg16_bn", "densenet201", "efficientnet_b7", "resnetv2_50d_gn"}
SLOW_IN_PRIVATE = {"alexnet", "resnet50"}
"""Their layers are all in others too; in double precision these take seconds."""


class Built(NamedTuple):
    """A backbone at a small size."""

    name: str
    size: int
    model: FederatedModel
    """All of it trains."""


def study_of(name: str, train: str = "all", normalisation: str = "average") -> Study:
    backbone = {"name": name, "weights": "start.safetensors", "image_size": SIZES.get(name, SIZE)}
    return Study.parse(
        {
            "name": "study",
            "rounds": 1,
            "backbone": backbone | {"normalisation": normalisation},
            "tasks": {"ct": {"modality": "CT", "classes": ["a", "b", "c"]}},
            "training": {"train": train},
        }
    )


def images(size: int, count: int = 4) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(0))


def copied(model: FederatedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def stepped(model: FederatedModel, size: int) -> None:
    """Take one step in training mode, of a loss that moves all that can be moved."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    (model(images(size) + 1, "ct") - torch.tensor([1.0, 0.0, -1.0])).square().sum().backward()
    optimizer.step()


def every_backbone(slow: set[str]) -> list[Any]:
    """Return all backbones as parameters, some of them marked as slow."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in BACKBONES
    ]


@pytest.fixture(scope="module", params=every_backbone(SLOW))
def built(request: pytest.FixtureRequest) -> Built:
    name: str = request.param
    return Built(name, SIZES.get(name, SIZE), build_model(study_of(name)))


def test_logits_and_gradients(built: Built) -> None:
    """Logits are (B, K), and every array that trains gets a finite gradient."""
    model = built.model.train()
    logits = model(images(built.size), "ct")
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    wild = [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    model.zero_grad(set_to_none=True)
    assert (without, wild) == ([], [])


@pytest.mark.parametrize("train", ["head", "last:1"])
def test_what_is_frozen_stays(built: Built, train: str) -> None:
    """A step changes what trains; weights and statistics of all else stay to the last bit."""
    study = study_of(built.name, train)
    model = build_model(study)
    layout, before = layout_of(model, study), copied(model)
    stepped(model, built.size)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    travelling = {name for group in layout.groups.values() for name in group}
    assert {n for n in changed if before[n].is_floating_point()} <= travelling
    assert {"heads.ct.weight", "heads.ct.bias"} <= changed
    assert any(name.startswith("backbone.") for name in changed) == (train != "head")
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert frozen <= set(layout.base)


def test_every_array_is_of_one_kind(built: Built) -> None:
    """What trains or measures travels; counters and tables of integers are the base's."""
    state = built.model.state_dict()
    layout = layout_of(built.model, study_of(built.name))
    kinds = [*layout.groups.values(), layout.local, layout.base]
    assert Counter(name for kind in kinds for name in kind) == Counter(list(state))
    assert {n for n, value in state.items() if not value.is_floating_point()} <= set(layout.base)
    assert {n for n, _ in built.model.named_parameters()}.isdisjoint(layout.base)
    living = any(isinstance(module, _BatchNorm) for module in built.model.modules())
    assert bool(layout.groups["statistics"]) == living


def test_it_is_kept_in_a_file_to_the_last_bit(built: Built) -> None:
    """Arrays that went through safetensors make the same network of one that had others."""
    model = built.model.eval()
    names, before, x_BCHW = list(model.state_dict()), copied(model), images(built.size, 2)
    with torch.inference_mode():
        logits = model(x_BCHW, "ct")
    written = safetensors.numpy.save(take(model, names))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    put(model, safetensors.numpy.load(written))
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(model(x_BCHW, "ct"), logits)


def test_a_map_can_be_made(built: Built) -> None:
    """There is a layer with a grid; maps have its shape, and modes and gradients are restored."""
    model = built.model.train()
    model.heads.eval()
    modes = [module.training for module in model.modules()]
    layer = cam_layer(model.backbone, built.size, CPU)
    found = explain(model, images(built.size, 2), "ct", torch.tensor([0, 2]).numpy(), layer)
    assert found.maps.shape == (2, *layer.grid)
    assert 0 <= found.maps.min() <= found.maps.max() <= 1
    assert [module.training for module in model.modules()] == modes
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("built", every_backbone(SLOW | SLOW_IN_PRIVATE), indirect=True)
def test_it_is_private_where_it_is_said_to_be(built: Built) -> None:
    """With frozen normalisation all can be trained privately, and single gradients are right.

    With living batch normalisation none can, and every such layer is named.
    """
    living = [n for n, m in built.model.named_modules() if isinstance(m, _BatchNorm)]
    if living:
        with pytest.raises(PrivacyError) as refused:
            check_private(built.model)
        assert all(f"{name} (" in refused.value.message for name in living)
    else:
        check_private(built.model)
    frozen = build_model(study_of(built.name, normalisation="frozen"))
    check_private(frozen)
    assert faults_of(frozen, images(built.size, 2), "ct") == []


def test_its_input_is_its_own(built: Built) -> None:
    """Mean and deviation of the channels are the backbone's; it says for what size it was made."""
    settings: Any = built.model.backbone.pretrained_cfg
    assert (built.model.mean, built.model.std) == (settings["mean"], settings["std"])
    channels, height, width = settings["input_size"]
    assert (channels, height) == (3, width)
    assert height >= built.size
