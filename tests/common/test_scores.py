"""Laws of what validation scores decide; those of a plateau stand in ``tests/server``."""

from collections.abc import Callable
from typing import Any

import pytest

from common import scores
from common.study import Study

STAGES = 5


@pytest.fixture
def study_of() -> Callable[..., Study]:
    """Return the maker of a study of nine rounds; keywords are its ``[federation]``."""

    def make(training: dict[str, Any] | None = None, **federation: Any) -> Study:
        values = {
            "name": "scores",
            "rounds": 9,
            "backbone": {"name": "test_resnet", "weights": "start.safetensors", "image_size": 32},
            "tasks": {"ct": {"modality": "CT", "classes": ["a", "b"]}},
            "training": training or {},
            "federation": federation,
        }
        return Study.parse(values)

    return make


@pytest.mark.parametrize(
    ("found", "least_gain", "expected"),
    [
        ([], 0.0, (0, 0)),
        ([0.5], 0.0, (1, 0)),
        ([0.5, 0.5, 0.5], 0.0, (1, 2)),
        ([0.5, 0.4, 0.6, 0.55], 0.0, (3, 1)),
        ([0.5, 0.54, 0.58, 0.62], 0.1, (4, 0)),  # gains add up until they are large enough
        ([0.5, 0.54, 0.58], 0.1, (1, 2)),
        ([-0.7, -0.6, -0.65], 0.0, (2, 1)),
    ],
)
def test_a_gain_is_what_lies_above_the_last_one(
    found: list[float], least_gain: float, expected: tuple[int, int]
) -> None:
    """The round of the last gain, and the rounds since; a tie is no gain."""
    assert scores.standing(dict(enumerate(found, 1)), least_gain) == expected


def test_a_score_is_the_mean_of_what_is_defined(study_of: Callable[..., Study]) -> None:
    """Of a loss the mean is negated; without a figure there is no score."""
    assert scores.mean_score(study_of().federation, [0.5, None, 0.9]) == pytest.approx(0.7)
    assert scores.mean_score(study_of(score="loss").federation, [0.5, 0.9]) == pytest.approx(-0.7)
    assert scores.mean_score(study_of().federation, [None]) is None
    assert scores.mean_score(study_of().federation, []) is None


def test_rounds_end_when_the_last_gain_is_long_ago(study_of: Callable[..., Study]) -> None:
    """As many scored rounds as the patience; a study without early stopping never ends so."""
    flat = dict.fromkeys((1, 2, 4), 0.5)  # what nobody measured is left out
    study = study_of(early_stopping={"patience": 2})
    assert scores.stands_still(study, STAGES, flat) == (1, 2)
    assert scores.stands_still(study, STAGES, {1: 0.5, 2: 0.5}) is None
    assert scores.stands_still(study, STAGES, {}) is None
    assert scores.stands_still(study_of(), STAGES, flat) is None


def test_rounds_of_earlier_phases_end_nothing(study_of: Callable[..., Study]) -> None:
    """However flat the scores are while fewer layers train, counting begins with the last phase."""
    training = {"phases": [{"rounds": 3, "train": "head"}]}
    study = study_of(training, early_stopping={"patience": 2})
    flat = dict.fromkeys(range(1, 6), 0.5)
    assert scores.stands_still(study, STAGES, flat) is None
    assert scores.stands_still(study, STAGES, {**flat, 6: 0.5}) == (4, 2)


def test_the_best_is_the_first_of_equals() -> None:
    """Without a score there is none."""
    assert scores.best_of({1: 0.6, 2: 0.8, 4: 0.8}) == 2
    assert scores.best_of({}) is None


def test_scores_are_needed_where_something_hangs_on_them(study_of: Callable[..., Study]) -> None:
    """The best model, early stopping and a plateau need them; plain studies do not."""
    plateau = {"schedule": {"kind": "plateau"}}
    for study in (
        study_of(keep="best"),
        study_of(early_stopping={"patience": 2}),
        study_of(plateau),
    ):
        assert scores.are_needed(study)
    for study in (study_of(), study_of(average_last=3), study_of(score="loss")):
        assert not scores.are_needed(study)


def test_the_last_rounds_are_averaged(study_of: Callable[..., Study]) -> None:
    """As many as the study says, or all where there were fewer."""
    federation = study_of(average_last=3).federation
    assert [list(scores.last_rounds(federation, n)) for n in (1, 2, 3, 7)] == [
        [1], [1, 2], [1, 2, 3], [5, 6, 7]
    ]  # fmt: skip
