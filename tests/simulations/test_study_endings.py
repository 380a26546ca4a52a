"""Laws of how a study ends at real sites, which train and keep what the coordinator says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from client.store import FINAL
from common.study import Study
from server.checkpoint import MODEL
from server.history import RoundRecord
from simulations.federation import Played, find_hospitals, play
from simulations.run import run_simulation

StudyOf = Callable[..., Study]


@pytest.fixture
def study_that_stands(weights: Path, study_of: StudyOf) -> StudyOf:
    """Return a maker of studies whose rounds change a model too little to change its score."""

    def make(**federation: Any) -> Study:
        return study_of(
            "spots",
            rounds=7,
            backbone={"weights": str(weights), "normalisation": "frozen"},
            training={"head_lr": 1e-12, "backbone_lr": 1e-12},
            federation=federation,
        )

    return make


def played(study: Study, hospitals: Path, out: Path) -> Played:
    return play(study, find_hospitals(hospitals), out, threads=1)


def test_a_study_that_gains_nothing_stops_and_every_site_keeps_the_best_model(
    small: Path, study_that_stands: StudyOf, tmp_path: Path
) -> None:
    """All scores are the same, so the first round's model is the best: the sites measure it last.

    Simulation, summary and sites name the same round, and hold the same arrays.
    """
    study = study_that_stands(early_stopping={"patience": 2}, keep="best")
    result = played(study, small, tmp_path / "run")
    records = result.outcome.records
    assert len({record.score for record in records}) == 1
    assert [(r.round, r.model_round, r.trained) for r in records[3:]] == [
        (4, 3, True), (5, 4, False), (6, 1, False)
    ]  # fmt: skip
    assert records[-1].stopped.startswith("Stopped early after round 4 of 7")
    final = load_file(result.outcome.model)
    for site in result.sites[:2]:
        kept = site.prepare(study).store.load_network(FINAL)
        assert kept is not None
        assert kept.model_round == 1
        assert all(np.array_equal(kept.arrays[name], final[name]) for name in final)


def test_the_summary_says_how_the_study_ended(
    small: Path, study_that_stands: StudyOf, tmp_path: Path
) -> None:
    """Rounds that it has, those that were made, and those that the model is of."""
    study = study_that_stands(early_stopping={"patience": 1}, average_last=2)
    found = run_simulation(study, find_hospitals(small), tmp_path / "run", threads=1)
    assert (found["rounds"], found["rounds_made"], found["model_round"]) == (7, 3, 3)
    assert found["averaged"] == [2, 3]
    assert found["stopped"].startswith("Stopped early after round 3 of 7")
    assert len(found["bytes"]["up"]["hospital-1"]) == 4


def rounds_of(study: Study, hospitals: Path, out: Path) -> list[tuple[int, NDArray[np.float64]]]:
    """Return how often the rates were lowered in each round, and the head's weights after it."""
    found = []

    def keep(record: RoundRecord) -> None:
        if record.trained:
            head = load_file(out / MODEL)["heads.spots.weight"]
            found.append((record.lowered, head.astype(np.float64)))

    play(study, find_hospitals(hospitals), out, threads=1, watch=keep)
    return found


def test_a_site_trains_at_the_rate_that_a_plateau_leaves(
    small: Path, weights: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Until the rates are lowered it changes nothing; then a round moves the model by so much less.

    Plain SGD moves each weight in proportion to its rate. The way is counted from the model after
    three rounds without the schedule.
    """
    training = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 4096}
    rates = {"head_lr": 1e-4, "backbone_lr": 1e-4, "train": "head"}
    schedule = {"kind": "plateau", "patience": 1, "factor": 0.25}
    backbone = {"weights": str(weights), "normalisation": "frozen"}
    constant, plateau = (
        rounds_of(
            study_of("spots", rounds=4, backbone=backbone, training=training | rates | said),
            small,
            tmp_path / name,
        )
        for name, said in (("constant", {}), ("plateau", {"schedule": schedule}))
    )
    assert [lowered for lowered, _ in constant] == [0] * 4
    assert [lowered for lowered, _ in plateau] == [0, 0, 0, 1]
    before = constant[2][1]
    moved, less = (np.abs(rounds[3][1] - before).sum() for rounds in (constant, plateau))
    assert less == pytest.approx(0.25 * moved, rel=0.01)
