"""Laws of variations that are made once, so that features of them can be kept."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.alone import train_alone
from client.dataset import Images, batches
from client.features import FrozenFeatures, channel_statistics
from client.phases import PhaseFeatures, in_phase
from client.preprocess import normalise
from client.train import train, training_inputs
from client.views import Views, views_of
from common.models import FederatedModel, build_model
from common.study import Study

MakeImages = Callable[..., Images]

CPU = torch.device("cpu")
VIEWS = 3
TASKS: dict[str, dict[str, Any]] = {
    "ct": {"modality": "CT", "classes": ["a", "b"], "augmentation": {"rotation": 20}},
    "mr": {"modality": "MR", "classes": ["a", "b"]},
}


def study_of(
    views: int = VIEWS, seed: int = 0, backbone: str = "test_resnet", **training: Any
) -> Study:
    return Study.parse(
        {
            "name": "s",
            "rounds": 2,
            "seed": seed,
            "backbone": {"name": backbone, "weights": "a.safetensors", "image_size": 32},
            "tasks": TASKS,
            "training": {"views": views, "train": "last:1"} | training,
        }
    )


def views(study: Study, site: str = "a") -> Views:
    found = views_of(study, site)
    assert found is not None
    return found


def kept_of(study: Study, model: FederatedModel) -> FrozenFeatures:
    kept = PhaseFeatures(model, study, "a", CPU).in_round(1)
    assert kept is not None
    return kept


def test_what_cannot_be_divided_varies_anew_and_the_log_says_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning of a network whose frozen part cannot be run by itself; of others none."""
    log = logging.getLogger("test")
    for name, told in (("test_vit", 1), ("test_resnet", 0)):
        caplog.clear()
        study = study_of(backbone=name)
        features = PhaseFeatures(build_model(study), study, "a", CPU, log)
        with caplog.at_level(logging.WARNING, "test"):
            found = [features.in_round(number) for number in (1, 2)]
        assert [kept is None for kept in found] == [bool(told)] * 2
        assert caplog.text.count("training.views is passed over") == told


def test_without_views_nothing_is_made_once() -> None:
    """A study that asks for none has none."""
    assert views_of(study_of(views=0), "a") is None


def test_a_variation_is_the_same_whenever_it_is_made(make_images: MakeImages) -> None:
    """It depends on its place alone, not on what is made beside it."""
    images, found = make_images(5), views(study_of())
    places = torch.arange(VIEWS * len(images))
    x = found.made(images, "ct", places)
    assert x.shape == (len(places), *images.pixels.shape[1:])
    assert torch.equal(found.made(images, "ct", places.flip(0)), x.flip(0))
    assert torch.equal(found.made(images, "ct", torch.tensor([7])), x[7:8])


def test_no_two_variations_are_alike(make_images: MakeImages) -> None:
    """Each differs from its image, from others of it, and from those of other sites and seeds."""
    images, places = make_images(2), torch.arange(VIEWS * 2)
    same = Images(images.pixels[torch.tensor([0, 0])], images.labels[[0, 0]], images.patients)
    made = [
        found.made(same, "ct", places)
        for found in (views(study_of()), views(study_of(), "b"), views(study_of(seed=1)))
    ]
    every = [same.pixels[:1].float(), *torch.cat(made).split(1)]
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_each_variation_is_drawn_equally_often(make_images: MakeImages) -> None:
    """Draws are of the images asked for, and even over their variations."""
    images, found = make_images(4), views(study_of())
    indices = torch.tensor([2, 0] * 1500)
    places = found.drawn(images, indices, torch.Generator().manual_seed(0))
    assert torch.equal(places % len(images), indices)
    counts = np.bincount(places // len(images), minlength=VIEWS)
    assert counts.sum() == 3000
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(3000 * 1 / 3 * 2 / 3)


def test_what_is_trained_on_is_one_of_the_variations(make_images: MakeImages) -> None:
    """Inputs are the frozen part's of one variation each; a task without them has its images."""
    study = study_of()
    model, images = build_model(study), {"ct": make_images(4), "mr": make_images(4, seed=1)}
    kept = kept_of(study, model)
    inputs = training_inputs(
        model, images, study, device=CPU, features=kept, generator=torch.Generator().manual_seed(3)
    )
    made = views(study).made(images["ct"], "ct", torch.arange(VIEWS * 4))
    every = kept.part(normalise(made, *channel_statistics(model, CPU)))
    seen = set()
    for _ in range(20):
        x = inputs("ct", np.array([1, 3]))
        for one, index in zip(x, (1, 3), strict=True):
            places = [v * 4 + index for v in range(VIEWS)]
            (found,) = [p for p in places if torch.allclose(every[p], one, atol=1e-5)]
            seen.add(found)
    assert len(seen) == 2 * VIEWS
    plain = kept.part(normalise(images["mr"].pixels[:], *channel_statistics(model, CPU)))
    assert torch.allclose(inputs("mr", np.arange(4)), plain, atol=1e-5)


def test_variations_are_computed_once(make_images: MakeImages) -> None:
    """The first round runs every variation through the frozen part, further ones run none."""
    study = study_of()
    model, images = build_model(study), {"ct": make_images(6)}
    features = PhaseFeatures(model, study, "a", CPU)
    seen: list[int] = []
    kept = features.in_round(1)
    model.backbone.get_submodule("conv1").register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    for number in (1, 2):
        order = batches({"ct": 6}, batch_size=4, epochs=2, seed=number)
        with in_phase(model, study, number):
            train(model, images, order, study, number=number, device=CPU, features=kept)
    assert sum(seen) == VIEWS * 6


def test_without_room_the_variations_are_the_same(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the bound in memory they are computed at each use, and are the same ones."""
    study = study_of()
    model, images = build_model(study), make_images(6)
    indices = torch.tensor([4, 1, 5])

    def found() -> torch.Tensor:
        generator = torch.Generator().manual_seed(9)
        kept = kept_of(study, model)
        return torch.cat([kept.of_views(images, "ct", indices, generator) for _ in range(3)])

    expected = found()
    monkeypatch.setattr("client.features.KEPT_BYTES", expected[:1].nbytes * 6)
    assert torch.allclose(found(), expected, atol=1e-5)
    kept = kept_of(study, model)
    kept.of(images, indices)
    kept.of_views(images, "ct", indices)
    assert kept._known[images] is not None
    assert kept._known_views[images] is None


def test_in_rounds_without_a_frozen_part_images_are_varied_anew(make_images: MakeImages) -> None:
    """Where everything trains, views change nothing."""
    trained = []
    for count in (0, VIEWS):
        study = study_of(count, train="all", phases=[{"rounds": 1, "train": "head"}])
        study = study.model_copy(update={"rounds": 1})
        with in_phase(model := build_model(study), study, 2):
            order = batches({"ct": 6}, batch_size=3, epochs=1, seed=0)
            train(
                model, {"ct": make_images(6)}, order, study, device=CPU,
                features=PhaseFeatures(model, study, "a", CPU).in_round(2),
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], value) for name, value in trained[1].items())


def test_one_seed_gives_one_model(make_images: MakeImages) -> None:
    """Training alone on views ends in the same arrays each time; other views end in others."""
    ends = []
    for count in (VIEWS, VIEWS, 2):
        study = study_of(count)
        model = build_model(study)
        train_alone(model, {"ct": make_images(6)}, study, site="a", device=CPU)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    assert not all(torch.equal(ends[0][name], value) for name, value in ends[2].items())
