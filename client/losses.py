"""What training minimises. Shapes: B batch, K classes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.study import Training

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (B, K) and class indices (B,) to the mean loss, a scalar."""


def make_loss(training: Training) -> Loss:
    """Return the study's loss."""
    if training.loss == "focal":
        return partial(focal_loss, gamma=training.focal_gamma)
    return nn.CrossEntropyLoss()


def focal_loss(logits_BK: Tensor, labels_B: Tensor, *, gamma: float) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p of the true class (Lin et al. 2017, equation 4).

    timm's asymmetric loss, with both exponents alike, has the same values, but its gradient is
    NaN where p rounds to 1 and gamma is below 1.
    """
    log_p = -F.cross_entropy(logits_BK, labels_B, reduction="none")
    # Kept above 0, where a power below 1 has no finite slope.
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(miss**gamma * log_p).mean()
