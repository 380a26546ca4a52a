"""Laws of what validation scores decide; those of a plateau stand in ``tests/server``."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from common import scores
from common.study import Study
from common.training import Schedule

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
    assert scores.standing(of_ct(enumerate(found, 1)), least_gain)[:2] == expected


def of_ct(found: Iterable[tuple[int, float]]) -> dict[int, scores.Figures]:
    """Return the scores of rounds that have one task alone."""
    return {number: {"ct": figure} for number, figure in found}


def test_of_a_loss_less_is_better(study_of: Callable[..., Study]) -> None:
    """It is negated; a task without a figure has none."""
    told = {"a": 0.5, "b": None, "c": 0.9}
    assert scores.figures_of(study_of().federation, told) == {"a": 0.5, "c": 0.9}
    of_loss = scores.figures_of(study_of(score="loss").federation, told)
    assert of_loss == {"a": -0.5, "c": -0.9}
    assert scores.mean_of_tasks(of_loss.values()) == pytest.approx(-0.7)
    assert scores.mean_of_tasks([]) is None


EASY = (0.9, 0.9, 0.93, 0.95, 0.95)


def of_two(easy: Iterable[float], hard: Iterable[float | None]) -> dict[int, scores.Figures]:
    """Return the scores of rounds that measured one task, and another one where it has a figure."""
    rounds = enumerate(zip(easy, hard, strict=True), 1)
    return {n: {"a": a} | ({} if b is None else {"b": b}) for n, (a, b) in rounds}


def test_a_round_that_lacks_a_task_is_passed_over() -> None:
    """Means over other tasks are not compared, however good these are; nor do they end a study."""
    found = of_two(EASY, (0.6, None, 0.7, 0.75, 0.8))
    assert [tuple(standing)[:2] for standing in scores.standings(found)] == [
        (1, 0),
        (1, 0),
        (3, 0),
        (4, 0),
        (5, 0),
    ]


def test_a_task_that_is_gone_decides_no_more(study_of: Callable[..., Study]) -> None:
    """When its only site has left, rates are lowered and rounds end by the tasks that are left."""
    hard = [0.6, 0.5] + [None] * 12
    found = of_two([0.5, 0.6, *([0.7] * 12)], hard)
    assert scores.best_of({n: of for n, of in found.items() if n < 3}) == 1
    *_, standing = scores.standings(found)
    # Round 7 is the first that counts without it: the last five rounds have no figure of it.
    assert standing[:2] == (7, 7)
    study = study_of(early_stopping={"patience": 3})
    first = min(n for n in found if scores.stands_still(study, STAGES, _until(found, n)))
    assert first == 10


def _until(found: Mapping[int, scores.Figures], last: int) -> dict[int, scores.Figures]:
    return {number: figures for number, figures in found.items() if number <= last}


def test_a_task_that_comes_in_leaves_behind_what_was_before() -> None:
    """Rounds that never trained a task are not the best of a study that has it."""
    found = of_two([0.9, 0.95, 0.8, 0.7, 0.75], [None, None, None, 0.6, 0.7])
    assert [standing.best for standing in scores.standings(found)] == [1, 2, 2, 4, 5]


@pytest.mark.parametrize("seed", range(20))
def test_tasks_that_come_and_go_never_undo_a_decision(seed: int) -> None:
    """Whichever tasks have figures, the count of lowered rates never falls, nor leaps.

    And the best round is the one before, or the newest: of no other is there a model to keep.
    """
    rng, schedule = np.random.default_rng(seed), Schedule(kind="plateau", patience=2)
    found: dict[int, scores.Figures] = {}
    best, lowered = None, 0
    for number in range(1, 60):
        told = {task: float(rng.integers(9)) for task in "abcd" if rng.random() < 0.6}
        found |= {number: told} if told else {}
        assert scores.best_of(found) in {best, number}
        assert scores.times_lowered(schedule, found) - lowered in {0, 1}
        best, lowered = scores.best_of(found), scores.times_lowered(schedule, found)
    assert lowered > 0


def test_rounds_end_when_the_last_gain_is_long_ago(study_of: Callable[..., Study]) -> None:
    """As many scored rounds as the patience; a study without early stopping never ends so."""
    flat = of_ct((n, 0.5) for n in (1, 2, 4))  # what nobody measured is left out
    study = study_of(early_stopping={"patience": 2})
    assert scores.stands_still(study, STAGES, flat) == (1, 2, 0.5)
    assert scores.stands_still(study, STAGES, _until(flat, 2)) is None
    assert scores.stands_still(study, STAGES, {}) is None
    assert scores.stands_still(study_of(), STAGES, flat) is None


def test_rounds_of_earlier_phases_end_nothing(study_of: Callable[..., Study]) -> None:
    """However flat the scores are while fewer layers train, counting begins with the last phase."""
    training = {"phases": [{"rounds": 3, "train": "head"}]}
    study = study_of(training, early_stopping={"patience": 2})
    flat = of_ct((n, 0.5) for n in range(1, 6))
    assert scores.stands_still(study, STAGES, flat) is None
    flat |= {6: {"ct": 0.5}}
    assert scores.stands_still(study, STAGES, flat) == (4, 2, 0.5)


def test_the_best_is_the_first_of_equals() -> None:
    """Without a score there is none."""
    assert scores.best_of(of_ct([(1, 0.6), (2, 0.8), (4, 0.8)])) == 2
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
