"""Laws of a federation whose rounds train different layers."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from client.config import SiteConfig
from client.own_rounds import train_rounds
from client.site import Site
from common.study import Study
from common.weights import take
from server.history import RoundRecord
from server.initial_weights import initial_model
from simulations import yardsticks
from simulations.federation import find_hospitals, play

StudyOf = Callable[..., Study]
PHASES = {"phases": [{"rounds": 1, "train": "last:1"}, {"rounds": 2, "train": "head"}]}


class StoppedError(Exception):
    """The coordinator's process ends."""


@pytest.fixture
def phased(study_of: StudyOf, weights: Path) -> StudyOf:
    """Return the maker of a study of four rounds whose layers thaw."""

    def make(strategy: str = "fedavg", **training: Any) -> Study:
        backbone, federation = {"weights": str(weights)}, {"strategy": strategy}
        return study_of(
            "spots",
            rounds=4,
            backbone=backbone,
            training=training or PHASES,
            federation=federation,
        )

    return make


@pytest.mark.parametrize(
    ("strategy", "training", "last"),
    [("fedadam", PHASES, 2), ("fedavg", {"unfreeze_every": 2, "train": "last:2"}, 3)],
)
def test_a_study_that_was_stopped_ends_in_the_same_bytes(
    small: Path, phased: StudyOf, tmp_path: Path, strategy: str, training: dict[str, Any], last: int
) -> None:
    """Whether sites kept their features through a phase or began in the midst of it, is no matter.

    With momentum at the coordinator, what a phase freezes moves all the same: features that were
    kept over that would show here.
    """
    study, folders = phased(strategy, **training), find_hospitals(small)[:2]
    whole = play(study, folders, tmp_path / "whole", threads=1)

    def stop(record: RoundRecord) -> None:
        if record.round == last:
            raise StoppedError

    with pytest.raises(StoppedError):
        play(study, folders, tmp_path / "stopped", threads=1, watch=stop)
    again = play(study, folders, tmp_path / "stopped", threads=1)
    assert again.outcome.model.read_bytes() == whole.outcome.model.read_bytes()
    figures = [[record.tasks for record in each.outcome.records] for each in (whole, again)]
    assert figures[0] == figures[1]


def test_rounds_change_what_their_phase_trains(
    small: Path, phased: StudyOf, tmp_path: Path
) -> None:
    """From round to round of fedavg, the model differs in what the phase trains, and only there."""
    study = phased()
    start = initial_model(study).model
    models: list[dict[str, NDArray[Any]]] = [take(start, start.state_dict())]

    def keep(_: RoundRecord) -> None:
        models.append(load_file(tmp_path / "run" / "model.safetensors"))

    play(study, find_hospitals(small)[:2], tmp_path / "run", threads=1, watch=keep)
    moved = [
        {name.removeprefix("backbone.").split(".")[0] for name, value in after.items()
         if not np.array_equal(before[name], value)}
        for before, after in pairwise(models)
    ]  # fmt: skip
    everything = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "heads"}
    assert moved == [{"layer4", "heads"}, {"heads"}, {"heads"}, everything, set()]


def test_yardsticks_go_through_the_same_phases(small: Path, phased: StudyOf) -> None:
    """A network that is trained on all patients keeps what the phases of its rounds freeze."""
    study = phased().model_copy(update={"rounds": 3})
    sites = [Site(SiteConfig.load(folder)) for folder in find_hospitals(small)[:2]]
    patients = yardsticks.pooled_patients(study, sites)
    model = initial_model(study).model
    before = take(model, model.state_dict())
    train_rounds(model, patients._replace(steps=4), study, device=sites[0].device)
    after = take(model, model.state_dict())
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert any(name.startswith("backbone.layer4.") for name in moved)
    assert all(name.startswith(("backbone.layer4.", "heads.")) for name in moved)
