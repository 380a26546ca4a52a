"""Laws of staying near the initial backbone."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.anchor import Near, near_of
from client.config import SiteConfig
from client.dataset import Batch, Images
from client.features import channel_statistics, frozen_features
from client.preprocess import normalise
from client.site import Site, respond
from client.train import Trained, train
from common.arrays import Array, digest
from common.layout import INITIAL
from common.messages import Order, Reply, order_to_record, reply_from_record
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import take

CPU = torch.device("cpu")
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]


def moved(model: FederatedModel, by: float = 0.05) -> FederatedModel:
    """Return a copy whose trained weights lie elsewhere, as after some rounds."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in other.parameters():
            if value.requires_grad:
                value.add_(by * torch.randn(value.shape, generator=generator))
    return other


def arrays_of(model: FederatedModel) -> dict[str, Array]:
    return take(model, model.state_dict())


def weights_of(model: FederatedModel) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in model.named_parameters() if v.requires_grad}


def pixels_of(model: FederatedModel, images: Images) -> Tensor:
    return normalise(images.pixels[:], *channel_statistics(model, CPU))


def train_near(
    model: FederatedModel,
    first: FederatedModel,
    images: Images,
    study: Study,
    steps: int = 1,
    *,
    keep: bool = False,
) -> Trained:
    """Train on all images at once, near the network that the study began with."""
    features = frozen_features(model, CPU, 32) if keep else None
    near = near_of(model, study, arrays_of(first), features)
    batches = [Batch("ct", np.arange(len(images)))] * steps
    return train(model, {"ct": images}, batches, study, device=CPU, near=near, features=features)


def distances(model: FederatedModel, first: FederatedModel) -> dict[str, float]:
    """Return the largest difference of backbone and heads."""
    start = dict(first.named_parameters())
    found = {"backbone": 0.0, "heads": 0.0}
    for name, value in model.named_parameters():
        part, off = name.split(".")[0], (value - start[name]).abs().max().item()
        found[part] = max(found[part], off)
    return found


@pytest.mark.parametrize("way", ["all", "last:1", "last:1 of kept features"])
@pytest.mark.parametrize("normalisation", ["average", "local", "frozen"])
def test_a_step_follows_the_written_out_objective(
    make_study: MakeStudy,
    make_images: MakeImages,
    plain_sgd: dict[str, Any],
    way: str,
    normalisation: str,
) -> None:
    """Autograd of the three weighted terms gives the same step, with kept features too."""
    part, keep = way[:6].strip(), "kept" in way
    weights = {"task_weight": 2.0, "anchor_weight": 0.5, "distillation_weight": 3.0}
    study = make_study(
        training=plain_sgd | weights | {"train": part}, backbone={"normalisation": normalisation}
    )
    first, images = build_model(study), make_images(8)
    model = moved(first)
    before, teacher = weights_of(model), copy.deepcopy(first).eval()

    other = copy.deepcopy(model).train()
    for module in other.modules():  # what does not train is as at evaluation in kept features
        if keep and not any(p.requires_grad for p in module.parameters()):
            module.eval()
    trained = {name: value for name, value in other.named_parameters() if value.requires_grad}
    x_BCHW = pixels_of(model, images)
    features_BD = other.features(x_BCHW)
    with torch.no_grad():
        wanted_BD = teacher.features(x_BCHW)
    start = dict(first.named_parameters())
    distance = torch.stack([
        (value - start[name].detach()).square().sum()
        for name, value in trained.items()
        if name.startswith("backbone.")
    ]).sum()  # fmt: skip
    objective = (
        2.0 * F.cross_entropy(other.heads["ct"](features_BD), images.labels)
        + 0.5 / 2 * distance
        + 3.0 * (features_BD - wanted_BD).square().mean()
    )
    slopes = dict(zip(trained, torch.autograd.grad(objective, list(trained.values())), strict=True))

    train_near(model, first, images, study, keep=keep)
    for name, value in weights_of(model).items():
        rate = 0.5 if name.startswith("heads.") else 0.125
        assert torch.allclose(value, before[name] - rate * slopes[name], rtol=1e-4, atol=1e-6), name


