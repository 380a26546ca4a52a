"""Laws of how the yardsticks end: by the study's rules, as the federation does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.config import SiteConfig
from client.evaluate import evaluate
from client.own_rounds import train_rounds
from client.own_scores import figures_of
from client.site import Site
from common.arrays import digest
from common.models import FederatedModel
from common.study import Study
from common.weights import take
from server import history
from server.history import RoundRecord
from server.initial_weights import initial_model
from simulations import yardsticks
from simulations.federation import find_hospitals, play
from simulations.lab_ask import Recipe, bytes_per_round, train_and_ask

StudyOf = Callable[..., Study]
CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 4096}
STANDING = {**SGD, "head_lr": 1e-4, "backbone_lr": 1e-4, "train": "head"}
"""Rates at which each round moves the weights, and none a score."""


@pytest.fixture
def standing(weights: Path, study_of: StudyOf) -> StudyOf:
    """Return a maker of studies of one task whose rounds change a model, but not its score."""

    def make(**changes: Any) -> Study:
        values = {
            "backbone": {"weights": str(weights), "normalisation": "frozen"},
            "split": {"validation": 0.4, "test": 0.3},
        }
        training = STANDING | changes.pop("training", {})
        return study_of("spots", **values, training=training, **changes)

    return make


@pytest.fixture
def dealt(small: Path) -> list[Path]:
    """Return two hospitals of one task whose splits are the same in every run."""
    folders = find_hospitals(small)[:2]
    for number, folder in enumerate(folders, 1):
        (folder / "state").mkdir(exist_ok=True)
        (folder / "state" / "site.key").write_text(f"{number:064x}\n")
    return folders


def quiet(_said: str) -> None:
    pass


def arrays_of(model: FederatedModel) -> dict[str, Any]:
    return take(model, model.state_dict())


@pytest.mark.parametrize(
    ("federation", "schedule", "rounds"),
    [
        ({"early_stopping": {"patience": 1}}, {}, 3),
        ({"early_stopping": {"patience": 2}, "keep": "best"}, {}, 4),
        ({"early_stopping": {"patience": 1}, "average_last": 2}, {}, 3),
        ({}, {"schedule": {"kind": "plateau", "patience": 1, "factor": 0.1}}, 6),
    ],
    ids=["early", "best", "average", "plateau"],
)
def test_alone_ends_as_a_federation_of_one(
    dealt: list[Path],
    standing: StudyOf,
    tmp_path: Path,
    federation: dict[str, Any],
    schedule: dict[str, Any],
    rounds: int,
) -> None:
    """As many rounds, and the same round's network, the same average, or the same rates."""
    study = standing(rounds=6, training=schedule, federation=federation)
    folder = dealt[0]
    outcome = play(study, [folder], tmp_path / "run", threads=1).outcome
    made: list[int] = []
    ((_, model, _),) = yardsticks.each_alone(
        study, [Site(SiteConfig.load(folder))], initial_model(study).model, quiet, made.append
    )
    assert len(made) == sum(record.trained for record in outcome.records) == rounds
    found, expected = arrays_of(model), load_file(outcome.model)
    first = arrays_of(initial_model(study).model)
    moved, off = (
        max(float(np.abs(one[name] - expected[name]).max()) for name in expected)
        for one in (first, found)
    )
    assert off < 1e-3 * moved


def test_pooled_is_judged_in_each_round_as_in_the_end(small: Path, study_of: StudyOf) -> None:
    """Its scores are those of each task's own statistics, on all sites' validation patients."""
    # At these rates round 2 of 3 is the best; by mixed statistics the first would be.
    rates = {"head_lr": 1e-2, "backbone_lr": 3e-4}
    plain = study_of("spots", "bars", rounds=3, training=rates, federation={"score": "loss"})
    best = plain.federation.model_copy(update={"keep": "best"})
    sites = [Site(SiteConfig.load(folder)) for folder in find_hospitals(small)[:3]]
    start, found, ends = initial_model(plain).model, [], []
    model = copy.deepcopy(start).to(memory_format=torch.channels_last)
    patients = yardsticks.pooled_patients(plain, sites)

    def judge(number: int) -> None:
        forms = {
            task: yardsticks._with_statistics_of(task, model, patients.train, plain, number)
            for task in plain.tasks
        }
        measure = lambda task, images: evaluate(  # noqa: E731 - one call
            forms[task], images, task, plain.tasks[task], device=CPU
        )
        found.append(sum(figures_of(measure, patients.validation, plain).values()))
        ends.append({task: digest(arrays_of(form)) for task, form in forms.items()})

    train_rounds(model, patients, plain, device=CPU, progress=judge)
    assert np.argmax(found) == 1
    study = plain.model_copy(update={"federation": best})
    kept = dict(yardsticks.each_pooled(study, sites, start, quiet))
    assert {task: digest(arrays_of(form)) for task, form in kept.items()} == ends[1]


