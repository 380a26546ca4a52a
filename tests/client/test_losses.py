"""Laws of what training minimises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.losses import focal_loss, make_loss
from common.study import Study

LOGITS = np.random.default_rng(0).normal(0, 3, (20, 4))
LABELS = np.arange(20) % 4


def log_probability_by_hand() -> NDArray[np.float64]:
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    log_p: NDArray[np.float64] = np.log(shares[np.arange(20), LABELS])
    return log_p


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_the_papers(gamma: float, make_study: Callable[..., Study]) -> None:
    """The loss is the mean of -(1 - p)^gamma log p, Lin et al. (2017), equation 4."""
    study = make_study(training={"loss": "focal", "focal_gamma": gamma})
    found = make_loss(study.training)(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))
    log_p = log_probability_by_hand()
    assert float(found) == pytest.approx(-((1 - np.exp(log_p)) ** gamma * log_p).mean(), rel=1e-10)


def test_cross_entropy_is_the_mean_of_minus_log_p(make_study: Callable[..., Study]) -> None:
    """The default loss is -log p of the true class, averaged."""
    found = make_loss(make_study().training)(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))
    assert float(found) == pytest.approx(-log_probability_by_hand().mean(), rel=1e-12)


def test_gamma_zero_is_cross_entropy() -> None:
    """Without focusing, value and gradient are those of cross-entropy."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    labels = torch.from_numpy(LABELS)
    focal, plain = (
        focal_loss(logits, labels, gamma=0.0),
        torch.nn.CrossEntropyLoss()(logits, labels),
    )
    assert focal.item() == pytest.approx(plain.item(), rel=1e-12)
    (one,), (other,) = torch.autograd.grad(focal, logits), torch.autograd.grad(plain, logits)
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_gradient_is_that_of_the_formula(gamma: float) -> None:
    """Finite differences in float64 agree with autograd."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: focal_loss(x, torch.from_numpy(LABELS), gamma=gamma), (logits,)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("sure", [10.0, 17.0, 20.0, 200.0, 1e30])
def test_a_sure_network_still_has_a_gradient(gamma: float, sure: float) -> None:
    """Where p rounds to 0 or 1 in float32, the gradient is finite, and that of a hit nearly 0."""
    logits = torch.tensor([[sure, 0.0, 0.0], [0.0, sure, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0]), gamma=gamma).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[0].abs().max()) < 1e-3
    assert logits.grad[1].tolist() == pytest.approx([-0.5, 0.5, 0.0], abs=1e-2)
