"""Laws of ``client/explain``: maps are the formulas', and the network is afterwards as before."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from client.cam_layers import Layer, cam_layer
from client.dataset import Images
from client.explain import METHODS, Method, enlarged, explain, scores
from client.features import channel_statistics
from client.plan import Plan
from client.preprocess import normalise
from client.privacy import train_privately
from common.errors import DivergedError
from common.models import FederatedModel, build_model
from common.study import Study

CPU = torch.device("cpu")
SIZE = 64


@pytest.fixture
def network(make_study: Callable[..., Study]) -> FederatedModel:
    return build_model(make_study(["ct", "mr"], backbone={"image_size": SIZE}))


@pytest.fixture(name="x_BCSS")
def images() -> torch.Tensor:
    return torch.randn((3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def gradcam_by_hand(
    model: FederatedModel, x_BCSS: torch.Tensor, task: str, label: int, name: str, *, mean: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return Grad-CAM (mean gradients) or HiResCAM of the log-odds, by autograd alone."""
    held = {}
    hook = model.get_submodule(name).register_forward_hook(lambda *a: held.update(out=a[2]))
    logits = model.eval()(x_BCSS.clone().requires_grad_(), task)
    hook.remove()
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    (g,) = torch.autograd.grad((logits[:, label] - others.logsumexp(1)).sum(), held["out"])
    weights = g.mean(dim=(2, 3), keepdim=True) if mean else g
    found = (weights * held["out"]).sum(1).relu()
    highest = found.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, found / highest, 0.0).detach().numpy()


@pytest.mark.parametrize(("method", "mean"), [("gradcam", True), ("hirescam", False)])
@pytest.mark.parametrize(("task", "label"), [("ct", 1), ("mr", 0), ("mr", 2)])
def test_maps_are_the_formulas_by_hand(
    network: FederatedModel,
    x_BCSS: torch.Tensor,
    method: Method,
    task: str,
    label: int,
    *,
    mean: bool,
) -> None:
    """Of a task's head and a class, by plain autograd on the log-odds of that class."""
    layer = cam_layer(network.backbone, SIZE, CPU)
    found = explain(network, x_BCSS, task, np.full(3, label), layer, method).maps
    expected = gradcam_by_hand(network, x_BCSS, task, label, "backbone.layer2", mean=mean)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_in_the_unit_interval(
    network: FederatedModel, x_BCSS: torch.Tensor, method: Method
) -> None:
    """Each map has the layer's grid, lies in [0, 1], and its highest cell is 1, or all are 0."""
    layer = cam_layer(network.backbone, SIZE, CPU)
    maps = explain(network, x_BCSS, "ct", np.array([1, 0, 1]), layer, method).maps
    assert maps.shape == (3, 8, 8)
    assert maps.min() >= 0
    assert set(maps.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}
    assert maps.any()


@pytest.mark.parametrize("train", ["all", "last:2", "head"])
def test_frozen_layers_change_nothing(
    make_study: Callable[..., Study], x_BCSS: torch.Tensor, train: str
) -> None:
    """The map of a network is the same however much of it is frozen."""
    every = build_model(make_study(backbone={"image_size": SIZE}))
    frozen = build_model(make_study(backbone={"image_size": SIZE}, training={"train": train}))
    maps = [
        explain(m, x_BCSS, "ct", np.ones(3, int), cam_layer(m.backbone, SIZE, CPU)).maps
        for m in (every, frozen)
    ]
    np.testing.assert_allclose(*maps, atol=1e-5)