def test_pooled_keeps_the_statistics_of_the_kept_rounds_phase(
    small: Path, weights: Path, study_of: StudyOf
) -> None:
    """Where the best round trained heads alone, no statistics are estimated anew for any task."""
    harmful = SGD | {"head_lr": 1e-4, "backbone_lr": 1e3}
    study = study_of(
        "spots",
        "bars",
        rounds=2,
        backbone={"weights": str(weights)},
        training=harmful | {"phases": [{"rounds": 1, "train": "head"}]},
        federation={"score": "loss", "keep": "best"},
        split={"validation": 0.4, "test": 0.3},
    )
    sites = [Site(SiteConfig.load(folder)) for folder in find_hospitals(small)[:3]]
    start = initial_model(study).model
    first = {name: value for name, value in arrays_of(start).items() if "heads" not in name}
    assert any("running_mean" in name for name in first)
    for _, model in yardsticks.each_pooled(study, sites, start, quiet):
        kept = arrays_of(model)
        assert all(np.array_equal(kept[name], value) for name, value in first.items())


@pytest.mark.parametrize("kind", ["alone", "pooled"])
def test_a_lab_tells_the_rounds_that_were_made(
    dealt: list[Path], standing: StudyOf, tmp_path: Path, kind: Any
) -> None:
    """Scores that gain too little end a yardstick after as many rounds as the federation."""
    stopping = {"patience": 1, "least_gain": 0.9}
    study = standing(rounds=8, federation={"early_stopping": stopping, "score": "loss"})
    rounds = {
        trained: train_and_ask(
            Recipe(trained, study), dealt, tmp_path / trained, threads=1, tell=quiet
        ).facts.rounds
        for trained in ("federated", kind)
    }
    assert rounds == {"federated": 3, kind: 3}


@pytest.mark.parametrize("kind", ["alone", "pooled"])
def test_a_schedule_counts_the_rounds_from_the_first(
    dealt: list[Path], standing: StudyOf, kind: str
) -> None:
    """A step of a quarter lets round 2 move the head a quarter as far as a constant rate does."""
    sites = [Site(SiteConfig.load(dealt[0]))]
    step = {"schedule": {"kind": "step", "period": 1, "factor": 0.25}}
    heads = []
    for rounds, training in ((1, {}), (2, {}), (2, step)):
        study = standing(rounds=rounds, training=training)
        start = initial_model(study).model
        if kind == "alone":
            ((_, model, _),) = yardsticks.each_alone(study, sites, start, quiet)
        else:
            ((_, model),) = yardsticks.each_pooled(study, sites, start, quiet)
        heads.append(arrays_of(model)["heads.spots.weight"].astype(float))
    first, constant, stepped = heads
    moved = np.abs(stepped - first).sum()
    assert moved == pytest.approx(0.25 * np.abs(constant - first).sum(), rel=0.01)


def test_bytes_a_round_are_those_of_the_rounds(
    dealt: list[Path], standing: StudyOf, tmp_path: Path
) -> None:
    """By hand: exchanges that only measure, and rounds that sites make alone, are no part of it."""
    sent = {"a": {"down": 100, "up": 50}, "b": {"down": 10, "up": 5}}
    records = [
        RoundRecord(1, 0, trained=True, bytes=sent),
        RoundRecord(2, 1, trained=True, bytes={"a": {"down": 30, "up": 5}}),
        RoundRecord(3, 2, trained=False, bytes=sent),
    ]
    assert bytes_per_round(records) == (165 + 35) / 2
    assert bytes_per_round([]) == 0.0
    recipe = Recipe("tuned", standing(), rounds_after=3)
    facts = train_and_ask(recipe, dealt, tmp_path / "run", threads=1, tell=quiet).facts
    first, second, last = (
        sum(way["down"] + way["up"] for way in record.bytes.values())
        for record in history.load(tmp_path / "run")
    )
    assert last > 0
    assert (facts.rounds, facts.bytes_per_round) == (2 + 3, (first + second) / 2)
