"""Laws of the local optimizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from client.optim import add_proximal_gradient, make_optimizer
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
