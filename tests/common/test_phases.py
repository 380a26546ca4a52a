"""Laws of which layers train in which round."""

from collections import Counter
from typing import Any

import pytest

from common.errors import StudyError
from common.models import build_model
from common.phases import last_phase_begins, lies_within, train_in_round, width
from common.study import Study
from common.training import Phase, Training
from common.weights import layout_of

STAGES = 5
"""Of ``test_resnet``, as timm divides it."""


def by_round(training: Training, rounds: int, stages: int = STAGES) -> list[str]:
    return [train_in_round(training, number, stages) for number in range(1, rounds + 1)]


def study_of(rounds: int = 100, federation: dict[str, Any] | None = None, **training: Any) -> Study:
    return Study.parse(
        {
            "name": "s",
            "rounds": rounds,
            "federation": federation or {},
            "backbone": {"name": "test_resnet", "weights": "a.safetensors", "image_size": 32},
            "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
            "training": training,
        }
    )


@pytest.mark.parametrize("train", ["all", "head", "last:2"])
def test_without_phases_every_round_is_alike(train: str) -> None:
    """``train`` says it all where there are no phases."""
    assert by_round(Training(train=train), 4) == [train] * 4


def test_phases_follow_one_another() -> None:
    """Each phase has its rounds, and what follows the last one trains what ``train`` says."""
    phases = [
        Phase(rounds=2, train="head"),
        Phase(rounds=1, train="last:2"),
        Phase(rounds=3, train="last:1"),
    ]
    found = by_round(Training(train="last:3", phases=phases), 8)
    assert found == ["head"] * 2 + ["last:2"] + ["last:1"] * 3 + ["last:3"] * 2


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(("train", "last"), [("all", STAGES), ("last:3", 3)])
def test_unfreezing_adds_a_stage_at_a_time(every: int, train: str, last: int) -> None:
    """Heads first, then one more stage after so many rounds each, until all that trains does."""
    found = by_round(Training(train=train, unfreeze_every=every), every * last + 4)
    steps = ["head", *(f"last:{k}" for k in range(1, last))]
    counts = Counter(found)
    assert list(counts) == [*steps, train]
    assert [counts[step] for step in steps] == [every] * last
    assert [width(one, STAGES) for one in found] == sorted(width(one, STAGES) for one in found)


@pytest.mark.parametrize(
    "training",
    [
        Training(),
        Training(train="last:2"),
        Training(phases=[Phase(rounds=4, train="head"), Phase(rounds=3, train="last:2")]),
        Training(train="last:3", phases=[Phase(rounds=5, train="head")]),
        Training(unfreeze_every=2),
        Training(train="last:2", unfreeze_every=3),
    ],
)
def test_the_last_phase_begins_where_all_that_trains_trains(training: Training) -> None:
    """From that round on it is what ``train`` says, and in no round before."""
    begins = last_phase_begins(training, STAGES)
    found = by_round(training, 40)
    assert found[begins - 1 :] == [training.train] * (41 - begins)
    assert training.train not in found[: begins - 1]


@pytest.mark.parametrize("train", ["all", "head", "last:1", "last:2", "last:12"])
@pytest.mark.parametrize("phase", ["all", "head", "last:1", "last:2", "last:12"])
def test_a_phase_lies_within_what_is_as_wide(phase: str, train: str) -> None:
    """With more stages than are named, it is the order of the widths."""
    assert lies_within(phase, train) == (width(phase, 50) <= width(train, 50))


def test_what_is_no_word_is_no_second_fault() -> None:
    """A word that is none has a fault already."""
    assert lies_within("most", "head")
    assert lies_within("all", "last:none")


@pytest.mark.parametrize("phase", ["last:5", "last:12"])
def test_a_phase_that_would_freeze_nothing_is_refused(phase: str) -> None:
    """Where the backbone has no more stages than a phase names, its network is not built."""
    study = study_of(phases=[{"rounds": 1, "train": "last:1"}, {"rounds": 1, "train": phase}])
    with pytest.raises(StudyError) as refused:
        build_model(study)
    assert f"has 5 stages, and a phase with train = '{phase}'" in refused.value.message
    assert "k from 1 to 4" in refused.value.message


@pytest.mark.parametrize(
    "training",
    [
        {"phases": [{"rounds": 1, "train": "last:4"}, {"rounds": 2, "train": "all"}]},
        {"phases": [{"rounds": 1, "train": "head"}], "train": "last:2"},
        {"unfreeze_every": 3},
    ],
)
def test_a_network_knows_its_stages_where_rounds_differ(training: dict[str, Any]) -> None:
    """Every parameter of the backbone is in one stage; without phases nobody asks for stages."""
    model = build_model(study_of(**training))
    named = [name for stage in model.stages for name in stage.parameters]
    assert len(model.stages) == STAGES
    assert len(named) == len(set(named))
    whole = build_model(study_of())
    assert set(named) == {name for name, _ in whole.backbone.named_parameters()}
    assert whole.stages == ()


def test_an_early_end_comes_after_all_stages_train() -> None:
    """A network whose last stage thaws too late for it is not built; with one round more it is."""
    early = {"early_stopping": {"patience": 4}}
    begins = last_phase_begins(Training(unfreeze_every=3), STAGES)
    with pytest.raises(StudyError, match=f"from round {begins} on"):
        build_model(study_of(begins + 5, early, unfreeze_every=3))
    model = build_model(study := study_of(begins + 6, early, unfreeze_every=3))
    assert layout_of(model, study).stages == STAGES
    assert layout_of(build_model(study_of()), study_of()).stages == 0
