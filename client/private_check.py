"""Finds out by trying whether the gradients of single patients can be had of a network."""

import copy

import torch
from torch import Tensor, nn

from client.private_gradients import PatientGradients


def faults_of(network: nn.Module, x: Tensor, task: str) -> list[str]:
    """Return why a network cannot be trained privately; empty if it can.

    A copy in double precision is tried, on the processor: gradients of float32 are off by some
    per cent in a deep network whose weights are random and standardised, such as BiT's.

    Args:
        network: Called with images (or features) and the name of their task.
        x: Two or more images, all different.
        task: A task of the network.
    """
    try:
        network, x = copy.deepcopy(network).to("cpu", torch.float64), x.to("cpu", torch.float64)
        return _disagreements(network.eval(), x, task) + _statistics(network.train(), x, task)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]


def _disagreements(network: nn.Module, x: Tensor, task: str) -> list[str]:
    """Compare each image's gradient among others with autograd's of that image alone."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    wrong = set()
    with PatientGradients(network) as gradients:
        gradients.start(len(x), 1)
        norms_n = gradients.backward(gradients.forward(x, task).square().sum())
        found = [gradients.sums(row) for row in torch.eye(len(x), dtype=x.dtype)]
    for image, norm, sums in zip(x.split(1), norms_n, found, strict=True):
        loss = network(image, task).square().sum()
        slopes = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        whole = torch.stack([g.square().sum() for g in slopes]).sum().sqrt()
        for (name, parameter), slope in zip(named.items(), slopes, strict=True):
            difference = sums[parameter] - slope if parameter in sums else slope
            # A gradient that is nothing but rounding, as of a bias ahead of a norm, may differ.
            if not difference.norm() <= 1e-3 * slope.norm() + 1e-6 * whole:
                wrong.add(f"{name} has another gradient than autograd's")
        if not (norm - whole).abs() <= 1e-3 * whole:
            wrong.add("the norm of a gradient is wrong")
    return sorted(wrong)


def _statistics(network: nn.Module, x: Tensor, task: str) -> list[str]:
    """Try training mode, and name the arrays that it changes without a gradient."""
    before = {name: value.clone() for name, value in network.named_buffers()}
    with torch.random.fork_rng(), PatientGradients(network) as gradients:
        gradients.start(len(x), 1)
        gradients.backward(gradients.forward(x, task).square().sum())
    return [
        f"{name} changes while training, with no noise on it"
        for name, value in network.named_buffers()
        if not torch.equal(value, before[name])
    ]
