"""Laws of making the sites' features alike."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from client.alignment import Alignment, alignment_of, check_place, ramp
from client.alone import train_alone
from client.config import SiteConfig
from client.dataset import Batch, Images
from client.features import channel_statistics, frozen_features
from client.preprocess import normalise
from client.site import Site, respond
from client.train import train
from common.errors import OrderError
from common.layout import DISCRIMINATOR, SITES, without_discriminator
from common.messages import Order, order_to_record, reply_from_record
from common.models import FederatedModel, build_model, build_without_discriminator
from common.study import Study
from common.weights import layout_of, take

CPU = torch.device("cpu")
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]

ALIGNED: dict[str, Any] = {"adversarial_weight": 2.0, "adversarial_sites": 3}


def discriminator_of(model: FederatedModel) -> nn.Module:
    assert model.discriminator is not None
    return model.discriminator


def test_the_ramp_is_that_of_its_source() -> None:
    """2 / (1 + exp(-10 p)) - 1: nothing at first, nearly all at the end (Ganin et al. 2016)."""
    assert ramp(0) == 0
    assert ramp(0.5) == pytest.approx(np.tanh(2.5))
    assert 0.9999 < ramp(1) < 1


def test_the_backbone_hides_and_the_discriminator_tells(make_study: MakeStudy) -> None:
    """By hand: weight * (softmax - 1/S) reaches the features, softmax - own the discriminator."""
    study = make_study(training=ALIGNED)
    linear = nn.Linear(5, 3)
    features_BD = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    Alignment(linear, study, 1, 2).loss(features_BD, 0.5).backward()

    weights, x = linear.weight.detach().numpy(), features_BD.detach().numpy()
    logits = x @ weights.T + linear.bias.detach().numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    hidden = 2.0 * ramp(1.5 / 3) * (p - 1 / 3) / 4 @ weights
    told = (p - np.eye(3)[1]) / 4
    assert features_BD.grad is not None
    assert linear.weight.grad is not None
    np.testing.assert_allclose(features_BD.grad.numpy(), hidden, atol=1e-6)
    np.testing.assert_allclose(linear.weight.grad.numpy(), told.T @ x, atol=1e-6)


def test_the_backbone_hides_from_the_discriminator_that_came(make_study: MakeStudy) -> None:
    """What the site's own copy has learned in the round changes nothing of the push."""
    study, linear = make_study(training=ALIGNED), nn.Linear(5, 3)
    alignment, pushes = Alignment(linear, study, 0, 3), []
    x_BD = torch.randn(4, 5)
    for _ in range(2):
        features_BD = x_BD.clone().requires_grad_()
        alignment.loss(features_BD, 0.5).backward()
        assert features_BD.grad is not None
        pushes.append(features_BD.grad)
        with torch.no_grad():
            linear.weight.mul_(-3)
    assert torch.equal(*pushes)


def test_who_cannot_be_told_is_left_alone(make_study: MakeStudy) -> None:
    """A discriminator that says each number equally often pushes features nowhere."""
    linear = nn.Linear(5, 3)
    for value in linear.parameters():
        nn.init.zeros_(value)
    features_BD = torch.randn(4, 5, requires_grad=True)
    Alignment(linear, make_study(training=ALIGNED), 0, 3).loss(features_BD, 0.5).backward()
    assert features_BD.grad is not None
    assert features_BD.grad.abs().max() < 1e-8


