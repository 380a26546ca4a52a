"""Laws of the division of a network where its frozen stages end."""

import pytest
import torch

from client.frozen_stages import frozen_part
from common.models import FederatedModel, build_model
from common.study import Study

SIZE = 64


def model_of(
    name: str, train: str, normalisation: str = "frozen", size: int = SIZE
) -> FederatedModel:
    study = Study.parse(
        {
            "name": "s",
            "rounds": 1,
            "backbone": {
                "name": name,
                "weights": "a.safetensors",
                "image_size": size,
                "normalisation": normalisation,
            },
            "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
            "training": {"train": train},
        }
    )
    return build_model(study)


@pytest.mark.parametrize("train", ["head", "last:1", "last:2"])
@pytest.mark.parametrize(
    "name", ["test_resnet", "mobilenetv2_100", "squeezenet1_1", "convnext_atto", "resnet18"]
)
def test_the_two_parts_make_the_whole(name: str, train: str) -> None:
    """The frozen part and what is behind it give the network's logits, to the last bit."""
    model = model_of(name, train).to(memory_format=torch.channels_last).eval()
    part = frozen_part(model, SIZE)
    assert part is not None
    x_BCHW = torch.rand(3, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(part.behind.eval()(part(x_BCHW), "t"), model(x_BCHW, "t"))


@pytest.mark.parametrize("train", ["head", "last:1"])
def test_all_that_trains_is_behind(train: str) -> None:
    """The network behind has each trained parameter, the very same one, and its names."""
    model = model_of("mobilenetv2_100", train)
    part = frozen_part(model, SIZE)
    assert part is not None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    behind = {name: p for name, p in part.behind.named_parameters() if p.requires_grad}
    assert behind.keys() == trained.keys()
    assert all(behind[name] is value for name, value in trained.items())
    assert len(list(part.behind.parameters())) < len(list(model.parameters()))


def test_the_network_stays_as_it_was() -> None:
    """Dividing a network, and running its frozen part, leaves no trace in it."""
    model = model_of("test_resnet", "last:1").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part = frozen_part(model, SIZE)
    assert part is not None
    part(torch.rand(2, 3, SIZE, SIZE))
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "train", "normalisation"),
    [("test_resnet", "all", "frozen"), ("test_resnet", "all", "average"),
     ("test_vit", "last:1", "frozen")],
)  # fmt: skip
def test_what_cannot_be_divided_stays_whole(name: str, train: str, normalisation: str) -> None:
    """Nothing is kept where no stage is frozen, or positions are added between the stages."""
    size = 160 if name == "test_vit" else SIZE
    assert frozen_part(model_of(name, train, normalisation, size), size) is None


def test_statistics_behind_the_frozen_part_are_the_networks_own() -> None:
    """Batch normalisation that lives behind the frozen part gathers the network's statistics."""
    model = model_of("test_resnet", "last:1", "average")
    part = frozen_part(model, SIZE)
    assert part is not None
    before = {name: value.clone() for name, value in model.named_buffers()}
    part.behind.train()(part(torch.rand(4, 3, SIZE, SIZE)), "t")
    changed = {n for n, value in model.named_buffers() if not torch.equal(value, before[n])}
    assert any(name.endswith("running_mean") for name in changed)
