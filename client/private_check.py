"""Finds out by trying whether the gradients of single patients can be had of a network."""

import torch
from torch import Tensor, nn

from client.private_gradients import PatientGradients


def faults_of(network: nn.Module, x: Tensor, task: str) -> list[str]:
    """Return why a network cannot be trained privately; empty if it can.

    Args:
        network: Called with images (or features) and the name of their task.
        x: Two or more images, all different.
        task: A task of the network.
    """
    mode = network.training
    try:
        return _disagreements(network.eval(), x, task) + _statistics(network.train(), x, task)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]
    finally:
        network.train(mode)
        network.zero_grad(set_to_none=True)


def _disagreements(network: nn.Module, x: Tensor, task: str) -> list[str]:
    """Compare each image's gradient among others with autograd's of that image alone."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    wrong = set()
    with PatientGradients(network) as gradients:
        gradients.start(len(x), 1)
        norms_n = gradients.backward(gradients.forward(x, task).square().sum())
        found = [gradients.sums(row) for row in torch.eye(len(x), device=x.device)]
    for image, norm, sums in zip(x.split(1), norms_n, found, strict=True):
        loss = network(image, task).square().sum()
        slopes = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        # In double precision: torch's own norm of 10^8 float32 numbers is off by 0.5 %.
        whole = torch.stack([g.double().square().sum() for g in slopes]).sum().sqrt()
        for (name, parameter), slope in zip(named.items(), slopes, strict=True):
            difference = sums[parameter] - slope if parameter in sums else slope
            # A gradient that is nothing but rounding, as of a bias ahead of a norm, may differ.
            if not difference.norm() <= 1e-2 * slope.norm() + 1e-5 * whole:
                wrong.add(f"{name} has another gradient than autograd's")
        if not (norm - whole).abs() <= 1e-3 * whole:
            wrong.add("the norm of a gradient is wrong")
    return sorted(wrong)


def _statistics(network: nn.Module, x: Tensor, task: str) -> list[str]:
    """Try training mode, and name the arrays that it changes without a gradient."""
    before = {name: value.clone() for name, value in network.named_buffers()}
    changed = []
    try:
        with torch.random.fork_rng(), PatientGradients(network) as gradients:
            gradients.start(len(x), 1)
            gradients.backward(gradients.forward(x, task).square().sum())
    finally:
        for name, value in network.named_buffers():
            if not torch.equal(value, before[name]):
                changed.append(f"{name} changes while training, with no noise on it")
                value.copy_(before[name])
    return changed
