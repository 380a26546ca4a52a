"""What training minimises. Shapes: B batch, K classes."""

from collections.abc import Callable

from timm.loss import AsymmetricLossSingleLabel
from torch import Tensor, nn

from common.study import Training

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (B, K) and class indices (B,) to the mean loss, a scalar."""


def make_loss(training: Training) -> Loss:
    """Return the study's loss.

    The focal loss is -(1 - p)^gamma log p of the true class (Lin et al. 2017, equation 4),
    which is timm's single-label asymmetric loss with both exponents alike and no smoothing.
    """
    if training.loss == "focal":
        gamma = training.focal_gamma
        loss: Loss = AsymmetricLossSingleLabel(gamma_pos=gamma, gamma_neg=gamma, eps=0.0)
        return loss
    return nn.CrossEntropyLoss()
