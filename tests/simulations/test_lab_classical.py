"""Laws of a lab's rows that train no network."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from client.classical import Classifier
from client.classical_ways import fit_task
from client.config import SiteConfig
from client.dataset import Images
from client.handcrafted import handcrafted_features
from client.site import Site
from common.errors import StudyError
from common.study import Study
from server.initial_weights import initial_model
from simulations import lab_reading, lab_rows
from simulations.lab_results import compare

LAB = """
name = "small"
seeds = [1]
hospitals = {{ folder = "hospitals" }}

[study]
rounds = 1
backbone = {{ name = "test_resnet", weights = "{weights}", image_size = 32 }}
tasks = {{ spots = {{ modality = "other", classes = ["without", "with"], positive = "with" }} }}
split = {{ validation = 0.2, test = 0.4 }}

[rows.frozen]
kind = "classical"
features = "backbone"
classifier = "logistic"

[rows.traditional]
kind = "classical"
features = "handcrafted"
classifier = "logistic"

[rows.together]
kind = "classical"
features = "handcrafted"
classifier = "logistic"
pooled = true

[rows.forest]
kind = "classical"
features = "handcrafted"
classifier = "forest"

[rows.ensemble]
kind = "vote"
of = ["traditional"]

[rows.random]
kind = "classical"
features = "backbone"
classifier = "svm"
study = {{ "backbone.weights" = "none" }}
"""
Floats = NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def done(template: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lab that was run, with its file and hospitals; only to be read."""
    folder = tmp_path_factory.mktemp("lab")
    for number in (1, 2):
        name = f"hospital-{number}"
        shutil.copytree(template / name, folder / "hospitals" / name)
    (folder / "lab.toml").write_text(LAB.format(weights=weights), encoding="utf-8")
    compare(lab_reading.load(folder / "lab.toml"), folder / "out", threads=1)
    return folder


@pytest.fixture(scope="module")
def images(done: Path) -> dict[str, dict[str, Images]]:
    """The images of each site, by split."""
    study = study_of(done)
    sites = [Site(SiteConfig.load(done / "hospitals" / f"hospital-{n}")) for n in (1, 2)]
    return {s.config.name: dict(s.prepare(study).tasks["spots"].splits) for s in sites}


def study_of(folder: Path) -> Study:
    lines = lab_rows.lines(lab_reading.load(folder / "lab.toml"))
    assert lines[0].study is not None
    return lines[0].study


def features_of(folder: Path, images: Images, *, backbone: bool) -> Floats:
    if not backbone:
        return handcrafted_features(images.pixels)
    model = initial_model(study_of(folder)).model.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    with torch.no_grad():
        found: Floats = model.features((images.pixels[:].float() - mean) / std).numpy()
    return found


def lines_of(folder: Path, row: str, model: str) -> list[dict[str, str]]:
    """Return what a row says of each test image."""
    (found,) = (folder / "out" / "trainings").glob(f"{row}-seed1-*/predictions-spots.csv")
    with found.open(encoding="utf-8") as file:
        every = [line for line in csv.DictReader(file) if line["split"] == "test"]
    return [line for line in every if line["model"] == model]


def said(folder: Path, row: str, model: str) -> tuple[list[int], Floats]:
    """Return the truth, and the probability of a spot, of each test image."""
    lines = lines_of(folder, row, model)
    truth = [int(line["label"] == "with") for line in lines]
    return truth, np.exp([float(line["with"]) for line in lines])


def row_of(folder: Path, name: str) -> dict[str, Any]:
    rows = json.loads((folder / "out" / "table.json").read_text())["tasks"]["spots"]["rows"]
    found: dict[str, Any] = {row["row"]: row for row in rows}[name]
    return found


@pytest.mark.parametrize("row", ["frozen", "traditional", "together"])
def test_it_is_scikit_learns_classifier_of_the_sites_own_images(
    done: Path, images: dict[str, dict[str, Images]], row: str
) -> None:
    """Fitted on training images alone, each site's own or all, and asked about all test images."""
    by = {
        (site, split): features_of(done, of[split], backbone=row == "frozen")
        for site, of in images.items()
        for split in ("train", "test")
    }
    asked = np.concatenate([by[site, "test"] for site in images])
    for model, own in {"": [*images], **{site: [site] for site in images}}.items():
        if (row == "together") != (model == ""):
            continue
        known = np.concatenate([by[site, "train"] for site in own]).astype(np.float64)
        labels = np.concatenate([images[site]["train"].labels.numpy() for site in own])
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        expected = fitted.fit(known, labels).predict_proba(asked.astype(np.float64))[:, 1]
        truth, found = said(done, row, model)
        assert truth == [v for of in images.values() for v in of["test"].labels.tolist()]
        assert found == pytest.approx(expected, abs=1e-3)


