"""Laws of training with every loss, optimizer, schedule and share of dropout that a study names."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from client.anchor import near_of
from client.config import SiteConfig
from client.dataset import Batch, Images, round_of_batches
from client.evaluate import logits_of
from client.features import channel_statistics, frozen_features
from client.plan import Plan
from client.preprocess import normalise
from client.privacy import preflight, train_privately
from client.schedule import rate_factors
from client.site import Site, respond
from client.train import Trained, train
from common.arrays import digest
from common.errors import DivergedError
from common.messages import Order, Reply, order_to_record, reply_from_record
from common.models import FederatedModel, build_model
from common.study import Study
from common.training import Training
from common.weights import take

CPU = torch.device("cpu")
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]

LOSSES: list[str] = list(get_args(Training.model_fields["loss"].annotation))
OPTIMIZERS: list[str] = list(get_args(Training.model_fields["optimizer"].annotation))
SCHEDULES: list[dict[str, Any]] = [
    {"kind": "constant", "warmup_rounds": 1.5},
    {"kind": "cosine"},
    {"kind": "restarts", "period": 0.5, "growth": 2},
    {"kind": "step", "period": 0.5},
    {"kind": "plateau", "patience": 1},
]
PLAIN_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "head_lr": 0.5,
    "backbone_lr": 0.5,
}


def run(model: FederatedModel, images: dict[str, Images], study: Study, **given: Any) -> Trained:
    order = round_of_batches(images, study.training, 0)
    return train(model, images, order, study, device=CPU, **given)


def one_step(model: FederatedModel, images: Images, study: Study, **given: Any) -> Trained:
    """Train on all images as a single batch."""
    batch = Batch("ct", np.arange(len(images)))
    return train(model, {"ct": images}, [batch], study, device=CPU, **given)


def bytes_of(model: FederatedModel) -> str:
    return digest(take(model, model.state_dict()))


def weights_of(model: FederatedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# Optimizers, schedules and losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule["kind"]))
def test_every_optimizer_follows_every_schedule(
    optimizer: str, schedule: dict[str, Any], make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Two rounds of each leave every weight finite and another than before."""
    rates = {"head_lr": 0.1, "backbone_lr": 0.1}
    study = make_study(rounds=4, training={"optimizer": optimizer, "schedule": schedule} | rates)
    model, images = build_model(study), {"ct": make_images(10)}
    for number in (1, 2):
        before = weights_of(model)
        assert run(model, images, study, number=number, lowered=number - 1).steps == 3
        for name, value in model.named_parameters():
            assert bool(value.isfinite().all()), name
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule["kind"]))
def test_a_step_is_as_long_as_the_schedule_says(
    schedule: dict[str, Any], make_study: MakeStudy, make_images: MakeImages
) -> None:
    """A step of plain SGD in the second round is the rate times the factor times the gradient."""
    plain, images = make_study(training=PLAIN_SGD), make_images(8)
    study = make_study(rounds=4, training=PLAIN_SGD | {"schedule": schedule})
    model, other = build_model(study), build_model(plain)
    before = weights_of(model)
    one_step(model, images, study, number=2, lowered=1)
    one_step(other, images, plain, number=2, lowered=1)
    (factor,) = rate_factors(study.training.schedule, 2, study.rounds, 1, lowered=1)
    assert 0 < factor <= 1
    for name, value in weights_of(other).items():
        expected = before[name] + factor * (value - before[name])
        assert torch.allclose(model.get_parameter(name), expected, atol=1e-6), name


