"""Laws of the features that are computed once."""

import pytest
import torch

from client.dataset import Images, batches
from client.evaluate import logits_of
from client.features import channel_statistics, features_of, frozen_features
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


@pytest.mark.parametrize(
    ("train_what", "normalisation", "kept"),
    [("head", "average", True), ("head", "frozen", True), ("all", "frozen", False),
     ("last:1", "frozen", False), ("all", "average", False)],
)  # fmt: skip
def test_only_what_never_changes_is_kept(
    train_what: str, normalisation: str, *, kept: bool
) -> None:
    """Features are kept where no part of the backbone trains or gathers statistics."""
    _, model = model_of(train_what, normalisation=normalisation)
    assert (frozen_features(model, CPU) is not None) == kept


def test_kept_features_are_those_of_the_backbone() -> None:
    """Logits by kept features equal the network's, in training mode before and after too."""
    _, model = model_of()
    images, model = images_of(), model.train()
    features = frozen_features(model, CPU)
    assert features is not None
    got = logits_of(model, images, "t", device=CPU, features=features)
    assert torch.allclose(
        torch.from_numpy(got),
        torch.from_numpy(logits_of(model, images, "t", device=CPU)),
        atol=1e-5,
    )
    x = normalise(images.pixels, *channel_statistics(model, CPU))
    assert torch.allclose(features.of(images), features_of(model, x), atol=1e-5)
    assert features.of(images) is features.of(images)
    assert features.of(images_of(0)).shape == (0, features.of(images).shape[1])


def test_other_weights_give_other_features() -> None:
    """After ``forget`` the features are those of the weights that the backbone has now."""
    _, model = model_of()
    images, features = images_of(4), frozen_features(model, CPU)
    assert features is not None
    before = features.of(images).clone()
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2)
    assert torch.equal(features.of(images), before)
    features.forget()
    assert not torch.allclose(features.of(images), before)


def test_training_on_features_is_the_training_of_the_heads() -> None:
    """Heads trained on kept features are those trained through the frozen backbone."""
    trained = []
    for keep in (True, False):
        study, model = model_of()
        images = images_of(20)
        order = batches({"t": 20}, batch_size=8, epochs=2, seed=3)
        features = frozen_features(model, CPU) if keep else None
        train(model, {"t": images}, order, study, device=CPU, features=features)
        trained.append(model.heads["t"].weight.detach())
    assert torch.allclose(*trained, atol=1e-5)


def test_features_go_with_their_images() -> None:
    """Features of images that are gone take no memory."""
    _, model = model_of()
    features = frozen_features(model, CPU)
    assert features is not None
    images = images_of(3)
    features.of(images)
    assert len(features._known) == 1
    del images
    assert len(features._known) == 0
