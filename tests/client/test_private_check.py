"""Laws of what finds out whether a network can be trained privately."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.private_check import faults_of

X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
"""Three images of four rows and six columns."""


class Network(nn.Module):
    """Two linear layers around anything."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), middle, nn.Linear(24, 2)

    def forward(self, x: Tensor, _task: str) -> Tensor:
        """Return two numbers for each image."""
        found: Tensor = self.last(self.middle(self.first(x)).flatten(1))
        return found


class Mixing(nn.Module):
    """Takes the mean of the batch away: no known layer, yet every image touches every other."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the images less half their mean."""
        return x - 0.5 * x.mean(0, keepdim=True)


class Counting(nn.Module):
    """Keeps a running mean in training, and is named like no layer that is known to."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        """Return what came in."""
        if self.training:
            self.mean.add_(x.detach().mean((0, 1)))
        return x


class Tupled(nn.Linear):
    """Gives a tuple, not a tensor."""

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - torch's name
        """Return the outputs in a tuple."""
        return (super().forward(input),)


class Untupled(nn.Module):
    """Holds a layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tupled(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        found: Tensor = self.inner(x)[0]
        return found


class Unheard(nn.Module):
    """Uses an inner layer's weight past that layer, where no hook hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return x @ self.inner.weight


class Dropping(nn.Module):
    """Drops at random within a part that has to be run once more for its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled images."""
        return nn.functional.dropout(x * self.scale, 0.5, self.training)


@pytest.mark.parametrize("middle", [nn.Identity(), nn.LayerNorm(6), nn.Dropout(0.5), nn.GELU()])
def test_sound_networks_have_no_faults(middle: nn.Module) -> None:
    """Layers that look at one image at a time are fine, dropout between them too."""
    assert faults_of(Network(middle), X, "any") == []


@pytest.mark.parametrize(
    ("middle", "fault"),
    [
        (Mixing(), "first.weight has another gradient than autograd's"),
        (nn.BatchNorm1d(4, affine=False), "middle.running_mean changes while training"),
        (nn.BatchNorm1d(4), "RuntimeError"),
        (Counting(), "middle.mean changes while training"),
        (Untupled(), "AttributeError"),
        (Unheard(), "middle.inner.weight has another gradient than autograd's"),
        (Dropping(), "RuntimeError"),
    ],
)
def test_what_cannot_be_private_is_found(middle: nn.Module, fault: str) -> None:
    """Mixing, hidden statistics and what the machinery cannot follow are told, not raised."""
    assert any(fault in found for found in faults_of(Network(middle), X, "any"))


@pytest.mark.parametrize("middle", [nn.BatchNorm1d(4), Mixing(), Unheard(), Dropping()])
@pytest.mark.parametrize("mode", [True, False])
def test_trying_leaves_the_network_alone(middle: nn.Module, *, mode: bool) -> None:
    """Arrays, mode, hooks and the random state are afterwards what they were."""
    network = Network(middle).train(mode)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    faults_of(network, X, "any")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(m.training == mode and not m._forward_hooks for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
