"""Laws of a federation whose network is held near the initial backbone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.alone import train_alone
from client.config import SiteConfig
from client.own_rounds import train_rounds
from client.site import Site
from common.arrays import Arrays, digest
from common.layout import arrays_sent_once
from common.models import build_model
from common.study import Study
from common.weights import layout_of, put, take
from server.checkpoint import INITIAL, MODEL
from server.initial_weights import initial_model
from server.stored_arrays import StoredArrays
from simulations import yardsticks
from simulations.federation import Played, find_hospitals, play

StudyOf = Callable[..., Study]
CPU = torch.device("cpu")
SGD: dict[str, Any] = {"optimizer": "sgd", "backbone_lr": 1e-2}


def played(study: Study, hospitals: list[Path], out: Path) -> Played:
    return play(study, hospitals, out, threads=1)


def off(found: Arrays, other: Arrays) -> float:
    """Return how far the backbones' weights lie apart."""
    names = [n for n in found if n.startswith("backbone.") and n.endswith(("weight", "bias"))]
    return float(np.sqrt(sum(np.square(found[n] - other[n]).sum() for n in names)))


def off_in_features(study: Study, found: Arrays, other: Arrays) -> float:
    """Return the mean squared difference of the features of noise."""
    x_BCHW = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = []
    for arrays in (found, other):
        model = build_model(study).eval()
        put(model, arrays)
        with torch.no_grad():
            features.append(model.features(x_BCHW))
    return (features[0] - features[1]).square().mean().item()


def frozen_norm(weights: Path) -> dict[str, str]:
    """Return a backbone whose features in training are those of evaluation."""
    return {"weights": str(weights), "normalisation": "frozen"}


@pytest.mark.parametrize("key", ["anchor_weight", "distillation_weight"])
def test_a_federation_stays_near_its_beginning(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path, key: str
) -> None:
    """Either holds weights or features back; the model's file has the network's arrays alone."""
    hospitals, found = find_hospitals(small)[:1], {}
    for name, training in {"near": SGD | {key: 50.0}, "far": SGD}.items():
        study = study_of("spots", backbone=frozen_norm(weights), training=training)
        start = initial_model(study).model
        first = take(start, start.state_dict())
        outcome = played(study, hospitals, tmp_path / name).outcome
        model = load_file(outcome.model)
        assert set(model) == set(first)
        measure = off if key == "anchor_weight" else partial(off_in_features, study)
        found[name] = measure(model, first)
        layout = layout_of(start, study)
        assert (tmp_path / name / INITIAL).exists() == bool(layout.initial) == (name == "near")
        if layout.initial:
            kept = StoredArrays(tmp_path / name / INITIAL, layout.names_sent_once)
            assert digest(kept) == digest(arrays_sent_once(first, layout))
    assert found["near"] < 0.9 * found["far"]


def test_near_twice_is_the_same_bytes(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path
) -> None:
    """Two runs of one study end in the same file, with kept features of frozen stages too."""
    training = {"anchor_weight": 1.0, "distillation_weight": 1.0, "train": "last:1"}
    study = study_of("spots", rounds=1, backbone={"weights": str(weights)}, training=training)
    hospitals = find_hospitals(small)[:2]
    for name in ("one", "two"):
        played(study, hospitals, tmp_path / name)
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "two" / MODEL).read_bytes()


@pytest.mark.parametrize("train", ["all", "last:1"])
def test_alone_and_pooled_stay_near_as_a_federation_of_one(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path, train: str
) -> None:
    """From the same network, near the same arrays, a site alone ends where its federation does."""
    near = {"anchor_weight": 20.0, "distillation_weight": 20.0, "train": train}
    ends: dict[str, Arrays] = {}
    folder = find_hospitals(small)[0]
    for name, training in {"near": SGD | near, "far": SGD | {"train": train}}.items():
        study = study_of("spots", backbone=frozen_norm(weights), training=training)
        ends[name] = load_file(played(study, [folder], tmp_path / name).outcome.model)
        site = Site(SiteConfig.load(folder))
        images = yardsticks._images(study, site, "train")
        alone = train_alone(
            initial_model(study).model, images, study, site=site.config.name, device=CPU
        )
        ends[f"{name} alone"] = take(alone, alone.state_dict())
        pooled = initial_model(study).model
        train_rounds(pooled, yardsticks.pooled_patients(study, [site]), study, device=CPU)
        ends[f"{name} pooled"] = take(pooled, pooled.state_dict())
    first = initial_model(study).model
    start = take(first, first.state_dict())
    assert off(ends["near alone"], ends["near"]) < 0.05 * off(ends["far alone"], ends["near"])
    assert off(ends["near pooled"], start) < 0.9 * off(ends["far pooled"], start)
