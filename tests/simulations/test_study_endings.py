"""Laws of how a study ends at real sites, which train and keep what the coordinator says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.store import FINAL
from common.study import Study
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


def test_a_site_trains_at_the_rate_that_a_plateau_leaves(
    small: Path, weights: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Until the rates are lowered it changes nothing; then a round moves the model by so much less.

    Plain SGD moves each weight in proportion to its rate. Where it has moved it is counted from the
    model after three rounds without the schedule.
    """
    training = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 4096}
    rates = {"head_lr": 1e-4, "backbone_lr": 1e-4, "train": "head"}
    schedule = {"kind": "plateau", "patience": 1, "factor": 0.25}
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for kind, said in (("constant", {}), ("plateau", {"schedule": schedule})):
        for rounds in (3, 4) if kind == "constant" else (4,):
            backbone = {"weights": str(weights), "normalisation": "frozen"}
            values = training | rates | said
            study = study_of("spots", rounds=rounds, backbone=backbone, training=values)
            result = played(study, small, tmp_path / f"{kind}-{rounds}")
            last[kind, rounds] = load_file(result.outcome.model)
            expected = [0, 0, 0, 1] if kind == "plateau" else [0] * 4
            assert [r.lowered for r in result.outcome.records if r.trained] == expected[:rounds]
    name = "heads.spots.weight"
    before = last["constant", 3][name].astype(float)
    moved = {kind: np.abs(last[kind, 4][name] - before).sum() for kind in ("constant", "plateau")}
    assert moved["plateau"] == pytest.approx(0.25 * moved["constant"], rel=0.01)
