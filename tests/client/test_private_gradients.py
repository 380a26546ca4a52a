"""Laws of the gradients of single patients in a whole network."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.private_gradients import PatientGradients
from common.models import build_model
from common.study import Study

MakeStudy = Callable[..., Study]
NETWORKS: list[dict[str, Any]] = [
    {"name": "test_resnet", "normalisation": "frozen"},  # adds in place
    {"name": "test_convnext"},  # channels-last inside, scales of its own
    {"name": "test_vit"},  # a class token, and positions
    {"name": "test_efficientnet", "normalisation": "frozen"},  # depthwise
    {"name": "mobilenetv3_small_050", "normalisation": "frozen"},  # activations in place
    {"name": "test_nfnet"},  # weights that are standardised at each use
]


class Small(nn.Module):
    """A layer used twice, its output changed in place, and a part with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.layer = nn.Linear(64, 64)
        self.part = Scaled()

    def forward(self, x: Tensor, _task: str) -> Tensor:
        """Return sixty-four numbers for each image of 8 x 8 pixels."""
        y: Tensor = self.stem(x)
        y += 1
        y = self.layer(y.relu_().flatten(1))
        y.mul_(2)
        return self.part(self.layer(y)).tanh()  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """Has a parameter of its own beside an inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0, 1, 64))
        self.inner = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of the same shape."""
        return self.inner(x) * self.scale  # type: ignore[no-any-return]


class Spoilt(nn.Module):
    """Changes the input of a trained layer behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, _task: str) -> Tensor:
        """Return four numbers for each row."""
        x = x * 1
        y: Tensor = self.layer(x)
        x += 1
        return y


def images_of(tasks: Mapping[str, int], patients: int, size: int) -> dict[str, Tensor]:
    """Return images by task, channels-last, those of one patient next to each other."""
    generator = torch.Generator().manual_seed(0)
    return {
        task: torch.randn(patients * each, 3, size, size, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        for task, each in tasks.items()
    }


def loss_of(network: nn.Module, images: Mapping[str, Tensor], *, forward: Any = None) -> Tensor:
    total = torch.zeros(())
    for task, x in images.items():
        total = total + (forward or network)(x, task).square().sum()
    return total


def by_autograd(
    network: nn.Module, images: Mapping[str, Tensor], patients: int
) -> list[dict[str, Tensor]]:
    """Return each patient's gradients by a loop over copies of the network."""
    found = []
    for k in range(patients):
        other = copy.deepcopy(network)
        loss_of(other, {task: x.chunk(patients)[k] for task, x in images.items()}).backward()
        found.append({n: p.grad for n, p in other.named_parameters() if p.grad is not None})
    return found


def check(network: nn.Module, tasks: Mapping[str, int], *, size: int = 32) -> None:
    """Compare norms, and the gradient of each patient, with a loop."""
    patients = 3
    images = images_of(tasks, patients, size)
    names = {parameter: name for name, parameter in network.named_parameters()}
    expected = by_autograd(network, images, patients)
    with PatientGradients(network) as gradients:
        gradients.start(patients, sum(tasks.values()))
        norms = gradients.backward(loss_of(network, images, forward=gradients.forward))
        for k, row in enumerate(torch.eye(patients)):
            found = {names[p]: value for p, value in gradients.sums(row).items()}
            assert found.keys() == expected[k].keys()
            norm = torch.stack([g.norm() for g in expected[k].values()]).norm()
            torch.testing.assert_close(norms[k], norm, rtol=1e-5, atol=0)
            for name, value in expected[k].items():
                assert (found[name] - value).norm() <= 1e-5 * norm, name
                # A gradient that is nothing but rounding, as of a key's bias, may differ.
                small = value.norm() < 1e-5 * norm
                assert small or (found[name] - value).norm() <= 1e-3 * value.norm(), name


@pytest.mark.parametrize("tasks", [{"ct": 1}, {"ct": 2, "mr": 1}], ids=["one", "several"])
@pytest.mark.parametrize("backbone", NETWORKS, ids=[b["name"] for b in NETWORKS])
def test_gradients_are_a_loops(
    backbone: dict[str, Any], tasks: dict[str, int], make_study: MakeStudy
) -> None:
    """Each patient's gradient and its norm are autograd's of that patient alone."""
    study = make_study(("ct", "mr"), backbone=backbone)
    check(build_model(study).to(memory_format=torch.channels_last).train(), tasks)


@pytest.mark.parametrize("train", ["last:1", "last:2", "head"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_frozen_parts_have_no_gradient(name: str, train: str, make_study: MakeStudy) -> None:
    """Of a network that is frozen in part, the trained parameters alone get gradients."""
    frozen = {"normalisation": "frozen"} if name == "test_resnet" else {}
    study = make_study(backbone={"name": name} | frozen, training={"train": train})
    check(build_model(study), {"ct": 2})


def test_any_network_of_layers_will_do() -> None:
    """In-place changes, layers used twice and parts that have to be run again make no odds."""
    check(Small(), {"any": 1}, size=8)
    check(Small(), {"any": 2, "other": 1}, size=8)


def test_a_changed_input_is_noticed() -> None:
    """A layer's input that was changed after its use is an error, not a wrong gradient."""
    network = Spoilt()
    with PatientGradients(network) as gradients:
        gradients.start(2, 1)
        loss = gradients.forward(torch.ones(2, 4), "any").sum()
        with pytest.raises(RuntimeError, match="in-place operation"):
            gradients.backward(loss)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("backbone", NETWORKS, ids=[b["name"] for b in NETWORKS])
def test_no_trace_is_left(backbone: dict[str, Any], make_study: MakeStudy) -> None:
    """Afterwards no module has a hook or another attribute, and no parameter a gradient."""
    network = build_model(make_study(backbone=backbone))

    def trace() -> list[object]:
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        attributes = [sorted(vars(m)) for m in network.modules()]
        marks = [(p.requires_grad, p.grad, sorted(vars(p))) for p in network.parameters()]
        return [hooks, attributes, marks, list(network.state_dict())]

    before, images = trace(), images_of({"ct": 1}, 2, 32)
    with PatientGradients(network) as gradients:
        gradients.start(2, 1)
        gradients.backward(loss_of(network, images, forward=gradients.forward))
        gradients.sums(torch.ones(2))
    assert trace() == before
