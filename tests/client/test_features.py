"""Laws of the features that are computed once."""

import pytest
import torch

from client.dataset import Images, batches
from client.evaluate import logits_of
from client.features import FrozenFeatures, channel_statistics, frozen_features
from client.preprocess import normalise
from client.train import train
from common.models import FederatedModel, build_model
from common.study import Study

CPU = torch.device("cpu")


def model_of(train_what: str = "head", **backbone: str) -> tuple[Study, FederatedModel]:
    study = Study.parse(
        {
            "name": "s",
            "rounds": 1,
            "backbone": {"name": "test_resnet", "weights": "a.safetensors", "image_size": 32}
            | backbone,
            "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
            "training": {"train": train_what},
        }
    )
    return study, build_model(study)


def images_of(count: int = 70) -> Images:
    generator = torch.Generator().manual_seed(count)
    return Images(
        torch.rand(count, 1, 32, 32, generator=generator).half(),
        torch.arange(count) % 2,
        tuple(map(str, range(count))),
    )


def kept_of(model: FederatedModel) -> FrozenFeatures:
    features = frozen_features(model, CPU, 32)
    assert features is not None
    return features


def all_of(features: FrozenFeatures, images: Images) -> torch.Tensor:
    return features.of(images, torch.arange(len(images)))


FROZEN = ["head", "last:1", "last:2"]


@pytest.mark.parametrize("train_what", FROZEN)
def test_kept_features_are_those_of_the_frozen_part(train_what: str) -> None:
    """Logits by kept features equal the network's, in training mode before and after too."""
    _, model = model_of(train_what)
    images, model = images_of(), model.train()
    features = kept_of(model)
    got = logits_of(model, images, "t", device=CPU, features=features)
    expected = logits_of(model, images, "t", device=CPU)
    assert torch.allclose(torch.from_numpy(got), torch.from_numpy(expected), atol=1e-5)
    x = normalise(images.pixels[:], *channel_statistics(model, CPU))
    assert torch.allclose(all_of(features, images), features.part(x), atol=1e-5)


def test_features_are_computed_once() -> None:
    """What was computed is not computed again: with other weights it is still the same."""
    _, model = model_of("last:1")
    images, features = images_of(4), kept_of(model)
    before = all_of(features, images).clone()
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2)
    assert torch.equal(all_of(features, images), before)


def test_other_weights_give_other_features() -> None:
    """After ``forget`` the features are those of the weights that the frozen part has now."""
    _, model = model_of()
    images, features = images_of(4), kept_of(model)
    before = all_of(features, images).clone()
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2)
    features.forget()
    assert not torch.allclose(all_of(features, images), before)


def test_what_has_no_room_is_computed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features above the bound in memory are not kept, and are the same ones."""
    _, model = model_of("last:1")
    first, second, features = images_of(6), images_of(5), kept_of(model)
    some = torch.tensor([4, 1])
    expected = [features.of(images, some) for images in (first, second)]
    features.forget()
    one = expected[0][:1].nbytes
    monkeypatch.setattr("client.features.KEPT_BYTES", 6 * one)
    found = [features.of(images, some) for images in (first, second)]
    assert [features._known[images] is None for images in (first, second)] == [False, True]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("train_what", FROZEN)
@pytest.mark.parametrize("normalisation", ["average", "frozen"])
def test_training_on_features_is_the_training_of_the_network(
    train_what: str, normalisation: str
) -> None:
    """What is trained on kept features is what trains with the whole network, frozen part too."""
    trained = []
    for keep in (True, False):
        study, model = model_of(train_what, normalisation=normalisation)
        images = images_of(20)
        order = batches({"t": 20}, batch_size=8, epochs=2, seed=3)
        features = kept_of(model) if keep else None
        train(model, {"t": images}, order, study, device=CPU, features=features)
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], atol=1e-5), name


def test_features_go_with_their_images() -> None:
    """Features of images that are gone take no memory."""
    _, model = model_of()
    features, images = kept_of(model), images_of(3)
    all_of(features, images)
    assert len(features._known) == 1
    del images
    assert len(features._known) == 0
