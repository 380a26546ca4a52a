"""Laws of what is refused because of the network: a way that it has no place for."""

from typing import Any

import pytest

from common.errors import StudyError
from common.models import build_model
from common.study import Study
from common.weights import layout_of


def study_of(name: str, backbone: dict[str, Any] | None = None, **training: Any) -> Study:
    start = {"name": name, "weights": "start.safetensors", "image_size": 32}
    return Study.parse(
        {
            "name": "study",
            "rounds": 9,
            "backbone": start | (backbone or {}),
            "tasks": {"ct": {"modality": "CT", "classes": ["a", "b"]}},
            "training": training,
        }
    )


def test_rates_cannot_fall_over_two_layers() -> None:
    """Layer-wise decay is refused on LeNet-5, and is possible on a network of four layers."""
    with pytest.raises(StudyError, match="2 layer groups") as refused:
        build_model(study_of("lenet5", layer_decay=0.5))
    assert "backbone_lr" in refused.value.message
    build_model(study_of("lenet5"))
    build_model(study_of("baseline_cnn", layer_decay=0.5))


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1", "test_vit", "test_efficientnet_gn"])
def test_what_a_network_lacks_cannot_stay_at_a_site(name: str) -> None:
    """Local normalisation is refused without batch norm; the remedy is to leave it out."""
    with pytest.raises(StudyError, match="no batch normalisation") as refused:
        build_model(study_of(name, {"normalisation": "local"}))
    assert "leave it out" in refused.value.message
    build_model(study_of(name))


def test_what_is_frozen_cannot_stay_at_a_site() -> None:
    """Local normalisation is refused where it lives in no stage that trains; in one, it is kept."""
    with pytest.raises(StudyError, match="no batch normalisation") as refused:
        build_model(study_of("vgg11_bn", {"normalisation": "local"}, train="last:1"))
    assert "let more of the backbone train" in refused.value.message
    study = study_of("test_resnet", {"normalisation": "local"}, train="last:1")
    assert layout_of(build_model(study), study).local


def test_all_are_told_at_once() -> None:
    """A study that asks for several ways in vain hears of each, in the order of building."""
    with pytest.raises(StudyError) as refused:
        build_model(study_of("lenet5", {"normalisation": "local"}, layer_decay=0.5))
    assert keys_of(refused.value) == ["training.layer_decay", "backbone.normalisation"]
    phases = [{"rounds": 1, "train": f"last:{k}"} for k in (1, 30)]
    values = study_of("vgg11", {"normalisation": "local"}, train="last:40", phases=phases)
    study = Study.parse(
        values.model_dump(exclude_none=True, mode="json")
        | {"evaluation": {"normalisation": "adapted"}}
    )
    with pytest.raises(StudyError) as refused:
        build_model(study)
    assert keys_of(refused.value) == [
        "training.phases",
        "training.train",
        "backbone.normalisation",
        "evaluation.normalisation",
    ]


def keys_of(refused: StudyError) -> list[str]:
    """Return which keys of the study have a fault."""
    return [line[4:].split(":")[0] for line in refused.message.splitlines()[1:]]


@pytest.mark.parametrize(
    ("key", "value"),
    [("train", "last:1"), ("train", "head"), ("layer_decay", 0.5), ("unfreeze_every", 2)],
)
def test_a_network_without_stages_says_so(key: str, value: Any) -> None:
    """Of a network that timm does not divide no part can be frozen; all of it can be trained."""
    with pytest.raises(StudyError, match=f"training.{key}: timm does not divide"):
        build_model(study_of("poolformer_s12", **{key: value}))
    build_model(study_of("poolformer_s12"))
