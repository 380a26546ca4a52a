"""Laws of the local training of one round."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.augment import augmented
from client.dataset import Batch, Images, batches
from client.features import channel_statistics, frozen_features
from client.preprocess import normalise
from client.train import Trained, train
from common.arrays import digest
from common.errors import DivergedError
from common.imaging import Augmentation, varied
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import take

CPU = torch.device("cpu")
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]


def run(
    model: FederatedModel,
    images: dict[str, Images],
    study: Study,
    *,
    epochs: int = 1,
    seed: int = 0,
) -> Trained:
    sizes = {task: len(data) for task, data in images.items()}
    order = batches(sizes, batch_size=study.training.batch_size, epochs=epochs, seed=seed)
    return train(model, images, order, study, device=CPU)


def one_step(model: FederatedModel, images: Images, study: Study, task: str = "ct") -> Trained:
    """Train on all images as a single batch."""
    batch = Batch(task, np.arange(len(images)))
    return train(model, {task: images}, [batch], study, device=CPU)


def loss_on(model: FederatedModel, images: Images, task: str = "ct") -> Tensor:
    """Return the cross-entropy of the model as it is, in the mode that it is in."""
    x_BCHW = normalise(images.pixels[:], *channel_statistics(model, CPU))
    return torch.nn.functional.cross_entropy(model(x_BCHW, task), images.labels)


def gradients_by_autograd(model: FederatedModel, images: Images) -> dict[str, Tensor]:
    other = copy.deepcopy(model).train()
    named = {name: value for name, value in other.named_parameters() if value.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss_on(other, images), list(named.values()))))  # noqa: B905 - as many gradients as were asked for


def bytes_of(model: FederatedModel) -> str:
    return digest(take(model, model.state_dict()))


def floats_of(model: torch.nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_the_same_seed_gives_the_same_bytes(
    optimizer: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Two trainings from one start agree to the last bit, and another order of batches does not."""
    study = make_study(("ct", "mr"), training={"optimizer": optimizer})
    images = {"ct": make_images(10), "mr": make_images(9, classes=3, channels=3)}
    found = []
    for seed in (1, 1, 2):
        model = build_model(study)
        found.append((run(model, images, study, seed=seed), bytes_of(model)))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]
    assert found[0][0].steps == 3 + 3


