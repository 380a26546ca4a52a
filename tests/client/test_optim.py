"""Laws of the local optimizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from client.optim import add_proximal_gradient, make_optimizer, set_rates
from common.models import FederatedModel, build_model
from common.study import Study

CLASSES = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


def settings_by_name(model: FederatedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return learning rate and weight decay of each parameter that the optimizer holds."""
    names = {id(value): name for name, value in model.named_parameters()}
    held = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(dict(held))
    return {name: (group["lr"], group["weight_decay"]) for name, group in held}


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("train", ["all", "last:1", "head"])
def test_each_parameter_gets_its_settings(
    kind: str, train: str, make_study: Callable[..., Study]
) -> None:
    """Heads and backbone have their own rates, one dimension is not decayed, frozen is absent."""
    study = make_study(
        ("ct", "mr"),
        training={
            "optimizer": kind,
            "train": train,
            "head_lr": 0.5,
            "backbone_lr": 0.25,
            "weight_decay": 0.125,
        },
    )
    model = build_model(study)
    optimizer = make_optimizer(model, study.training)
    assert type(optimizer) is CLASSES[kind]
    assert settings_by_name(model, optimizer) == {
        name: (0.5 if name.startswith("heads.") else 0.25, 0.125 if value.ndim > 1 else 0.0)
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def test_head_training_holds_heads_alone(make_study: Callable[..., Study]) -> None:
    """With ``train = "head"`` no parameter of the backbone is in the optimizer."""
    study = make_study(("ct", "mr"), training={"train": "head"})
    model = build_model(study)
    held = settings_by_name(model, make_optimizer(model, study.training))
    assert sorted(held) == ["heads.ct.bias", "heads.ct.weight", "heads.mr.bias", "heads.mr.weight"]


def small_network() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a network with gradients, and where its parameters began."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    start = {name: torch.randn_like(value) for name, value in network.named_parameters()}
    network(torch.randn(5, 4)).square().sum().backward()
    return network, start


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in network.named_parameters():
        if value.grad is not None:
            found[name] = value.grad.clone()
    return found


@pytest.mark.parametrize("mu", [0.0, 0.01, 3.0])
def test_the_proximal_gradient_is_autograds(mu: float) -> None:
    """What is added is the gradient of (mu / 2) ||w - w_start||^2, and nothing where mu is 0."""
    network, start = small_network()
    before = gradients(network)
    named = dict(network.named_parameters())
    distance = sum(((named[name] - start[name]) ** 2).sum() for name in named)
    expected = torch.autograd.grad(mu / 2 * torch.as_tensor(distance), list(named.values()))
    add_proximal_gradient(network, start, mu)
    after = gradients(network)
    for (name, old), extra in zip(before.items(), expected, strict=True):
        assert torch.allclose(after[name], old + extra, atol=1e-6)


def test_a_parameter_without_gradient_stays_without() -> None:
    """What a batch does not train, the proximal term does not move."""
    network, start = small_network()
    bias = network.get_parameter("2.bias")
    bias.grad = None
    add_proximal_gradient(network, start, 1.0)
    assert bias.grad is None


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_momentum_is_the_studys(momentum: float, make_study: Callable[..., Study]) -> None:
    """SGD gets the study's momentum, 0.9 unless it says otherwise."""
    for said, expected in (({"momentum": momentum}, momentum), ({}, 0.9)):
        study = make_study(training={"optimizer": "sgd"} | said)
        optimizer = make_optimizer(build_model(study), study.training)
        assert {group["momentum"] for group in optimizer.param_groups} == {expected}


@pytest.mark.parametrize("kind", list(CLASSES))
def test_rates_are_set_by_what_they_began_with(kind: str, make_study: Callable[..., Study]) -> None:
    """A factor is of the first rates, however often others were set before; 1 changes no bit."""
    study = make_study(training={"optimizer": kind, "head_lr": 0.3, "backbone_lr": 0.7})
    optimizer = make_optimizer(build_model(study), study.training)
    for factor in (0.5, 0.1, 1.0):
        set_rates(optimizer, factor)
        assert {g["lr"] for g in optimizer.param_groups} == {0.3 * factor, 0.7 * factor}


BACKBONES = ["densenet121", "test_resnet", "test_vit", "test_convnext"]


def decayed_study(backbone: str, make_study: Callable[..., Study], **training: Any) -> Study:
    size = 160 if "vit" in backbone else 32
    return make_study(
        backbone={"name": backbone, "image_size": size},
        training={"head_lr": 0.5, "backbone_lr": 0.25, "layer_decay": 0.6} | training,
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_rates_over_layers_are_timms(backbone: str, make_study: Callable[..., Study]) -> None:
    """A layer has the rate that timm's optimizer has for it once a timm scheduler has run."""
    study = decayed_study(backbone, make_study)
    model = build_model(study)
    timms = create_optimizer_v2(
        model.backbone,
        opt="adamw",
        lr=0.25,
        weight_decay=study.training.weight_decay,
        layer_decay=0.6,
        layer_decay_min_scale=study.training.layer_decay_floor,
    )
    CosineLRScheduler(timms, t_initial=5).step(0)
    names = {id(value): name for name, value in model.named_parameters()}
    expected = {
        names[id(value)]: group["lr"] for group in timms.param_groups for value in group["params"]
    }
    found = settings_by_name(model, make_optimizer(model, study.training))
    heads = {name: found.pop(name) for name in list(found) if name.startswith("heads.")}
    assert found.keys() == expected.keys()
    for name, (lr, decay) in found.items():
        assert lr == pytest.approx(expected[name], rel=1e-12)
        assert decay == (0.01 if model.get_parameter(name).ndim > 1 else 0)
    assert {lr for lr, _ in heads.values()} == {0.5}
    assert max(lr for lr, _ in found.values()) == 0.25


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.5])
def test_no_layer_falls_below_the_floor(floor: float, make_study: Callable[..., Study]) -> None:
    """A DenseNet's stem, some sixty layers down, keeps the floor's share of the rate."""
    study = decayed_study("densenet121", make_study, layer_decay_floor=floor)
    model = build_model(study)
    found = settings_by_name(model, make_optimizer(model, study.training))
    stem = found["backbone.features.conv0.weight"][0]
    assert stem == min(lr for lr, _ in found.values())
    assert stem == pytest.approx(0.25 * floor) if floor else stem < 1e-10


def test_a_decay_of_one_gives_the_groups_of_none(make_study: Callable[..., Study]) -> None:
    """The default has four groups: matrices and others, of the backbone and of the heads."""
    model = build_model(make_study())
    optimizer = make_optimizer(model, make_study().training)
    held = [sum(value.numel() for value in group["params"]) for group in optimizer.param_groups]
    assert len(held) == 4
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0, 0.01, 0]


def test_layers_have_one_order(make_study: Callable[..., Study]) -> None:
    """Two networks of one study get the same groups in the same order, and only what trains."""
    study = decayed_study("test_resnet", make_study, train="last:2")
    found = []
    for _ in range(2):
        model = build_model(study)
        optimizer = make_optimizer(model, study.training)
        held = settings_by_name(model, optimizer)
        assert held.keys() == {n for n, value in model.named_parameters() if value.requires_grad}
        found.append(list(held))
    assert found[0] == found[1]