@pytest.mark.parametrize(
    ("class_weights", "sampling"),
    [("none", "shuffle"), ("balanced", "shuffle"), ("none", "balanced")],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls(
    loss: str, class_weights: str, sampling: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Bright against dark is learnt with each, and the same seed gives the same bytes."""
    training = {"loss": loss, "class_weights": class_weights, "sampling": sampling}
    study = make_study(training={"batch_size": 12, "local_epochs": 3} | training)
    images, found = {"ct": make_images(24)}, []
    for _ in range(2):
        model = build_model(study)
        first = run(model, images, study).loss
        last = run(model, images, study, number=2).loss
        assert last < 0.5 * first
        found.append(bytes_of(model))
    assert found[0] == found[1]


def test_weights_of_classes_are_the_sites_own(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """The loss that is told is the mean of w[y] times the loss, w from all training images."""
    study = make_study(
        backbone={"normalisation": "frozen"},
        training={"class_weights": "balanced", "head_lr": 1e-30, "backbone_lr": 1e-30},
    )
    some = make_images(10)
    labels = torch.tensor([0] * 8 + [1] * 2)
    images = Images(some.pixels, labels, some.patients)
    model = build_model(study)
    done = run(model, {"ct": images}, study)
    with torch.no_grad():
        logits = model(normalise(images.pixels[:], *channel_statistics(model, CPU)), "ct").double()
    log_p = logits.log_softmax(1)[torch.arange(10), labels]
    weights = torch.tensor([10 / 16, 10 / 4]).double()[labels]
    assert done.loss == pytest.approx((-weights * log_p).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "training",
    [
        *({"loss": loss} for loss in LOSSES),
        {"label_smoothing": 0.1},
        {"loss": "hybrid", "class_weights": "balanced"},
        {"distillation_weight": 0.1, "task_weight": 2.0},
    ],
    ids=str,
)
def test_every_objective_may_diverge(
    training: dict[str, Any], make_study: MakeStudy, make_images: MakeImages
) -> None:
    """A wild rate ends the training with an error, whatever is minimised."""
    wild = {"optimizer": "sgd", "head_lr": 1e20, "backbone_lr": 1e20, "local_epochs": 5}
    study = make_study(training=wild | training)
    model = build_model(study)
    near = near_of(model, study, take(model, model.state_dict()))
    with pytest.raises(DivergedError) as refusal:
        run(model, {"ct": make_images(24)}, study, near=near)
    assert "training.head_lr" in refusal.value.remedy


@pytest.mark.parametrize("loss", LOSSES)
def test_a_diverged_round_leaves_the_last_good_state(
    loss: str,
    make_study: MakeStudy,
    make_hospital: Callable[..., SiteConfig],
    make_order: Callable[..., Order],
    tmp_path: Any,
) -> None:
    """The refusal has a code, and the site's next round is as if the bad one had never been."""

    def answered(site: Site, order: Order) -> Reply:
        return reply_from_record(respond(site, order_to_record(order)))

    study = make_study(training={"loss": loss, "class_weights": "balanced"})
    good, config = make_order(study), make_hospital()
    head = {n: np.full_like(value, 1e38) for n, value in good.groups["head:ct"].items()}
    site, fresh = Site(config), Site(config.model_copy(update={"state_dir": tmp_path / "other"}))
    bad = good._replace(groups={**good.groups, "head:ct": head})
    refused = answered(site, bad)
    assert (refused.refusal, refused.groups) == ("diverged", {})
    one, other = (answered(each, good) for each in (site, fresh))
    assert one.refusal == other.refusal == ""
    assert {g: digest(a) for g, a in one.groups.items()} == {
        g: digest(a) for g, a in other.groups.items()
    }


# Dropout


def dropping(make_study: MakeStudy, share: float, **training: Any) -> Study:
    # Frozen batch norm, so that what the backbone gives of an image is the same in both modes.
    training = PLAIN_SGD | {"dropout": share} | training
    return make_study(rounds=4, backbone={"normalisation": "frozen"}, training=training)


def test_dropout_adds_no_array_and_draws_nothing_by_default(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """The default draws no random number; with any share the network has the same arrays."""
    plain, study = dropping(make_study, 0.0), dropping(make_study, 0.5)
    model, other = build_model(plain), build_model(study)
    assert list(model.state_dict()) == list(other.state_dict())
    assert bytes_of(model) == bytes_of(other)
    before = torch.get_rng_state()
    run(model, {"ct": make_images(8)}, plain)
    assert torch.equal(torch.get_rng_state(), before)
    run(other, {"ct": make_images(8)}, study)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("part", ["all", "last:1", "head"])
@pytest.mark.parametrize("kept", ["kept", "anew"])
def test_dropped_features_are_torchs(
    part: str, kept: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """A step drops the features with torch's mask before the head, behind frozen stages too."""
    study, images = dropping(make_study, 0.5, train=part), make_images(8)
    model = build_model(study)
    start = copy.deepcopy(model).train()
    features = frozen_features(model, CPU, 32) if kept == "kept" else None
    assert (features is None) == (part == "all" or kept == "anew")
    torch.manual_seed(5)
    one_step(model, images, study, features=features)

    x_BD = start.features(normalise(images.pixels[:], *channel_statistics(start, CPU)))
    torch.manual_seed(5)
    logits = start.heads["ct"](torch.nn.functional.dropout(x_BD, 0.5))
    loss = torch.nn.functional.cross_entropy(logits, images.labels)
    named = {n: value for n, value in start.named_parameters() if value.requires_grad}
    slopes = torch.autograd.grad(loss, list(named.values()))
    for (name, value), slope in zip(named.items(), slopes, strict=True):
        assert torch.allclose(model.get_parameter(name), value - 0.5 * slope, atol=1e-5), name


@pytest.mark.parametrize("part", ["all", "last:1", "head"])
def test_nothing_is_dropped_where_a_model_is_measured(
    part: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """After training with dropout, logits are those of the same weights without any."""
    study, images = dropping(make_study, 0.5, train=part), make_images(8)
    model = build_model(study)
    features = frozen_features(model, CPU, 32)
    run(model, {"ct": images}, study, features=features)
    plain = build_model(dropping(make_study, 0.0, train=part))
    plain.load_state_dict(model.state_dict())
    expected = logits_of(plain, images, "ct", device=CPU)
    for where in (None, features):
        found = logits_of(model, images, "ct", device=CPU, features=where)
        assert np.allclose(found, expected, atol=1e-5)


# With differential privacy


def quiet(images: Images, **given: Any) -> Plan:
    """Return a plan of one step without noise, which draws every patient."""
    return Plan(0.0, 1.0, 1, images.n_patients, 1e6, 64, 8.0, 1e-3)._replace(**given)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule["kind"]))
def test_private_steps_follow_the_schedule(
    schedule: dict[str, Any], make_study: MakeStudy, make_images: MakeImages
) -> None:
    """A private step is the rate times the factor times the step without a schedule."""
    plain, images = dropping(make_study, 0.0), make_images(8)
    study = dropping(make_study, 0.0, schedule=schedule)
    model, other = build_model(study), build_model(plain)
    before, plan = weights_of(model), quiet(images)
    for network, asked in ((model, study), (other, plain)):
        train_privately(network, {"ct": images}, asked, plan, device=CPU, number=2, lowered=1)
    (factor,) = rate_factors(study.training.schedule, 2, study.rounds, 1, lowered=1)
    for name, value in weights_of(other).items():
        expected = before[name] + factor * (value - before[name])
        assert torch.allclose(model.get_parameter(name), expected, atol=1e-5), name


@pytest.mark.parametrize("part", ["all", "last:1", "head"])
def test_dropout_trains_privately(
    part: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Single patients' gradients can be had of it, and its masks hang on no seed of the study."""
    study, images = dropping(make_study, 0.5, train=part), make_images(8)
    preflight(build_model(study), study)
    found = []
    for _ in range(2):
        model = build_model(study)
        torch.manual_seed(study.seed)
        train_privately(model, {"ct": images}, study, quiet(images), device=CPU)
        found.append(bytes_of(model))
    assert found[0] != found[1]


def test_the_weight_of_the_task_weighs_private_gradients(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Twice the weight is twice the step, where no gradient is cut and nothing pulls yet."""
    images, found = make_images(8), []
    for weight in (1.0, 2.0):
        study = dropping(make_study, 0.0, anchor_weight=1.0, task_weight=weight)
        model = build_model(study)
        before = weights_of(model)
        near = near_of(model, study, take(model, model.state_dict()))
        train_privately(model, {"ct": images}, study, quiet(images), device=CPU, near=near)
        found.append({n: value - before[n] for n, value in weights_of(model).items()})
    for name, once in found[0].items():
        assert torch.allclose(found[1][name], 2 * once, atol=1e-5), name