def test_one_step_of_sgd_is_arithmetic(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """Every parameter becomes w - lr * gradient, by the rate of its part of the network."""
    study, images = make_study(training=plain_sgd), make_images(8)
    model = build_model(study)
    before, slopes = floats_of(model), gradients_by_autograd(model, images)
    done = one_step(model, images, study)
    assert done.steps == 1
    for name, value in model.named_parameters():
        rate = 0.5 if name.startswith("heads.") else 0.125
        assert torch.allclose(value, before[name] - rate * slopes[name], rtol=1e-5, atol=1e-6), name


def test_weight_decay_pulls_matrices_alone(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """Decay adds its share of w to the gradient of arrays of two and more dimensions."""
    study, images = make_study(training=plain_sgd | {"weight_decay": 0.5}), make_images(8)
    model = build_model(study)
    before, slopes = floats_of(model), gradients_by_autograd(model, images)
    one_step(model, images, study)
    for name, value in model.named_parameters():
        rate = 0.5 if name.startswith("heads.") else 0.125
        decay = 0.5 if value.ndim > 1 else 0.0
        expected = before[name] - rate * (slopes[name] + decay * before[name])
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    ("train_part", "normalisation"),
    [("head", "average"), ("last:1", "average"), ("last:1", "local"), ("all", "frozen")],
)
def test_what_is_frozen_does_not_change(
    train_part: str, normalisation: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Frozen weights and the statistics of frozen layers are the same bits after training."""
    study = make_study(training={"train": train_part}, backbone={"normalisation": normalisation})
    model = build_model(study)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    living = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for name in ("running_mean", "running_var")
    }
    before = floats_of(model)
    run(model, {"ct": make_images(12)}, study, epochs=2)
    changed = {
        name for name, value in floats_of(model).items() if not torch.equal(value, before[name])
    }
    assert changed == trained | living
    assert before.keys() > changed


def test_the_loss_falls_on_what_can_be_told_apart(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Bright against dark is learnt within a few epochs."""
    # Batch norm on 4 images of one pixel each would be noise.
    study, images = make_study(training={"batch_size": 12}), {"ct": make_images(24)}
    model = build_model(study)
    first, *_, last = [run(model, images, study, seed=epoch).loss for epoch in range(8)]
    assert last < 0.1 * first


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_the_reported_loss_is_the_mean_over_the_images(
    loss: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """With batches of unequal size too, each image counts the same."""
    study = make_study(
        backbone={"normalisation": "frozen"},
        training={"loss": loss, "head_lr": 1e-30, "backbone_lr": 1e-30, "focal_gamma": 2.0},
    )
    model, images = build_model(study), make_images(10)
    done = run(model, {"ct": images}, study)
    with torch.no_grad():
        logits = model(normalise(images.pixels[:], *channel_statistics(model, CPU)), "ct").double()
    log_p = logits.log_softmax(1)[torch.arange(10), images.labels]
    weight = (1 - log_p.exp()) ** 2 if loss == "focal" else 1.0
    assert done.steps == 3
    assert done.loss == pytest.approx((-weight * log_p).mean().item(), rel=1e-5)


def test_no_batches_change_nothing(make_study: MakeStudy, make_images: MakeImages) -> None:
    """Training on nothing takes no step, has no loss and leaves every bit."""
    study = make_study()
    model = build_model(study)
    before = bytes_of(model)
    assert train(model, {"ct": make_images()}, [], study, device=CPU) == (0, 0.0)
    assert bytes_of(model) == before


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_task_leaves_the_others_head_alone(
    optimizer: str, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Steps on one task move the backbone and its head, never the head of another."""
    study = make_study(("ct", "mr"), training={"optimizer": optimizer})
    model = build_model(study)
    before = floats_of(model.heads)
    run(model, {"ct": make_images(12)}, study)
    after = floats_of(model.heads)
    assert not torch.equal(after["ct.weight"], before["ct.weight"])
    assert torch.equal(after["mr.weight"], before["mr.weight"])
    assert torch.equal(after["mr.bias"], before["mr.bias"])


def test_a_wild_learning_rate_diverges(make_study: MakeStudy, make_images: MakeImages) -> None:
    """A loss that is no longer finite ends the training, with a remedy."""
    study = make_study(training={"optimizer": "sgd", "head_lr": 1e20, "backbone_lr": 1e20})
    with pytest.raises(DivergedError) as refusal:
        run(build_model(study), {"ct": make_images(24)}, study, epochs=5)
    assert "training.head_lr" in refusal.value.remedy


def test_the_last_step_may_not_diverge_either(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """A finite loss whose step leaves weights that are not finite is a divergence too."""
    study = make_study(training={"optimizer": "sgd", "backbone_lr": 1e38, "weight_decay": 1e10})
    with pytest.raises(DivergedError, match="no longer finite after 1 steps"):
        one_step(build_model(study), make_images(8), study)


@pytest.mark.parametrize("clip_norm", [1e-3, 1e9])
def test_the_clipped_gradient_is_bounded(
    clip_norm: float, make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """A step is the gradient scaled to the bound where it is longer, and untouched where not."""
    study = make_study(training=plain_sgd | {"backbone_lr": 0.5, "clip_norm": clip_norm})
    model, images = build_model(study), make_images(8)
    before = floats_of(model)
    slopes = gradients_by_autograd(model, images).values()
    length = float(torch.sqrt(sum((slope.double() ** 2).sum() for slope in slopes)))  # type: ignore[arg-type]
    assert length > 1e-2
    one_step(model, images, study)
    moved = [value.detach().double() - before[n].double() for n, value in model.named_parameters()]
    step = float(torch.sqrt(sum((part**2).sum() for part in moved)))  # type: ignore[arg-type]
    assert step == pytest.approx(0.5 * min(length, clip_norm), rel=1e-3)


def distance_trained(study: Study, images: Images) -> tuple[float, str]:
    model = build_model(study)
    start = copy.deepcopy(model)
    run(model, {"ct": images}, study, epochs=3)
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return sum((one - other).square().sum().item() for one, other in pairs), bytes_of(model)


def test_the_proximal_term_holds_the_weights_back(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """A large mu stays nearer to the start than a small one; with 0, FedProx is FedAvg."""
    images = make_images(16)

    def trained(strategy: str, options: dict[str, float]) -> tuple[float, str]:
        study = make_study(
            training={"optimizer": "sgd", "head_lr": 1e-2, "backbone_lr": 1e-2},
            federation={"strategy": strategy, "options": options},
        )
        return distance_trained(study, images)

    free, none = trained("fedavg", {}), trained("fedprox", {"proximal_mu": 0.0})
    loose, tight = (trained("fedprox", {"proximal_mu": mu})[0] for mu in (1.0, 10.0))
    assert none == free
    assert tight < loose < free[0]


# Augmentation


def varying(study: Study, *tasks: str, **changes: Any) -> Study:
    """Return a study of which some tasks vary their training images."""
    asked = Augmentation(**changes)
    found = {
        name: task.model_copy(update={"augmentation": asked}) if name in tasks else task
        for name, task in study.tasks.items()
    }
    return study.model_copy(update={"tasks": found})


def varied_by_hand(images: Images, study: Study, seed: int, task: str = "ct") -> Images:
    asked = study.tasks[task].augmentation
    assert asked is not None
    by = varied(asked, study.tasks[task].modality)
    pixels = augmented(images.pixels[:], by, torch.Generator().manual_seed(seed))
    return Images(pixels, images.labels, images.patients)


def test_training_sees_the_varied_images(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """A step with augmentation is the step without it on images that were varied beforehand."""
    plain, images = make_study(training=plain_sgd), make_images(8)
    study = varying(plain, "ct", rotation=90, flip=True, noise=0.1)
    batch = Batch("ct", np.arange(8))
    found, expected = build_model(study), build_model(plain)
    generator = torch.Generator().manual_seed(3)
    train(found, {"ct": images}, [batch], study, device=CPU, generator=generator)
    train(expected, {"ct": varied_by_hand(images, study, 3)}, [batch], plain, device=CPU)
    assert bytes_of(found) == bytes_of(expected)


def test_an_image_is_varied_anew_each_time(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """Two steps on one batch see different images, and the images that are kept stay."""
    standing = plain_sgd | {"head_lr": 1e-30, "backbone_lr": 1e-30}
    study = varying(make_study(training=standing), "ct", rotation=90)
    images = make_images(8)
    before = images.pixels[:].clone()
    model = build_model(study)
    losses = [one_step(model, images, study).loss for _ in range(2)]
    assert losses[0] != losses[1]
    assert torch.equal(images.pixels[:], before)


def test_changes_of_nothing_train_as_none(make_study: MakeStudy, make_images: MakeImages) -> None:
    """An augmentation with all zeros leaves the same bytes as no augmentation."""
    zeros = dict.fromkeys(["rotation", "zoom", "contrast", "brightness", "elastic", "noise"], 0.0)
    plain, images = make_study(), {"ct": make_images(10)}
    found = []
    for study in (plain, varying(plain, "ct", flip=False, **zeros)):
        model = build_model(study)
        found.append((run(model, images, study), bytes_of(model)))
    assert found[0] == found[1]


def test_a_task_without_augmentation_is_not_varied(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Only the tasks that ask for it have their images varied."""
    plain = make_study(("ct", "mr"))
    images = {"mr": make_images(9, classes=3)}
    found = []
    for study in (plain, varying(plain, "ct", rotation=90)):
        model = build_model(study)
        run(model, images, study)
        found.append(bytes_of(model))
    assert found[0] == found[1]


def test_heads_train_on_the_features_of_varied_images(
    make_study: MakeStudy, make_images: MakeImages, plain_sgd: dict[str, Any]
) -> None:
    """Where features are kept, a varied task goes through the frozen backbone, another does not."""
    plain = make_study(("ct", "mr"), training=plain_sgd | {"train": "head"})
    study = varying(plain, "ct", rotation=90, flip=True)
    images = {"ct": make_images(8), "mr": make_images(9, classes=3)}
    order = [Batch("ct", np.arange(8)), Batch("mr", np.arange(9))]
    model = build_model(study)
    features, generator = frozen_features(model, CPU, 32), torch.Generator().manual_seed(3)
    train(model, images, order, study, device=CPU, features=features, generator=generator)
    assert features is not None
    assert set(features._known) == {images["mr"]}

    start = build_model(plain)
    seen = varied_by_hand(images["ct"], study, 3)
    x_BD = start.eval().features(normalise(seen.pixels[:], *channel_statistics(start, CPU)))
    loss = torch.nn.functional.cross_entropy(start.heads["ct"](x_BD), seen.labels)
    before, after = (m.get_parameter("heads.ct.weight") for m in (start, model))
    slope, *_ = torch.autograd.grad(loss, [before])
    assert torch.allclose(after, before - 0.5 * slope, atol=1e-6)
