"""Laws of batch normalisation with the statistics of the images at hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.adapted_statistics import statistics_of
from client.config import SiteConfig
from client.dataset import Images
from client.evaluate import logits_of, state_of
from client.preprocess import normalise
from client.site import Site
from common import metrics_wire
from common.arrays import digest
from common.errors import StudyError
from common.messages import Order
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import take

CPU = torch.device("cpu")
ADAPTED = {"normalisation": "adapted"}
MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
MakeImages = Callable[..., Images]


def model_of(study: Study) -> FederatedModel:
    """Return the study's network with statistics that no image would give."""
    model = build_model(study)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(0.25)
    return model.eval()


def entering(model: FederatedModel, images: Images) -> NDArray[np.float64]:
    """Return what enters the first batch norm, (N, C, H, W)."""
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    found: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (model.mean, model.std))
    with torch.no_grad():
        model.features(normalise(images.pixels[:], mean, std))
    handle.remove()
    return found[0].double().numpy()


def state_digest(model: FederatedModel) -> str:
    return digest(take(model, model.state_dict()))


@pytest.mark.parametrize("n", [12, 100])
def test_statistics_are_means_over_batches(
    n: int, make_study: MakeStudy, make_images: MakeImages
) -> None:
    """The first layer's are those of its inputs, by NumPy: of up to 64 images, or of two halves."""
    model, images = model_of(make_study()), make_images(n)
    halves = np.array_split(entering(model, images), -(-n // 64))
    means = np.mean([half.mean(axis=(0, 2, 3)) for half in halves], axis=0)
    spreads = np.mean([half.var(axis=(0, 2, 3), ddof=1) for half in halves], axis=0)
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    with statistics_of(model, images, device=CPU):
        assert first.running_mean is not None
        assert first.running_var is not None
        np.testing.assert_allclose(first.running_mean.numpy(), means, atol=1e-5)
        np.testing.assert_allclose(first.running_var.numpy(), spreads, rtol=1e-4)
        assert not model.training


def test_the_network_gets_its_own_back(make_study: MakeStudy, make_images: MakeImages) -> None:
    """Afterwards not a bit of it differs, counters among it, also where something fails within."""
    model = model_of(make_study())
    before, momenta = state_digest(model), [getattr(m, "momentum", None) for m in model.modules()]
    with statistics_of(model, make_images(), device=CPU):
        assert state_digest(model) != before
    assert state_digest(model) == before
    with pytest.raises(KeyError), statistics_of(model, make_images(), device=CPU):
        raise KeyError
    assert state_digest(model) == before
    assert [getattr(m, "momentum", None) for m in model.modules()] == momenta


def test_a_single_patient_has_the_stored_ones(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """Of one image, two or many of one patient, or none, nothing is estimated."""
    model, many = model_of(make_study()), make_images(9)
    one = dataclasses.replace(many, patients=("patient",) * 9)
    for images in (make_images(1), make_images(2), one, make_images(0)):
        stored, adapted = (
            logits_of(model, images, "ct", device=CPU, adapted=which) for which in (False, True)
        )
        assert np.array_equal(stored, adapted)
    stored, adapted = (
        logits_of(model, make_images(3), "ct", device=CPU, adapted=which) for which in (False, True)
    )
    assert not np.array_equal(stored, adapted)


def test_no_chance_is_in_it(make_study: MakeStudy, make_images: MakeImages) -> None:
    """The same images give the same logits, whatever was drawn before; others' images count."""
    model, images = model_of(make_study(training={"dropout": 0.5})), make_images()
    first = logits_of(model, images, "ct", device=CPU, adapted=True)
    torch.rand(3)
    assert np.array_equal(logits_of(model, images, "ct", device=CPU, adapted=True), first)
    assert not np.allclose(logits_of(model, images, "ct", device=CPU), first)
    half = Images(images.pixels[:6], images.labels[:6], images.patients[:6])
    beside = logits_of(model, half, "ct", device=CPU, adapted=True)
    assert not np.allclose(beside, first[:6])


@pytest.mark.parametrize("training", [{}, {"train": "last:1"}])
def test_a_site_measures_with_them_and_trains_without(
    training: dict[str, Any],
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
) -> None:
    """Figures are of the adapted network; the change is that of a study with stored statistics."""
    stored, adapted = (
        make_study(training=training),
        make_study(training=training, evaluation=ADAPTED),
    )
    replies = []
    for name, study in (("site-a", stored), ("site-b", adapted)):
        config = make_hospital(name)
        site = Site(config.model_copy(update={"name": "site-a"}))
        replies.append(site.answer(make_order(study)).reply)
        assert replies[-1].refusal == ""
        images = site.prepare(study).tasks["ct"].splits["test"]
        logits = logits_of(
            build_model(study), images, "ct", device=CPU, adapted=study.evaluation.adapted
        )
        expected = metrics_wire.to_arrays(state_of(logits, images, study.tasks["ct"]))
        assert digest(replies[-1].metrics["ct", "test"]) == digest(expected)
    one, other = replies
    assert digest(one.metrics["ct", "test"]) != digest(other.metrics["ct", "test"])
    for group in one.groups:
        assert digest(one.groups[group]) == digest(other.groups[group])


def test_a_network_without_batch_norm_is_refused(make_study: MakeStudy) -> None:
    """The study is fine by itself; its network has nothing to adapt, and says what to do."""
    study = make_study(backbone={"name": "test_vit"}, evaluation=ADAPTED)
    with pytest.raises(StudyError, match="no living batch normalisation") as refusal:
        build_model(study)
    assert "evaluation.normalisation: " in refusal.value.message