@pytest.mark.parametrize("train_what", ["all", "last:1"])
def test_a_step_follows_the_written_out_objective(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any], train_what: str
) -> None:
    """Autograd of the three terms gives the same step, with kept features too."""
    study = make_study(
        training=plain_sgd | ALIGNED | {"train": train_what},
        backbone={"normalisation": "frozen"},
    )
    model, images = build_model(study), make_images(8)
    other = copy.deepcopy(model)
    alignment = alignment_of(model, study, 2, 3)
    batches = [Batch("ct", np.arange(8))]
    features = frozen_features(model, CPU, 32)
    assert (features is None) == (train_what == "all")
    train(
        model, {"ct": images}, batches, study,
        device=CPU, number=3, alignment=alignment, features=features,
    )  # fmt: skip

    x_BD = other.train().features(normalise(images.pixels[:], *channel_statistics(other, CPU)))
    loss = F.cross_entropy(other.classify(x_BD, "ct"), images.labels)
    hides = F.cross_entropy(discriminator_of(other)(x_BD), torch.full((8, 3), 1 / 3))
    own = torch.full((8,), 2)
    tells = F.cross_entropy(discriminator_of(other)(x_BD.detach()), own)
    names = {name: value for name, value in other.named_parameters() if value.requires_grad}
    rest = [name for name in names if not name.startswith(DISCRIMINATOR)]
    last = [name for name in names if name.startswith(DISCRIMINATOR)]
    pushed = torch.autograd.grad(
        loss + 2.0 * ramp(2 / 3) * hides, [names[name] for name in rest], retain_graph=True
    )
    taught = torch.autograd.grad(tells, [names[name] for name in last])
    after = dict(model.named_parameters())
    for name, gradient in zip([*rest, *last], [*pushed, *taught], strict=True):
        rate = 0.125 if name.startswith("backbone.") else 0.5
        torch.testing.assert_close(after[name], names[name] - rate * gradient, msg=name)


def test_a_discriminator_changes_nothing_of_the_rest(make_study: MakeStudy) -> None:
    """The rest of the network begins and travels as without one; its arrays are a group of all."""
    plain, study = make_study(), make_study(training=ALIGNED)
    model = build_model(study)
    own, first = take(model, model.state_dict()), build_model(plain)
    bare = without_discriminator(own)
    assert list(bare) == list(first.state_dict())
    assert all(np.array_equal(bare[n], v.numpy()) for n, v in first.state_dict().items())
    assert list(build_without_discriminator(study).state_dict()) == list(bare)
    without, layout = layout_of(first, plain), layout_of(model, study)
    assert SITES not in without.groups
    assert layout.groups == dict(without.groups) | {SITES: tuple(n for n in own if n not in bare)}
    assert layout.groups_of(["ct"]) == ("shared", "statistics", "sites", "head:ct")
    features = model.get_parameter("heads.ct.weight").shape[1]
    assert sum(own[n].size for n in layout.groups[SITES]) == 64 * (features + 1) + 3 * (64 + 1)


@pytest.mark.parametrize("place", [None, 3])
def test_a_site_without_a_number_does_not_train(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, place: int | None
) -> None:
    """An order that gives no number, or one too high, is refused before anything is trained."""
    study, site = make_study(training=ALIGNED), Site(make_hospital())
    with pytest.raises(OrderError):
        check_place(study, place)
    order = make_order(study)._replace(place=place)
    assert site.answer(order).reply.refusal == "order"
    assert site.answer(order._replace(kind="evaluate")).reply.refusal == ""
    check_place(make_study(), place)


def test_a_site_teaches_its_own_number(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The reply has the discriminator's change, weighed as the backbone's, by the site's number."""
    study, site = make_study(training=ALIGNED), Site(make_hospital())
    bias = f"{DISCRIMINATOR}3.bias"
    for place in range(3):
        record = respond(site, order_to_record(make_order(study)._replace(place=place)))
        reply = reply_from_record(record)
        assert reply.refusal == ""
        change = reply.groups[SITES][bias]
        assert change.argmax() == place
        assert (np.delete(change, place) < 0).all()
        assert reply.weights[SITES] == reply.weights["shared"]


def test_alone_there_is_nothing_to_align(make_study: MakeStudy, make_images: MakeImages) -> None:
    """A site by itself trains as in a study without alignment, to the last bit."""
    found = []
    for training in ({}, ALIGNED):
        study = make_study(training=training)
        model = build_model(study)
        train_alone(model, {"ct": make_images(8)}, study, site="site-a", device=CPU)
        found.append(without_discriminator(take(model, model.state_dict())))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
