"""Laws of the network: one backbone, one head per task, the same on every machine."""

from typing import Any

import numpy as np
import pytest
import torch

from common.arrays import digest
from common.errors import StudyError, UnknownBackboneError
from common.models import IMAGENET_MEAN, IMAGENET_STD, build_model, normalisation_of
from common.study import Study
from common.weights import take

TASKS = {
    "ct": {"modality": "CT", "classes": ["healthy", "gaucher"], "positive": "gaucher"},
    "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
}


def study_of(
    name: str = "test_resnet",
    size: int = 64,
    *,
    seed: int = 0,
    train: str = "all",
    tasks: dict[str, Any] = TASKS,
    **backbone: Any,
) -> Study:
    file = {"name": name, "weights": "start.safetensors", "image_size": size}
    return Study.parse(
        {
            "name": "study",
            "rounds": 1,
            "seed": seed,
            "backbone": file | backbone,
            "tasks": tasks,
            "training": {"train": train},
        }
    )


def weights_of(study: Study) -> dict[str, Any]:
    model = build_model(study)
    return take(model, model.state_dict())


def test_the_seed_decides_every_weight() -> None:
    """One seed gives the same bits whatever was drawn before; another seed gives others."""
    first = digest(weights_of(study_of(seed=3)))
    torch.rand(17)
    assert digest(weights_of(study_of(seed=3))) == first
    assert digest(weights_of(study_of(seed=4))) != first


def test_building_leaves_the_random_state_alone() -> None:
    """Whoever draws random numbers draws the same ones whether a network was built or not."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_model(study_of())
    assert torch.equal(torch.rand(3), expected)


def test_a_task_changes_no_other_weights() -> None:
    """The backbone and a task's head are the same with and without another task, in any order."""
    both = weights_of(study_of())
    turned = weights_of(study_of(tasks=dict(reversed(TASKS.items()))))
    alone = weights_of(study_of(tasks={"mr": TASKS["mr"]}))
    assert digest(turned) == digest(both)
    assert set(both) - set(alone) == {"heads.ct.weight", "heads.ct.bias"}
    assert digest(alone) == digest({name: both[name] for name in alone})


def test_heads_start_small_and_differ() -> None:
    """A head's weights are near zero, its biases zero, and no two heads start alike."""
    classes = ["a", "b", "c"]
    tasks = {name: {"modality": "MR", "classes": classes} for name in ("x", "y")}
    arrays = weights_of(study_of(tasks=tasks))
    assert not np.array_equal(arrays["heads.x.weight"], arrays["heads.y.weight"])
    for name in tasks:
        assert not arrays[f"heads.{name}.bias"].any()
        assert 0.005 < arrays[f"heads.{name}.weight"].std() < 0.02


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", 32),
        ("test_vit", 64),
        ("test_convnext", 64),
        ("mobilenetv3_small_050", 64),
        ("vit_tiny_patch16_224", 96),
        ("swin_tiny_patch4_window7_224", 64),
    ],
)
def test_every_task_gets_its_own_logits(name: str, size: int) -> None:
    """Pooled features are (B, D), and each head turns them into the logits of its K classes."""
    model = build_model(study_of(name, size)).eval()
    x_BCHW = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        features = model.features(x_BCHW)
        assert features.ndim == 2
        assert len(features) == 2
        for task, classes in (("ct", 2), ("mr", 3)):
            logits = model(x_BCHW, task)
            assert logits.shape == (2, classes)
            torch.testing.assert_close(logits, model.heads[task](features))


def test_an_unknown_backbone_names_close_ones() -> None:
    """A name that timm does not know is refused with the names that were perhaps meant."""
    with pytest.raises(UnknownBackboneError, match="no backbone 'resnet18x'") as refused:
        build_model(study_of("resnet18x"))
    assert "Did you mean resnet18" in refused.value.remedy
    with pytest.raises(UnknownBackboneError, match="no backbone 'resnet18") as refused:
        build_model(study_of("resnet18.a1_in2k"))
    assert "Did you mean resnet18.a1_in1k" in refused.value.remedy
    with pytest.raises(UnknownBackboneError) as refused:
        build_model(study_of("§§§§"))
    assert "timm.list_models()" in refused.value.remedy


def test_an_impossible_image_size_is_refused_before_the_first_round() -> None:
    """A transformer with patches of 16 cannot look at 100 pixels, and says so at once."""
    with pytest.raises(StudyError, match="100 x 100 pixels") as refused:
        build_model(study_of("test_vit", 100))
    assert "image_size" in refused.value.remedy


def test_at_most_all_but_one_stage_can_be_trained() -> None:
    """``last:k`` with k as large as the network has stages is refused, with the largest k."""
    with pytest.raises(StudyError, match="would freeze nothing") as refused:
        build_model(study_of(train="last:50"))
    largest = int(refused.value.message.split()[-1].rstrip("."))
    build_model(study_of(train=f"last:{largest}"))
    with pytest.raises(StudyError):
        build_model(study_of(train=f"last:{largest + 1}"))


@pytest.mark.parametrize(
    ("train", "normalisation"), [("head", "average"), ("last:1", "average"), ("all", "frozen")]
)
def test_what_cannot_be_frozen_is_refused(train: str, normalisation: str) -> None:
    """No one-dimensional batch norm can be frozen by timm: a network with some is refused."""
    with pytest.raises(StudyError, match="BatchNorm1d cannot be frozen"):
        build_model(study_of("levit_128s", 224, train=train, normalisation=normalisation))


@pytest.mark.parametrize("train", ["head", "last:1", "last:2", "all"])
def test_more_stages_train_more_weights(train: str) -> None:
    """Heads always train; of the backbone nothing, the last stages or everything does."""
    model = build_model(study_of(train=train))
    assert all(value.requires_grad for value in model.heads.parameters())
    trained = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    everything = [name for name, _ in build_model(study_of()).backbone.named_parameters()]
    assert (not trained) == (train == "head")
    assert (trained == everything) == (train == "all")
    assert everything[len(everything) - len(trained) :] == trained


def test_mean_and_std_are_the_backbones_unless_the_study_says_otherwise() -> None:
    """The constants that timm gives the backbone are the default; the study's win."""
    vit = build_model(study_of("vit_tiny_patch16_224", 32))
    assert (vit.mean, vit.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    resnet = build_model(study_of("resnet18", 32))
    assert (resnet.mean, resnet.std) == (IMAGENET_MEAN, IMAGENET_STD)
    told = build_model(study_of(mean=[0.1, 0.2, 0.3], std=[1, 2, 3]))
    assert (told.mean, told.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("name", "train", "asked", "said"),
    [
        ("test_resnet", "all", "average", "average"),
        ("test_resnet", "all", "local", "local"),
        ("test_resnet", "all", "frozen", "frozen"),
        ("test_resnet", "last:1", "local", "local"),
        ("test_resnet", "head", "average", "frozen"),
        ("test_vit", "all", "average", "absent"),
    ],
)
def test_reports_say_what_happens_to_batch_norm(
    name: str, train: str, asked: str, said: str
) -> None:
    """The word in the report is what happens, which is not always what was asked for."""
    study = study_of(name, train=train, normalisation=asked)
    assert normalisation_of(study, build_model(study)) == said
