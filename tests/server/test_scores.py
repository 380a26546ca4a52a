"""Laws of the scores by which rounds are compared; the reference for a plateau is PyTorch's."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from common.study import Study
from server import scores
from server.history import RoundRecord

Make = Callable[..., Any]


def told(auroc: float | None, loss: float = 0.5) -> dict[str, Any]:
    return {"pooled": {"auroc": auroc, "loss": loss}}


def history_of(found: Iterable[float | None]) -> list[RoundRecord]:
    """Return the records of combined rounds whose arriving models had these AUROCs."""
    return [
        record_of(number, {} if of is None else {"ct": of}) for number, of in enumerate(found, 1)
    ]


def record_of(number: int, figures: Mapping[str, float], **said: Any) -> RoundRecord:
    """Return the record of a round whose arriving model had these AUROCs."""
    tasks = {task: {"validation": told(figure)} for task, figure in figures.items()}
    return RoundRecord(
        number, number - 1, **{"trained": True, "combined": True, **said}, tasks=tasks
    )


def test_a_score_is_the_mean_over_the_tasks_that_define_it(make_study: Make) -> None:
    """A task without a validation figure is left out; where all are, there is no score."""
    study = make_study()
    tasks = {
        "a": {"validation": told(0.8), "test": told(0.1)},
        "b": {"validation": told(0.5)},
        "c": {"validation": told(None)},
        "d": {"test": told(1.0)},
    }
    assert scores.score_of(study, tasks) == pytest.approx((0.8 + 0.5) / 2)
    assert scores.score_of(study, {"c": tasks["c"], "d": tasks["d"]}) is None
    assert scores.score_of(study, {}) is None


def test_of_a_loss_less_is_better(make_small_study: Make) -> None:
    """The score of a study that compares losses is the negative loss."""
    tasks = {"ct": {"validation": told(0.9, loss=0.25)}}
    assert scores.score_of(make_small_study(score="loss"), tasks) == -0.25
    assert scores.score_of(make_small_study(), tasks) == 0.9


def test_what_only_the_last_exchange_knows_speaks_against_no_round(make_study: Make) -> None:
    """The best round stays the best where a task has its first figure when all rounds are over."""
    records = [record_of(n, {"a": a} if a else {}) for n, a in enumerate((0, 0.5, 0.9, 0.6), 1)]
    said: dict[str, Any] = {"trained": False, "combined": False, "answered": ["a", "b"]}
    last = record_of(5, {"a": 0.7, "b": 0.99}, **said)
    assert scores.best_round(make_study(), [*records, last]) == 2
    assert scores.best_round(make_study(), [*records, record_of(5, {"a": 0.95}, **said)]) == 4
    assert scores.best_round(make_study(), [last]) == 4


def test_an_attempt_of_too_few_sites_decides_nothing(make_study: Make) -> None:
    """A task that it alone has figures of is not missing in the rounds that were made."""
    records = history_of([None, 0.5, 0.9, 0.6])
    attempt = record_of(2, {"ct": 0.99, "mr": 0.9}, combined=False)
    assert scores.of_rounds(make_study(), [*records[:2], attempt, *records[2:]]) == {
        1: {"ct": 0.5},
        2: {"ct": 0.9},
        3: {"ct": 0.6},
    }
    assert scores.best_round(make_study(), [*records[:2], attempt, *records[2:]]) == 2


def test_where_patients_have_several_images_each_counts_once(make_study: Make) -> None:
    """The figures of patients are taken before those of their images."""
    tasks = {"ct": {"validation": {**told(0.9), "patients": told(0.7)}}}
    assert scores.score_of(make_study(), tasks) == 0.7


def test_scores_are_of_trained_models_that_enough_sites_measured(make_study: Make) -> None:
    """The initial model, rounds that were not combined, and rounds without figures have none."""
    records = history_of([0.9, 0.6, None, 0.7])
    failed = record_of(3, {"ct": 0.99}, combined=False)
    last = record_of(5, {"ct": 0.8}, trained=False, combined=False, answered=["a", "b"])
    assert scores.of_rounds(make_study(), [*records[:2], failed, *records[2:], last]) == {
        1: {"ct": 0.6},
        3: {"ct": 0.7},
    }


def test_the_best_round_is_the_first_of_equals(make_small_study: Make) -> None:
    """The initial model is never the best; without any score there is no best round."""
    study = make_small_study(rounds=5)
    assert scores.best_round(study, history_of([1.0, 0.6, 0.8, 0.8, 0.7])) == 2
    assert scores.best_round(study, history_of([1.0, None])) is None
    assert scores.best_round(study, []) is None


def test_the_last_model_counts_once_enough_sites_have_measured_it(make_small_study: Make) -> None:
    """A measurement by fewer sites than the quorum says nothing, nor one of an average."""
    study, records = make_small_study(rounds=3), history_of([0.5, 0.6, 0.7])
    for answered, averaged, best in ((["a", "b"], [], 3), (["a"], [], 2), (["a", "b"], [2, 3], 2)):
        said = {"trained": False, "combined": False, "answered": answered, "averaged": averaged}
        last = record_of(4, {"ct": 0.9}, **said)
        assert scores.best_round(study, [*records, last]) == best


def plateau_of(make_study: Make, patience: int) -> Study:
    schedule = {"kind": "plateau", "patience": patience}
    study: Study = make_study(rounds=50, training={"schedule": schedule})
    return study


@pytest.mark.parametrize("patience", [1, 2, 3, 5])
def test_rates_are_lowered_as_by_pytorchs_plateau(patience: int, make_study: Make) -> None:
    """After each round the count is that of ReduceLROnPlateau on the same scores."""
    study, rng = plateau_of(make_study, patience), np.random.default_rng(patience)
    for _ in range(5):
        found = rng.integers(0, 12, size=40) / 12  # with ties
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "max", 0.5, patience - 1, threshold=0.0, threshold_mode="abs", eps=0.0
        )
        for number, score in enumerate(found, 1):
            plateau.step(float(score))
            records = history_of([None, *map(float, found[:number])])
            rate = optimizer.param_groups[0]["lr"]
            assert rate == 0.5 ** scores.times_lowered(study, records)


def test_a_round_without_a_score_is_no_round_of_a_plateau(make_study: Make) -> None:
    """What nobody measured neither lowers the rates nor starts the count anew."""
    study = plateau_of(make_study, 2)
    flat: list[float | None] = [None, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert scores.times_lowered(study, history_of(flat)) == 2
    apart = list(itertools.chain.from_iterable((score, None) for score in flat))
    assert scores.times_lowered(study, history_of(apart)) == 2


def test_other_schedules_are_not_lowered_by_scores(make_study: Make) -> None:
    """The count of a schedule that does not look at scores stays 0."""
    assert scores.times_lowered(make_study(), history_of([0.5] * 30)) == 0
