"""The local optimizer: a learning rate for the heads, one for the backbone, or one a layer."""

from collections.abc import Mapping

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from common.models import FederatedModel
from common.training import Training


def make_optimizer(model: FederatedModel, training: Training) -> Optimizer:
    """Return a fresh optimizer over the parameters that train.

    Biases and normalisation weights (arrays of one dimension) are not decayed. Each group keeps
    the rate that it began with as ``initial_lr``, where PyTorch's own schedules look for it.
    """
    if training.layer_decay < 1:
        backbone = [group for one in model.backbones for group in _groups_by_layer(one, training)]
    else:
        backbone = _groups(model.backbone, training.backbone_lr, training.weight_decay)
    groups = [*backbone, *_groups(model.heads, training.head_lr, training.weight_decay)]
    if model.discriminator is not None:
        groups += _groups(model.discriminator, training.head_lr, training.weight_decay)
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(groups)
        case "adamw":
            return torch.optim.AdamW(groups)
        case "sgd":
            return torch.optim.SGD(groups, momentum=training.momentum)
        case "rmsprop":
            return torch.optim.RMSprop(groups)


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every learning rate to ``factor`` times the one that it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def add_proximal_gradient(model: nn.Module, start: Mapping[str, Tensor], mu: float) -> None:
    """Add the gradient of (mu / 2) ||w - w_start||^2 (FedProx, Li et al. 2020, equation 2).

    Args:
        model: The network, its gradients computed.
        start: Detached copies of the trained parameters as the round began, by name.
        mu: Weight of the proximal term; 0 adds nothing.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in start:
            parameter.grad.add_(parameter.detach() - start[name], alpha=mu)


def _groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, object]]:
    trained = [value for value in module.parameters() if value.requires_grad]
    decayed = [value for value in trained if value.ndim > 1]
    plain = [value for value in trained if value.ndim <= 1]
    return [
        {"params": values, "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for values, decay in ((decayed, weight_decay), (plain, 0.0))
        if values
    ]


def _groups_by_layer(backbone: nn.Module, training: Training) -> list[dict[str, object]]:
    """Return a group for each layer and kind, in the order of the network's parameters.

    timm divides the network into layers and says each one's share of the rate. It leaves it to
    its own schedulers to multiply the two.
    """
    found = param_groups_layer_decay(
        backbone,
        weight_decay=training.weight_decay,
        layer_decay=training.layer_decay,
        min_scale=training.layer_decay_floor,
    )
    groups = []
    for group in found:
        lr = training.backbone_lr * group.pop("lr_scale")
        groups.append({**group, "lr": lr, "initial_lr": lr})
    return groups
