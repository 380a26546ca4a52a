"""Laws of what training minimises."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from client.losses import Loss, balanced_weights, make_loss
from common.study import Study
from common.training import Training

LOGITS = np.random.default_rng(0).normal(0, 3, (20, 4))
LABELS = np.arange(20) % 4


def focal_of(gamma: float) -> Loss:
    return make_loss(Training(loss="focal", focal_gamma=gamma))


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
    focal, plain = focal_of(0.0)(logits, labels), torch.nn.CrossEntropyLoss()(logits, labels)
    assert focal.item() == pytest.approx(plain.item(), rel=1e-12)
    (one,), (other,) = torch.autograd.grad(focal, logits), torch.autograd.grad(plain, logits)
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_gradient_is_that_of_the_formula(gamma: float) -> None:
    """Finite differences in float64 agree with autograd."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: focal_of(gamma)(x, torch.from_numpy(LABELS)), (logits,)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("sure", [10.0, 17.0, 20.0, 200.0, 1e30])
def test_a_sure_network_still_has_a_gradient(gamma: float, sure: float) -> None:
    """Where p rounds to 0 or 1 in float32, the gradient is finite, and that of a hit nearly 0."""
    logits = torch.tensor([[sure, 0.0, 0.0], [0.0, sure, 0.0]], requires_grad=True)
    focal_of(gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[0].abs().max()) < 1e-3
    assert logits.grad[1].tolist() == pytest.approx([-0.5, 0.5, 0.0], abs=1e-2)


def test_two_classes_are_the_sigmoids() -> None:
    """Over two classes the focal loss is torchvision's, of the difference of the two logits."""
    logits, labels = torch.from_numpy(LOGITS[:, :2]), torch.from_numpy(LABELS % 2)
    difference, floats = logits[:, 1] - logits[:, 0], labels.double()
    plain = sigmoid_focal_loss(difference, floats, alpha=-1, gamma=2.0, reduction="mean")
    assert focal_of(2.0)(logits, labels).item() == pytest.approx(plain.item(), rel=1e-9)
    # Of 40 images 10 are positive: weights 2 and 2/3, in torchvision's words 3/4 and 1/4.
    weighted = sigmoid_focal_loss(difference, floats, alpha=0.75, gamma=2.0, reduction="mean")
    found = make_loss(Training(loss="focal", class_weights="balanced"), [30, 10])(logits, labels)
    assert found.item() == pytest.approx(2 / 0.75 * weighted.item(), rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_hybrid_is_a_share_of_each(share: float) -> None:
    """It is so much of the focal loss, and cross-entropy for the rest."""
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    found = make_loss(Training(loss="hybrid", hybrid_share=share, focal_gamma=1.5))(logits, labels)
    log_p = log_probability_by_hand()
    focal = -((1 - np.exp(log_p)) ** 1.5 * log_p).mean()
    assert found.item() == pytest.approx(share * focal - (1 - share) * log_p.mean(), rel=1e-10)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_labels_are_torchs(smoothing: float) -> None:
    """Each label gives its share to all classes alike, weighted or not."""
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    training = Training(label_smoothing=smoothing)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels).item()
    assert make_loss(training)(logits, labels).item() == expected
    soft = np.full((20, 4), smoothing / 4) + (1 - smoothing) * np.eye(4)[LABELS]
    log_p = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True))
    assert expected == pytest.approx(-(soft * log_p).sum(axis=1).mean(), rel=1e-10)
    weighted = training.model_copy(update={"class_weights": "balanced"})
    found = make_loss(weighted, [5, 5, 5, 5])(logits, labels).item()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("counts", [[8, 8], [30, 10], [1, 2, 300, 7]])
def test_balanced_weights_are_scikit_learns(counts: list[int]) -> None:
    """They are n / (K n_k): one on average over the images, the same sum for each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    found = balanced_weights(counts)
    assert found.numpy() == pytest.approx(expected, rel=1e-6)
    assert found[torch.from_numpy(labels)].mean().item() == pytest.approx(1, rel=1e-6)


def test_a_class_that_the_site_lacks_does_not_count() -> None:
    """It weighs 0, and the others as if it were no class of the task."""
    assert balanced_weights([30, 0, 10]).tolist() == pytest.approx([2 / 3, 0, 2])
    assert balanced_weights([0, 7]).tolist() == [0, 1]
    assert balanced_weights([0, 0]).tolist() == [0, 0]


@pytest.mark.parametrize("loss", get_args(Training.model_fields["loss"].annotation))
def test_a_weighted_loss_is_the_mean_of_weighted_losses(loss: Any) -> None:
    """Each image has its own loss times the weight of its class, over the number of images."""
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    counts = [40, 30, 20, 10]
    plain = make_loss(Training(loss=loss))
    each = [plain(logits[i : i + 1], labels[i : i + 1]).item() for i in range(20)]
    expected = np.mean([100 / (4 * counts[k]) * each[i] for i, k in enumerate(LABELS)])
    found = make_loss(Training(loss=loss, class_weights="balanced"), counts)(logits, labels)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", get_args(Training.model_fields["loss"].annotation))
def test_an_images_gradient_hangs_on_no_other(loss: Any) -> None:
    """With weights too, an image's slope is the same whatever the labels beside it."""
    loss_of = make_loss(Training(loss=loss, class_weights="balanced"), [9, 2, 1])
    logits = torch.from_numpy(LOGITS[:4, :3]).requires_grad_()
    slopes = [
        torch.autograd.grad(loss_of(logits, torch.tensor([0, *others])), logits)[0][0]
        for others in ((0, 0, 0), (1, 1, 2), (2, 1, 0))
    ]
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])
    # PyTorch's own weighted mean divides by the sum of the others' weights.
    weights = balanced_weights([9, 2, 1]).double()
    torchs = [
        torch.autograd.grad(
            F.cross_entropy(logits, torch.tensor([0, *others]), weight=weights), logits
        )[0][0]
        for others in ((0, 0, 0), (1, 1, 2))
    ]
    assert not torch.allclose(torchs[0], torchs[1], rtol=0.1)


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("loss", get_args(Training.model_fields["loss"].annotation))
def test_every_gradient_is_that_of_its_formula(loss: Any, weights: Any) -> None:
    """Finite differences in float64 agree with autograd for every loss, weighted or not."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    loss_of = make_loss(Training(loss=loss, class_weights=weights), [4, 3, 2, 1])
    assert torch.autograd.gradcheck(lambda x: loss_of(x, torch.from_numpy(LABELS)), (logits,))
