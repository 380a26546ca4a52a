"""The local optimizer: one learning rate for the heads, one for the backbone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.models import FederatedModel
from common.study import Training


def make_optimizer(model: FederatedModel, training: Training) -> Optimizer:
    """Return a fresh optimizer over the parameters that train.

    Biases and normalisation weights (arrays of one dimension) are not decayed.
    """
    groups = [
        *_groups(model.backbone, training.backbone_lr, training.weight_decay),
        *_groups(model.heads, training.head_lr, training.weight_decay),
    ]
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(groups)
        case "adamw":
            return torch.optim.AdamW(groups)
        case "sgd":
            return torch.optim.SGD(groups, momentum=0.9)
        case "rmsprop":
            return torch.optim.RMSprop(groups)


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
        {"params": values, "lr": lr, "weight_decay": decay}
        for values, decay in ((decayed, weight_decay), (plain, 0.0))
        if values
    ]
