"""Laws of a federation that makes its sites' features alike."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from client.alignment import alignment_of
from client.dataset import Images, round_of_batches
from client.train import train
from common.discriminator import make_discriminator
from common.layout import DISCRIMINATOR, without_discriminator
from common.models import FederatedModel
from common.study import Study
from common.weights import put, take
from server.initial_weights import initial_model
from server.stored_model import load_model
from simulations import yardsticks
from simulations.federation import find_hospitals, play

StudyOf = Callable[..., Study]
CPU = torch.device("cpu")
WIDTH, ROUNDS = 20, 60
ALIGNED = {"adversarial_weight": 1.0, "adversarial_sites": 2}
RATES = {"batch_size": 16, "head_lr": 1e-2, "backbone_lr": 1e-3}


def cases_of(site: int, count: int, rng: np.random.Generator) -> Images:
    """Return cases of a site: two numbers tell the class, and three others the site."""
    labels = rng.permutation(np.arange(count) % 2)
    x = rng.normal(size=(count, WIDTH))
    x[:, 0] += 3.0 * (labels - 0.5)
    x[:, 1] += labels - 0.5
    x[:, 2 + site] += 2.0
    x[:, 8] += 2.0 * (site - 0.5)
    x[:, 10] *= 1 + 0.5 * site
    pixels = torch.from_numpy(x).to(torch.float16).reshape(count, 1, 1, WIDTH).expand(-1, 3, -1, -1)
    return Images(pixels, torch.from_numpy(labels), tuple(map(str, range(count))))


def network_of(study: Study, seed: int) -> FederatedModel:
    torch.manual_seed(seed)
    layers = nn.Linear(3 * WIDTH, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
    heads = nn.ModuleDict({"spots": nn.Linear(32, 2)})
    model = FederatedModel(nn.Sequential(nn.Flatten(), *layers), heads)
    model.mean, model.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if study.training.adversarial_sites is not None:
        model.discriminator = make_discriminator(32, study.training.adversarial_sites)
    return model


def federated(study: Study, sites: list[Images], seed: int) -> FederatedModel:
    """Train by FedAvg over sites of one size."""
    model = network_of(study, seed)
    for number in range(1, study.rounds + 1):
        replies = []
        for place, cases in enumerate(sites):
            own, images = copy.deepcopy(model), {"spots": cases}
            order = round_of_batches(images, study.training, seed + 1000 * number + place)
            alignment = alignment_of(own, study, place, number)
            train(own, images, order, study, device=CPU, number=number, alignment=alignment)
            replies.append(take(own, own.state_dict()))
        put(model, {n: np.mean([of[n] for of in replies], axis=0) for n in replies[0]})
    return model


def told_apart(model: FederatedModel, sites: list[Images], others: list[Images]) -> float:
    """Return how often a logistic regression on features tells the site of cases unseen."""

    def features(of: list[Images]) -> tuple[NDArray[Any], NDArray[Any]]:
        with torch.no_grad():
            found = [model.features(images.pixels[:].float()).numpy() for images in of]
        return np.concatenate(found), np.repeat([0, 1], [len(one) for one in found])

    teller = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    return float(teller.fit(*features(sites)).score(*features(others)))


@pytest.mark.slow
def test_features_of_sites_become_alike(study_of: StudyOf) -> None:
    """A logistic regression tells sites apart from features less often than after FedAvg alone."""
    found: dict[str, list[float]] = {"alike": [], "plain": []}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        sites = [cases_of(site, 128, rng) for site in range(2)]
        others = [cases_of(site, 300, rng) for site in range(2)]
        for name, training in {"alike": RATES | ALIGNED, "plain": RATES}.items():
            study = study_of("spots", rounds=ROUNDS, training=training)
            model = federated(study, sites, seed)
            found[name].append(told_apart(model, sites, others))
    assert np.mean(found["alike"]) < np.mean(found["plain"]) - 0.03


def test_the_model_of_a_played_study_is_asked_without_its_discriminator(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """The coordinator keeps and averages what tells sites apart; who asks the model does not."""
    hospitals = find_hospitals(small)[:2]
    out, again = tmp_path / "out", tmp_path / "again"
    study = study_of("spots", training=ALIGNED)
    model = play(study, hospitals, out, threads=1).outcome.model
    arrays = load_file(model)
    own = arrays.keys() - without_discriminator(arrays).keys()
    assert own == {
        f"{DISCRIMINATOR}{layer}.{kind}" for layer in "13" for kind in ("weight", "bias")
    }
    assert arrays[f"{DISCRIMINATOR}3.bias"].shape == (2,)
    assert own.isdisjoint(load_model(study, model).state_dict())
    with safe_open(model, framework="numpy") as file:
        assert json.loads(json.loads(file.metadata()["rarefed"])["places"]) == [
            hospital.name for hospital in hospitals
        ]

    found = load_file(play(study, hospitals, again, threads=1).outcome.model)
    assert all(np.array_equal(arrays[name], found[name]) for name in arrays)


def test_all_patients_pooled_have_no_sites(small: Path, study_of: StudyOf, tmp_path: Path) -> None:
    """The pooled yardstick is as in a study without alignment, to the last bit."""
    hospitals, found = find_hospitals(small)[:2], []
    for name, training in {"aligned": ALIGNED, "plain": {}}.items():
        study = study_of("spots", rounds=1, training=training)
        played = play(study, hospitals, tmp_path / name, threads=1)
        first = initial_model(study).model
        ((_, model),) = yardsticks.each_pooled(study, played.sites, first, lambda _: None)
        found.append(without_discriminator(take(model, model.state_dict())))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[1])
    assert found[0].keys() == found[1].keys()