def test_mode_gradients_and_flags_are_put_back(
    network: FederatedModel, x_BCSS: torch.Tensor
) -> None:
    """Also where parts have modes, gradients and flags of their own, and under no_grad."""
    network.train()
    network.backbone.get_submodule("layer1").eval()
    network(x_BCSS, "ct").sum().backward()
    next(network.parameters()).requires_grad_(requires_grad=False)
    modes = [module.training for module in network.modules()]
    kept = [(p.requires_grad, p.grad, p.detach().clone()) for p in network.parameters()]
    statistics = {n: b.clone() for n, b in network.named_buffers()}
    layer = cam_layer(network.backbone, SIZE, CPU)
    with torch.no_grad():
        explain(network, x_BCSS, "ct", np.ones(3, int), layer)
    assert [module.training for module in network.modules()] == modes
    for parameter, (asked, gradient, value) in zip(network.parameters(), kept, strict=True):
        assert parameter.requires_grad is asked
        assert parameter.grad is gradient
        assert torch.equal(parameter, value)
    assert all(torch.equal(b, statistics[n]) for n, b in network.named_buffers())
    assert not any(module._forward_hooks for module in network.modules())


def test_it_is_all_put_back_after_a_failure_too(network: FederatedModel) -> None:
    """An image that the network cannot take raises, and leaves no hook and no flag behind."""
    layer = cam_layer(network.backbone, SIZE, CPU)
    with pytest.raises(RuntimeError):
        explain(network.train(), torch.zeros(1, 4, SIZE, SIZE), "ct", np.array([1]), layer)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_follows_may_change_the_activation_in_place(
    network: FederatedModel, x_BCSS: torch.Tensor
) -> None:
    """An in-place ReLU behind the layer neither fails nor alters what the map is made of."""
    torch.manual_seed(0)

    def backbone(*, inplace: bool) -> nn.Module:
        return nn.Sequential(conv, nn.ReLU(inplace=inplace), nn.AvgPool2d(64), nn.Flatten())

    conv = nn.Conv2d(3, 96, 3, padding=1)
    layer = Layer("0", conv, torch.clone, (SIZE, SIZE))
    maps = []
    for inplace in (False, True):
        network.backbone = backbone(inplace=inplace)
        maps.append(explain(network, x_BCSS, "ct", np.ones(3, int), layer, "hirescam").maps)
    np.testing.assert_array_equal(*maps)


def test_a_model_trained_with_privacy_is_explained_like_any_other(
    make_study: Callable[..., Study], make_images: Callable[..., Images]
) -> None:
    """A step of DP-SGD leaves nothing on the network that a map would trip over."""
    backbone = {"normalisation": "frozen"}
    study = make_study(backbone=backbone, privacy={"epsilon": 8.0})
    model, images = build_model(study), make_images(12, channels=3)
    before = model.heads["ct"].weight.detach().clone()
    plan = Plan(1.0, 1.0, 1, images.n_patients, 1.0, 1, 8.0, 1e-3)
    train_privately(model, {"ct": images}, study, plan, device=CPU)
    assert not torch.equal(model.heads["ct"].weight, before)
    x_BCSS = normalise(images.pixels[torch.arange(3)], *channel_statistics(model, CPU))
    found = explain(model, x_BCSS, "ct", np.ones(3, int), cam_layer(model.backbone, 32, CPU))
    assert np.isfinite(found.maps).all()
    assert np.isfinite(found.logits).all()


def test_numbers_that_are_not_finite_are_refused(
    network: FederatedModel, x_BCSS: torch.Tensor
) -> None:
    """A network that has diverged has no map."""
    with torch.no_grad():
        network.heads["ct"].weight.fill_(torch.nan)
    layer = cam_layer(network.backbone, SIZE, CPU)
    with pytest.raises(DivergedError):
        explain(network, x_BCSS, "ct", np.ones(3, int), layer)


def test_probabilities_and_sizes() -> None:
    """Probabilities are the softmax; an enlarged map keeps its mean and its place."""
    np.testing.assert_allclose(scores(np.array([[0, np.log(3)]], np.float32)), [[0.25, 0.75]])
    small = np.zeros((4, 4), np.float32)
    small[1, 2] = 1
    large = enlarged(small, 64, 64)
    assert large.mean() == pytest.approx(small.mean(), rel=1e-3)
    assert np.unravel_index(large.argmax(), large.shape) == (23, 39)