def test_a_vote_of_one_row_is_the_ensemble_of_the_sites(done: Path) -> None:
    """The mean of the probabilities that the sites' classifiers give, each patient once."""
    each = [said(done, "traditional", f"hospital-{n}")[1] for n in (1, 2)]
    lines = lines_of(done, "traditional", "hospital-1")
    shares: dict[str, list[float]] = {line["patient"]: [] for line in lines}
    for line, share in zip(lines, (each[0] + each[1]) / 2, strict=True):
        shares[line["patient"]].append(share)
    truth = {line["patient"]: int(line["label"] == "with") for line in lines}
    auroc = roc_auc_score(list(truth.values()), [np.mean(of) for of in shares.values()])
    assert row_of(done, "ensemble")["metrics"]["auroc"]["values"] == pytest.approx([auroc])
    assert 0.5 < auroc < 1
    assert row_of(done, "ensemble")["costs"]["trainable"] is None


def test_it_costs_no_round(done: Path) -> None:
    """Nothing is sent, and there is no number of weights."""
    for name in ("frozen", "traditional", "together", "forest"):
        costs = row_of(done, name)["costs"]
        assert costs["trainable"] is costs["bytes_per_round"] is None
        assert costs["seconds"] > 0


def test_seeds_change_a_forest_alone(done: Path, images: dict[str, dict[str, Images]]) -> None:
    """A row says what its classifier says at its seed; without chance in it, at each seed."""
    train = images["hospital-1"]["train"]
    known = features_of(done, train, backbone=False)
    asked = np.concatenate(
        [features_of(done, of["test"], backbone=False) for of in images.values()]
    )
    classifiers: dict[str, tuple[Classifier, bool]] = {
        "traditional": ("logistic", True),
        "forest": ("forest", False),
    }
    for row, (classifier, same) in classifiers.items():
        one, other = (
            fit_task(
                lab_rows.with_seed(study_of(done), seed),
                "spots",
                known,
                train.labels.numpy(),
                asked,
                classifier,
                whose="hospital-1",
            )
            for seed in (1, 2)
        )
        found = said(done, row, "hospital-1")[1]
        assert found == pytest.approx(np.exp(one[:, 1]), abs=1e-5)
        assert np.array_equal(one, other) == same


def test_a_random_backbone_has_no_features(done: Path) -> None:
    """The row stands in the table with the reason."""
    row = row_of(done, "random")
    assert row["trained"] == 0
    assert "random backbone" in row["reasons"][0]


def test_again_fits_nothing(done: Path) -> None:
    """What is there is not done again; classical rows of one study do not share a folder."""
    folders = sorted((done / "out" / "trainings").glob("*/result.json"))
    assert len(folders) == 4
    before = [(f.stat().st_ino, f.stat().st_mtime_ns) for f in folders]
    compare(lab_reading.load(done / "lab.toml"), done / "out", threads=1)
    assert before == [(f.stat().st_ino, f.stat().st_mtime_ns) for f in folders]


def test_what_is_no_classical_row_is_refused(done: Path, tmp_path: Path) -> None:
    """A classifier that there is none of, one without features, and keys of another kind."""
    rows = (
        '[rows.a]\nkind = "classical"\nfeatures = "backbone"\nclassifier = "forrest"\n'
        '[rows.b]\nkind = "classical"\nclassifier = "svm"\n'
        '[rows.c]\nkind = "pooled"\npooled = true\n'
    )
    text = (done / "lab.toml").read_text().split("[rows.frozen]")[0] + rows
    (tmp_path / "lab.toml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        lab_reading.load(tmp_path / "lab.toml")
    for where in ("rows.a.classifier:", "rows.b.features:", "rows.c.pooled:"):
        assert f"- {where}" in str(caught.value)
