"""Staying near the initial backbone while the network learns its tasks.

What a study with one of these weights minimises is

    task_weight * loss + anchor_weight / 2 * ||w - w0||^2 + distillation_weight * MSE(f(x), f0(x))

with w the trained parameters of the backbone and w0 their initial values (L2-SP, Li et al. 2018,
equation 2), f the features of the backbone and f0 those of the initial one.

Shapes: B batch, C channels, H height, W width, D features; ... of what the network takes of an
image, which is its pixels or what frozen stages give of it.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from client.features import FrozenFeatures
from client.optim import add_proximal_gradient
from common.arrays import Array, Arrays
from common.layout import BACKBONE
from common.models import FederatedModel
from common.study import Study
from common.weights import put, take


class Near:
    """What holds a network near its initial backbone.

    Args:
        model: The network, on its device, with that frozen which does not train.
        study: The weights of the two terms.
        initial: Every array of the backbone as the study began with it, by its name in the
            network; others are left aside.
        features: Where features of frozen stages are kept, if they are. Frozen stages have to be
            as they were at first; a study in which they are not is refused when it is read.
    """

    def __init__(
        self,
        model: FederatedModel,
        study: Study,
        initial: Arrays,
        features: FrozenFeatures | None = None,
    ) -> None:
        self._weight = study.training.anchor_weight
        self._initial = {
            name: torch.from_numpy(initial[name]).to(value.device)
            for name, value in model.named_parameters()
            if self._weight and value.requires_grad and name.startswith(BACKBONE)
        }
        self.distillation_weight = study.training.distillation_weight
        """0 asks for no features of the network: there is no penalty."""
        if not any(value.requires_grad for value in model.backbone.parameters()):
            self.distillation_weight = 0.0
        self._teacher: FederatedModel | None = None
        if self.distillation_weight:
            self._teacher = _teacher(model if features is None else features.network, initial)

    def gradient(self, model: FederatedModel) -> None:
        """Add the gradient of anchor_weight / 2 * ||w - w0||^2 to that of the backbone.

        Args:
            model: The network, its gradients computed.
        """
        add_proximal_gradient(model, self._initial, self._weight)

    def penalty(self, x_BCHW: Tensor, features_BD: Tensor) -> Tensor:
        """Return distillation_weight times the mean squared difference of the features.

        Args:
            x_BCHW: What the network took: normalised images, or kept features of frozen stages.
            features_BD: What its backbone gave of them, before any dropout.

        Returns:
            A scalar, the mean over images and features, summed over the members of an ensemble; 0
            where nothing is distilled.
        """
        if self._teacher is None:
            return features_BD.new_zeros(())
        with torch.no_grad():
            wanted_BD = self._teacher.features(x_BCHW)
        found, wanted = (self._teacher.by_member(some) for some in (features_BD, wanted_BD))
        off = [F.mse_loss(one, other) for one, other in zip(found, wanted, strict=True)]
        return self.distillation_weight * torch.stack(off).sum()


def near_of(
    model: FederatedModel,
    study: Study,
    initial: Arrays,
    features: FrozenFeatures | None = None,
) -> Near | None:
    """Return what holds the network near its initial backbone; None where nothing is to.

    Args:
        model: As ``Near`` takes it.
        study: As ``Near`` takes it.
        initial: As ``Near`` takes it.
        features: As ``Near`` takes it.
    """
    return Near(model, study, initial, features) if study.training.stays_near else None


def initial_of(model: FederatedModel, study: Study) -> dict[str, Array]:
    """Return a copy of the first network's arrays; none where nothing is to be held near them."""
    return take(model, model.state_dict()) if study.training.stays_near else {}


def _teacher(network: FederatedModel, initial: Arrays) -> FederatedModel:
    """Return a copy of the network, or of that behind frozen stages, with its initial backbone."""
    teacher = copy.deepcopy(network)
    teacher.zero_grad()
    put(teacher, {name: initial[name] for name in teacher.state_dict() if name in initial})
    return teacher.requires_grad_(requires_grad=False).eval()
