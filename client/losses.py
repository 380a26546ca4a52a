"""What training minimises. Shapes: B batch, K classes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.training import Training

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (B, K) and class indices (B,) to the mean loss, a scalar, or that of each image."""


def make_loss(training: Training, counts: Sequence[int] | None = None) -> Loss:
    """Return the study's loss for one task.

    Args:
        training: Which loss, and whether classes are weighted.
        counts: The site's training images of each class of the task, by which ``balanced``
            weighs; None where images never weigh by their class.
    """
    is_weighted = counts is not None and training.class_weights == "balanced"
    if training.loss == "cross_entropy" and not is_weighted:
        return nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    losses = make_losses(training, counts)
    # The mean over images, not over their weights as PyTorch's: an image's gradient then does not
    # depend on which others are in its batch.
    return lambda logits_BK, labels_B: losses(logits_BK, labels_B).mean()


def make_losses(training: Training, counts: Sequence[int] | None = None) -> Loss:
    """Return the study's loss of each image of one task, shape (B,), before any mean.

    Args:
        training: Which loss, and whether classes are weighted.
        counts: As ``make_loss``.
    """
    if counts is None or training.class_weights != "balanced":
        return partial(_of_images, training)
    weights_K = balanced_weights(counts)
    return lambda logits_BK, labels_B: (
        weights_K.to(logits_BK)[labels_B] * _of_images(training, logits_BK, labels_B)
    )


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return n / (K n_k) of each class, where n of the images are n_k of class k, shape (K,).

    An image then weighs one on average, and each class as much as any other (King and Zeng 2001,
    as scikit-learn's ``balanced``). A class without images weighs 0, and does not count in K.
    """
    counts_K = torch.tensor(counts, dtype=torch.float64)
    present = int((counts_K > 0).sum())
    weights_K = counts_K.sum() / (present * counts_K.clamp_min(1.0))
    return torch.where(counts_K > 0, weights_K, 0.0).float()


def _of_images(training: Training, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the loss of each image, shape (B,)."""
    if training.loss == "focal":
        return _focal(logits_BK, labels_B, training.focal_gamma)
    smoothing = training.label_smoothing
    plain_B = F.cross_entropy(logits_BK, labels_B, reduction="none", label_smoothing=smoothing)
    if training.loss == "cross_entropy":
        return plain_B
    share = training.hybrid_share
    return share * _focal(logits_BK, labels_B, training.focal_gamma) + (1 - share) * plain_B


def _focal(logits_BK: Tensor, labels_B: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p of the true class (Lin et al. 2017, equation 4), shape (B,).

    timm's asymmetric loss, with both exponents alike, has the same values, but its gradient is
    NaN where p rounds to 1 and gamma is below 1.
    """
    log_p = -F.cross_entropy(logits_BK, labels_B, reduction="none")
    # Kept above 0, where a power below 1 has no finite slope.
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(miss**gamma * log_p)
