"""Laws of what a study's table ``[evaluation]`` may not say."""

from typing import Any

import pytest

from common.classical_names import Way
from common.errors import StudyError
from common.study import Study

BLIND = ["logistic", "svm", "forest", "elm"]
FREE = ["handcrafted-svm", "handcrafted-forest"]


def values(evaluation: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "rounds": 2,
        "backbone": {"name": "test_resnet", "weights": "start.safetensors"},
        "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
        "evaluation": evaluation,
    } | sections


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"classical": ["svm", "elm", "svm"]}, "evaluation.classical: a way is named twice; name"),
        ({"classical": ["knn"]}, "evaluation.classical.0: input should be 'logistic', 'svm'"),
        ({"classical": "svm"}, "evaluation.classical: input should be a valid array"),
        ({"tuned_rounds": 0}, "evaluation.tuned_rounds: input should be greater"),
        ({"tuned_rounds": 1001}, "evaluation.tuned_rounds: input should be less"),
        ({"tuned_rounds": True}, "evaluation.tuned_rounds: input should be a valid integer"),
    ],
)
def test_each_fault_has_its_reason(evaluation: dict[str, Any], said: str) -> None:
    """Ways that repeat or that there are none of, and no number of rounds: each is one fault."""
    with pytest.raises(StudyError) as refused:
        Study.parse(values(evaluation))
    assert "The study has 1 fault:" in refused.value.message
    assert f"  - {said}" in refused.value.message


def test_all_ways_may_stand_in_a_study() -> None:
    """With pretrained weights all of them; those that look at no backbone whatever it began as."""
    assert Study.parse(values({"classical": [*Way]})).evaluation.classical == [*Way]
    assert [*Way] == [*BLIND, *FREE]
    assert [way for way in Way if not way.looks_at_backbone] == FREE
    random = {"name": "test_resnet", "weights": "none"}
    assert Study.parse(values({"classical": FREE}, backbone=random)).evaluation.classical == FREE


@pytest.mark.parametrize("way", BLIND)
def test_a_random_backbone_has_no_features(way: str) -> None:
    """A way that would look at one is refused by its name; so it is where one member is random."""
    random = {"name": "test_resnet", "weights": "none"}
    members = [{"seed": 1}, {"name": "test_vit", "weights": "none"}]
    for sections in ({"backbone": random}, {"ensemble": members}):
        with pytest.raises(StudyError) as refused:
            Study.parse(values({"classical": [way, *FREE]}, **sections))
        said = f"  - evaluation.classical: {way} would look at a random backbone, whose features"
        assert said in refused.value.message
        assert "use handcrafted-svm or handcrafted-forest" in refused.value.message
        assert "1 fault:" in refused.value.message