def test_a_strong_anchor_holds_the_backbone_while_the_head_learns(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """With rate * weight = 1 the backbone is one step from the start; without, many; heads move."""
    near, far = {"anchor_weight": 1e6, "backbone_lr": 1e-6}, {"backbone_lr": 1e-6}
    images, found = make_images(8), {}
    for name, training in {"near": near, "far": far}.items():
        study = make_study(training=plain_sgd | training)
        first = build_model(study)
        model = copy.deepcopy(first)
        before = train_near(model, first, images, study).loss
        after = train_near(model, first, images, study, steps=30).loss
        assert after < before
        found[name] = distances(model, first)
    assert found["near"]["backbone"] < 1e-6
    assert found["far"]["backbone"] > 3 * found["near"]["backbone"]
    assert found["near"]["heads"] > 1e-2


def test_an_anchor_alone_draws_the_backbone_back(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """From elsewhere, each step of SGD takes off the share rate * weight of the distance."""
    study = make_study(training=plain_sgd | {"anchor_weight": 4.0, "task_weight": 1e-6})
    first = build_model(study)
    model = moved(first)
    off = distances(model, first)["backbone"]
    for step in (1, 2, 3):
        train_near(model, first, make_images(8), study)
        assert distances(model, first)["backbone"] == pytest.approx(off / 2**step, rel=1e-3)


def test_the_penalty_is_the_mean_square_of_what_the_features_differ(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """It is torch's own mean squared error to the initial features in evaluation mode."""
    study = make_study(training={"distillation_weight": 2.5})
    first, images = build_model(study), make_images(6)
    model = moved(first)
    x_BCHW = pixels_of(model, images)
    features_BD = model.eval().features(x_BCHW)
    near = Near(model, study, arrays_of(first))
    found = near.penalty(x_BCHW, features_BD)
    with torch.no_grad():
        wanted_BD = first.eval().features(x_BCHW)
    assert torch.allclose(found, 2.5 * F.mse_loss(features_BD, wanted_BD), rtol=1e-6)
    (slope_BD,) = torch.autograd.grad(found, features_BD)
    by_hand_BD = 2.5 * 2 * (features_BD - wanted_BD) / features_BD.numel()
    assert torch.allclose(slope_BD, by_hand_BD, rtol=1e-5, atol=1e-9)


def test_training_moves_neither_the_teacher_nor_the_anchor(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """After a training the penalty of given features is what it was, to the last bit."""
    study = make_study(training=plain_sgd | {"anchor_weight": 0.5, "distillation_weight": 1.0})
    first, images = build_model(study), make_images(8)
    model, initial = moved(first), arrays_of(first)
    near, before = Near(model, study, initial), digest(initial)
    x_BCHW, features_BD = pixels_of(model, images), first.features(pixels_of(first, images))
    penalty = near.penalty(x_BCHW, features_BD.detach())
    batches = [Batch("ct", np.arange(8))] * 3
    train(model, {"ct": images}, batches, study, device=CPU, near=near)
    assert torch.equal(near.penalty(x_BCHW, features_BD.detach()), penalty)
    assert digest(initial) == before


def test_a_frozen_backbone_has_nothing_to_be_held(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """In a phase of the heads alone the penalty is 0, and no gradient is added."""
    study = make_study(training={"anchor_weight": 1.0, "distillation_weight": 1.0})
    first = build_model(study)
    model = moved(first)
    model.backbone.requires_grad_(requires_grad=False)
    near = Near(model, study, arrays_of(first))
    assert near.distillation_weight == 0
    x_BCHW = pixels_of(model, make_images(4))
    assert near.penalty(x_BCHW, model.features(x_BCHW)).item() == 0
    model(x_BCHW, "ct").sum().backward()
    near.gradient(model)
    assert all(value.grad is None for value in model.backbone.parameters())


def test_nothing_is_held_unless_it_is_asked_for(make_study: MakeStudy) -> None:
    """Without the two weights there is no second network in memory."""
    study = make_study()
    assert near_of(build_model(study), study, {}) is None


# At a site


HELD: dict[str, Any] = {"anchor_weight": 2.0, "distillation_weight": 2.0}


def answered(site: Site, order: Order) -> Reply:
    """Return the answer as it comes out of the wire at the coordinator."""
    return reply_from_record(respond(site, order_to_record(order)))


def changes(reply: Reply) -> dict[str, str]:
    assert reply.refusal == ""
    return {group: digest(arrays) for group, arrays in reply.groups.items()}


@pytest.mark.parametrize("normalisation", ["average", "local"])
def test_a_site_learns_the_same_over_the_wire_late_and_after_a_restart(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, normalisation: str
) -> None:
    """The initial arrays are the study's first, whenever they came, and however they travelled."""
    study = make_study(training=HELD, backbone={"normalisation": normalisation})
    first = build_model(study)
    now = moved(first)
    config = make_hospital()
    if normalisation == "average":  # else local arrays differ after a first round
        site = Site(config)
        changes(answered(site, make_order(study, number=1, model=first)))
        later = make_order(study, number=2, model=now, first=first, with_base=False)
        warm = changes(answered(site, later))
        assert changes(answered(Site(config), later)) == warm
        site.prepare(study).store.clear()
    late = make_order(study, number=2, model=now, first=first)
    over_wire = changes(answered(Site(config), late))
    Site(config).prepare(study).store.clear()
    assert changes(Site(config).answer(late).reply) == over_wire
    if normalisation == "average":
        assert over_wire == warm


def test_a_site_holds_its_network_near_what_came_with_the_base(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Another initial backbone under the same global arrays gives another change."""
    study = make_study(training=HELD)
    first, site = build_model(study), Site(make_hospital())
    now = moved(first)
    found = [
        changes(answered(site, make_order(study, number=2, model=now, first=start)))
        for start in (first, moved(first, 0.2), now)
    ]
    assert len({tuple(sorted(one.items())) for one in found}) == 3


def test_a_base_without_its_initial_arrays_is_refused(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Arrays that are missing, too many or misshapen get the code ``order``; then it works."""
    study, site = make_study(training=HELD), Site(make_hospital())
    order = make_order(study)
    assert order.base is not None
    base = dict(order.base)
    name = next(name for name in base if name.startswith(INITIAL))
    plain = {name: value for name, value in base.items() if not name.startswith(INITIAL)}
    wrong = [
        plain,
        {key: value for key, value in base.items() if key != name},
        base | {f"{INITIAL}heads.ct.weight": np.zeros((2, 3), np.float32)},
        base | {name: np.zeros(3, np.float32)},
    ]
    for sent in wrong:
        assert (
            answered(site, order._replace(base=sent, base_digest=digest(sent))).refusal == "order"
        )
    assert answered(site, order).refusal == ""
    other = make_order(make_study())
    sent = {**(other.base or {}), name: base[name]}
    plain_site = Site(make_hospital("site-b"))
    refused = answered(plain_site, other._replace(base=sent, base_digest=digest(sent)))
    assert refused.refusal == "order"
