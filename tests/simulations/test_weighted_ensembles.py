"""Laws of an ensemble whose members vote by their validation scores, at real sites."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.metrics import log_loss, roc_auc_score

from client.config import SiteConfig
from client.preprocess import normalise
from client.site import Site
from client.store import FINAL
from common.ensemble import MemberHeads
from common.layout import votes_name
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import put
from server.initial_weights import initial_model
from simulations import yardsticks
from simulations.federation import Played, find_hospitals, play

StudyOf = Callable[..., Study]
Floats = NDArray[np.float64]
VOTES = {"votes": "validation"}
PAIR: list[dict[str, Any]] = [{}, {"name": "test_efficientnet", "seed": 1}]
NAME = votes_name("spots")


def said(played: Played, study: Study, split: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return what each member of the final model says of each patient; see ``said_by``."""
    model = build_model(study).eval()
    put(model, load_file(played.outcome.model))
    return said_by(model, played.sites, study, split)


def said_by(
    model: FederatedModel, sites: Sequence[Site], study: Study, split: str
) -> tuple[Floats, NDArray[np.int64]]:
    """Return what each member says of each patient of all sites, shape (M, P), and what is true.

    It is the probability of the positive class, the mean over the patient's images.
    """
    columns, truth = [], []
    heads = model.heads["spots"]
    assert isinstance(heads, MemberHeads)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    for site in sites:
        images = site.prepare(study).tasks["spots"].splits[split]
        with torch.no_grad():
            pixels = images.pixels[torch.arange(len(images))]
            features = model.features(normalise(pixels, mean, std))
            each = zip(heads.members, model.by_member(features), strict=True)
            found_MN = [head(own).softmax(dim=1)[:, 1].numpy() for head, own in each]
        owners, labels = np.array(images.patients), images.labels.numpy()
        for patient in sorted(set(images.patients)):
            columns.append([one[owners == patient].mean() for one in found_MN])
            truth.append(labels[owners == patient].max())
    return np.array(columns, np.float64).T, np.array(truth)


@pytest.mark.parametrize(
    ("score", "ending"), [("auroc", {"keep": "best"}), ("loss", {"average_last": 2})]
)
def test_figures_are_of_the_mean_weighted_by_hand(
    small: Path, study_of: StudyOf, tmp_path: Path, score: str, ending: dict[str, Any]
) -> None:
    """Weights are scikit-learn's scores of each member; test figures those of the mixture."""
    study = study_of("spots", ensemble=PAIR, federation=VOTES | ending | {"score": score})
    played = play(study, find_hospitals(small)[:2], tmp_path / "out", threads=1)
    *_, measured, final = played.outcome.records
    each_MP, truth = said(played, study, "validation")
    bounds = [m["auroc_bound"] for m in measured.tasks["spots"]["validation"]["members"]]
    if score == "auroc":
        assert max(bounds) < 0.05
    else:
        bounds = [1e-5]
    votes = np.array(final.votes["spots"])
    by_hand = shares(score, each_MP, truth)
    np.testing.assert_allclose(votes, by_hand, atol=max(*bounds, 1e-6))
    assert votes.std() > 1e-4
    assert measured.votes == {"spots": [0.5, 0.5]}
    test_MP, truth = said(played, study, "test")
    mixed = votes @ test_MP
    found = final.tasks["spots"]["test"]["patients"]["pooled"]
    assert found["loss"] == pytest.approx(log_loss(truth, mixed), rel=1e-4)
    assert found["auroc"] == pytest.approx(
        roc_auc_score(truth, mixed), abs=found["auroc_bound"] + 1e-9
    )
    for site in played.sites:
        kept = site.prepare(study).store.load_network(FINAL)
        assert kept is not None
        assert np.array_equal(kept.arrays[NAME], np.array(votes, np.float32))


def shares(score: str, each_MP: Floats, truth: NDArray[np.int64]) -> Floats:
    """Return what the members should weigh, by scikit-learn's scores of each."""
    if score == "auroc":
        worth = [roc_auc_score(truth, one) for one in each_MP]
    else:
        worth = [np.exp(-log_loss(truth, one)) for one in each_MP]
    return np.array(worth) / sum(worth)


@pytest.mark.parametrize(
    ("score", "ending"), [("auroc", {"keep": "best"}), ("loss", {"average_last": 2})]
)
def test_members_vote_in_yardsticks_too(
    small: Path, study_of: StudyOf, score: str, ending: dict[str, Any]
) -> None:
    """Weights are scikit-learn's scores: of a site alone on its own patients, pooled on all."""
    federation, split = VOTES | ending | {"score": score}, {"validation": 0.4, "test": 0.3}
    study = study_of("spots", ensemble=PAIR, federation=federation, split=split)
    hospitals = find_hospitals(small)[:2]
    for number, folder in enumerate(hospitals, 1):  # both classes among the patients, in every run
        (folder / "state").mkdir(exist_ok=True)
        (folder / "state" / "site.key").write_text(f"{number:064x}\n")
    sites = [Site(SiteConfig.load(folder)) for folder in hospitals]
    start = initial_model(study).model
    alone = yardsticks.each_alone(study, sites, start, lambda _: None)
    pooled = yardsticks.each_pooled(study, sites, start, lambda _: None)
    whose = [(model, [site]) for site, model, _ in alone]
    whose += [(model, sites) for _, model in pooled]
    assert len(whose) == 3
    for model, asked in whose:
        heads = model.eval().heads["spots"]
        assert isinstance(heads, MemberHeads)
        assert heads.votes is not None
        by_hand = shares(score, *said_by(model, asked, study, "validation"))
        off = 0.005 if score == "auroc" else 1e-5  # an AUROC is of a histogram
        np.testing.assert_allclose(heads.votes.numpy(), by_hand, atol=off)
        assert heads.votes.std() > 1e-4


@pytest.mark.slow
def test_private_training_leaves_the_votes_alone(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Rounds with noise end with equal votes to the bit; the validation scores then change them."""
    pair = [{"name": "test_vit"}, {"name": "test_convnext"}]
    study = study_of("spots", ensemble=pair, rounds=1, privacy={"epsilon": 8.0}, federation=VOTES)
    played = play(study, find_hospitals(small)[:2], tmp_path / "out", threads=1)
    trained, measured, final = played.outcome.records
    assert trained.combined
    assert measured.votes == {"spots": [0.5, 0.5]}
    assert sum(final.votes["spots"]) == pytest.approx(1.0)


def test_where_patients_are_too_few_the_members_weigh_the_same(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """Sites that keep their figures to themselves keep those of the members too."""
    hospitals = find_hospitals(small)[:2]
    for folder in hospitals:
        text = (folder / "site.toml").read_text()
        assert "minimum_patients = 1 " in text
        strict = text.replace("minimum_patients = 1 ", "minimum_patients = 50 ")
        (folder / "site.toml").write_text(strict)
    study = study_of("spots", ensemble=PAIR, rounds=1, federation=VOTES)
    played = play(study, hospitals, tmp_path / "out", threads=1)
    assert [record.tasks for record in played.outcome.records] == [{}] * 3
    assert played.outcome.records[-1].votes == {"spots": [0.5, 0.5]}
