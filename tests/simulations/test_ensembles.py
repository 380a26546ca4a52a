"""Laws of a federation whose network is an ensemble."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import save_file

from common.models import build_model
from common.study import Study
from server.checkpoint import MODEL
from simulations.federation import Played, find_hospitals, play

StudyOf = Callable[..., Study]
PAIR: list[dict[str, Any]] = [{}, {"name": "test_efficientnet", "seed": 1}]
SGD: dict[str, Any] = {"optimizer": "sgd", "backbone_lr": 1e-2}


def played(study: Study, hospitals: list[Path], out: Path) -> Played:
    return play(study, hospitals, out, threads=1)


@pytest.mark.parametrize(
    ("training", "rounds"),
    [(SGD, 2), (SGD | {"layer_decay": 0.7}, 1)],
    ids=["sgd", "by layer"],
)
def test_members_end_where_they_would_have_ended_alone(
    small: Path, study_of: StudyOf, tmp_path: Path, training: dict[str, Any], rounds: int
) -> None:
    """A federation of two backbones trains each as a federation of that one alone does."""
    hospitals = find_hospitals(small)[:2]
    study = study_of("spots", rounds=rounds, ensemble=PAIR, training=training)
    found = load_file(played(study, hospitals, tmp_path / "both").outcome.model)
    for number, member in enumerate(study.members):
        assert member.seed == study.seed  # which the order of the images hangs on
        alone = load_file(played(member, hospitals, tmp_path / str(number)).outcome.model)
        inner = f".members.{number}."
        own = {name.replace(inner, "."): v for name, v in found.items() if inner in name}
        assert set(own) == set(alone)
        for name, value in alone.items():
            np.testing.assert_allclose(own[name], value, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.fixture
def pretrained(study_of: StudyOf, weights: Path, tmp_path: Path) -> StudyOf:
    """Return a maker of studies of two rounds whose two members begin with weights of files."""
    other = tmp_path / "other.safetensors"
    save_file(
        build_model(study_of(backbone={"name": "test_efficientnet"})).backbone.state_dict(), other
    )
    ensemble = [{}, {"name": "test_efficientnet", "weights": str(other)}]

    def make(backbone: dict[str, Any] | None = None, **sections: Any) -> Study:
        backbone = {"weights": str(weights)} | (backbone or {})
        return study_of("spots", rounds=2, backbone=backbone, ensemble=ensemble, **sections)

    return make


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"train": "head"}},
        {"training": {"train": "last:1", "anchor_weight": 1.0, "distillation_weight": 1.0}},
        {"federation": {"personal": "head", "strategy": "fedprox"}},
        {"evaluation": {"normalisation": "adapted", "attention": "gradcam"}},
    ],
    ids=["head", "near", "FedPer", "adapted"],
)
def test_an_ensemble_goes_the_way_of_any_network(
    small: Path, pretrained: StudyOf, tmp_path: Path, sections: dict[str, Any]
) -> None:
    """Ways of training go on as with one network: each round has what the sites learned."""
    study = pretrained(**sections)
    outcome = played(study, find_hospitals(small)[:2], tmp_path / "out").outcome
    assert [record.combined for record in outcome.records] == [True, True, False]


def test_two_runs_of_an_ensemble_end_in_the_same_bytes(
    small: Path, pretrained: StudyOf, tmp_path: Path
) -> None:
    """Also where its layers thaw from round to round and each site normalises by itself."""
    study = pretrained({"normalisation": "local"}, training={"unfreeze_every": 1})
    for name in ("one", "two"):
        outcome = played(study, find_hospitals(small)[:2], tmp_path / name).outcome
        assert [record.combined for record in outcome.records] == [True, True, False]
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "two" / MODEL).read_bytes()


def test_an_ensemble_is_trained_privately(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """Noise and bound are over all members; the model that comes is finite, and another one."""
    pair = [{"name": "test_vit"}, {"name": "test_convnext"}]
    study = study_of("spots", ensemble=pair, rounds=1, privacy={"epsilon": 8.0})
    outcome = played(study, find_hospitals(small)[:2], tmp_path / "out").outcome
    first = build_model(study).state_dict()
    found = load_file(outcome.model)
    assert all(np.isfinite(value).all() for value in found.values())
    moved = [name for name in found if not np.array_equal(found[name], first[name].numpy())]
    assert {name.split(".")[2] for name in moved if name.startswith("backbone.")} == {"0", "1"}
