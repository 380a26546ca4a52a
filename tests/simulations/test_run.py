"""Laws of one run: which files it writes, and that what they say is true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from client.config import SiteConfig
from client.dataset import Images
from client.evaluate import logits_of
from client.site import Site
from common.errors import OutputError
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import put
from server.initial_weights import initial_model
from simulations.federation import find_hospitals
from simulations.run import read_summary, run_simulation

StudyOf = Callable[..., Study]
Scores = tuple[NDArray[np.float64], NDArray[np.int64]]
HISTORY_KEYS = {
    "round", "model_round", "trained", "combined", "asked", "answered", "refused", "silent",
    "late", "resent", "joined", "tasks", "training", "bytes", "seconds",
    "central_privacy", "audit_heads", "audit_faults", "each_image", "declared",
    "score", "lowered", "averaged", "stopped", "votes",
}  # fmt: skip


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def scores(
    study: Study, model: FederatedModel, hospitals: Path, task: str, split: str
) -> dict[str, Scores]:
    """Return probabilities and labels of every site that has the task."""
    found = {}
    for folder in find_hospitals(hospitals):
        site = Site(SiteConfig.load(folder))
        data = site.prepare(study).tasks
        if task in data:
            images = data[task].splits[split]
            logits = logits_of(model, images, task, device=torch.device("cpu"))
            found[folder.name] = softmax(logits.astype(float), axis=1), images.labels.numpy()
    return found


def pooled(parts: dict[str, Scores]) -> Scores:
    probabilities, labels = zip(*parts.values(), strict=True)
    return np.concatenate(probabilities), np.concatenate(labels)


def check_against_scikit_learn(stated: dict[str, Any], found: Scores, positive: int | None) -> None:
    """Counts are exact, sums agree to rounding, and AUROC is within its own bound."""
    probabilities, truth = found
    said = probabilities.argmax(axis=1)
    assert stated["n_images"] == len(truth)
    assert stated["accuracy"] == accuracy_score(truth, said)
    assert stated["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, said))
    assert stated["loss"] == pytest.approx(log_loss(truth, probabilities, labels=[0, 1]), rel=1e-5)
    if positive is None:
        auroc = roc_auc_score(truth, probabilities[:, 1])  # of two classes, both ways the same
    else:
        auroc = roc_auc_score(truth == positive, probabilities[:, positive])
        sensitivity = recall_score(truth, said, pos_label=positive)
        assert stated["sensitivity"] == pytest.approx(sensitivity)
        assert stated["specificity"] == pytest.approx(
            recall_score(truth, said, pos_label=1 - positive)
        )
        assert stated["f1"] == pytest.approx(f1_score(truth, said, pos_label=positive))
        brier = brier_score_loss(truth == positive, probabilities[:, positive])
        assert stated["brier"] == pytest.approx(brier, rel=1e-5)
    assert abs(stated["auroc"] - auroc) <= stated["auroc_bound"] + 1e-9


def test_a_run_leaves_four_files(finished: Path) -> None:
    """Summary, history, model and curves are there, and nothing else."""
    names = {"summary.json", "history.jsonl", "model.safetensors", "curves.png"}
    assert {file.name for file in finished.iterdir()} == names
    with Image.open(finished / "curves.png") as image:
        image.load()
        assert image.format == "PNG"


def test_the_history_has_a_line_for_each_exchange(finished: Path, long_study: Study) -> None:
    """There are rounds + 1 lines of one form, and the last exchange only measures."""
    study, lines = long_study, history(finished)
    assert [set(line) for line in lines] == [HISTORY_KEYS] * (study.rounds + 1)
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert [line["model_round"] for line in lines] == [0, 1, 2, 3]
    assert [line["trained"] for line in lines] == [True] * 3 + [False]
    names = [f"hospital-{number}" for number in range(1, 5)]
    assert all(line["asked"] == line["answered"] == names for line in lines)
    assert all(line["refused"] == {} and line["silent"] == [] for line in lines)
    assert [sorted(line["training"]) for line in lines] == [names] * 3 + [[]]
    assert lines[-1]["tasks"]["bars"]["test"] == read_summary(finished)["tasks"]["bars"]


def test_the_model_says_what_it_is(finished: Path, long_study: Study) -> None:
    """The file holds every array of the network, and its header the study, digest and round."""
    with safe_open(finished / "model.safetensors", framework="numpy") as file:
        notes = json.loads(file.metadata()["rarefed"])
        assert set(file.keys()) == set(build_model(long_study).state_dict())
    names = [f"hospital-{number}" for number in range(1, 5)]
    assert json.loads(notes.pop("members")) == names
    assert notes.pop("strategies") == ""
    assert notes == {"study": "small", "study_digest": long_study.digest(), "round": "3"}


def test_the_final_model_gives_the_figures_of_the_summary(
    finished: Path, long_study: Study
) -> None:
    """Whoever loads the model and asks scikit-learn gets the stated figures, pooled and by site."""
    study, summary = long_study, read_summary(finished)
    model = build_model(study)
    put(model, load_file(finished / "model.safetensors"))
    for name, task in study.tasks.items():
        found = scores(study, model, finished.parent / "hospitals", name, "test")
        stated = summary["tasks"][name]
        assert list(stated["per_site"]) == list(found)
        check_against_scikit_learn(stated["pooled"], pooled(found), task.positive_index)
        assert stated["pooled"]["auroc_bound"] < 0.02
        for site, own in found.items():
            check_against_scikit_learn(stated["per_site"][site], own, task.positive_index)
        assert stated["pooled"]["n_patients"] == sum(
            figures["n_patients"] for figures in stated["per_site"].values()
        )


def test_the_figures_of_patients_are_of_their_images_together(
    finished: Path, long_study: Study
) -> None:
    """Scikit-learn says the same of each patient's mean probability, pooled and by site."""
    study, summary = long_study, read_summary(finished)
    model = build_model(study)
    put(model, load_file(finished / "model.safetensors"))
    for name, task in study.tasks.items():
        found = {}
        for folder in find_hospitals(finished.parent / "hospitals"):
            data = Site(SiteConfig.load(folder)).prepare(study).tasks
            if name in data:
                images = data[name].splits["test"]
                logits = logits_of(model, images, name, device=torch.device("cpu"))
                found[folder.name] = means(softmax(logits.astype(float), axis=1), images)
        stated = summary["tasks"][name]["patients"]
        assert list(stated["per_site"]) == list(found)
        check_against_scikit_learn(stated["pooled"], pooled(found), task.positive_index)
        for site, own in found.items():
            check_against_scikit_learn(stated["per_site"][site], own, task.positive_index)


def means(probabilities: NDArray[np.float64], images: Images) -> Scores:
    """Return the mean probabilities of each patient, and the label that all the images have."""
    owners, labels = np.array(images.patients), images.labels.numpy()
    patients = sorted(set(images.patients))
    assert all(len(set(labels[owners == patient])) == 1 for patient in patients)
    return (
        np.array([probabilities[owners == patient].mean(axis=0) for patient in patients]),
        np.array([labels[owners == patient][0] for patient in patients]),
    )


def test_the_first_line_measures_the_untrained_model(finished: Path, long_study: Study) -> None:
    """Sites measure the model that arrives, before they train it: in round 1, the initial one."""
    study = long_study
    model = initial_model(study).model
    for split in ("validation", "test"):
        found = scores(study, model, finished.parent / "hospitals", "spots", split)
        stated = history(finished)[0]["tasks"]["spots"][split]["pooled"]
        check_against_scikit_learn(stated, pooled(found), study.tasks["spots"].positive_index)


def test_an_earlier_run_is_never_overwritten(
    finished: Path, small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """A folder with a summary or a history is refused before anything is played."""
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(OutputError, match="another run"):
        run_simulation(study_of(), find_hospitals(small), finished)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "history.jsonl").touch()
    with pytest.raises(OutputError, match="another run"):
        run_simulation(study_of(), find_hospitals(small), tmp_path / "begun")


def test_an_output_that_cannot_be_made_is_refused(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """A file where the folder should be is refused before anything is played."""
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="Cannot make"):
            run_simulation(study_of(), find_hospitals(small), out)


def test_phantoms_are_played_as_they_are_made(
    phantoms: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """DICOM of CT and MR and PNG of fundus go through the same run, unreadable ones none."""
    task = {"classes": ["healthy", "ill"], "positive": "ill"}
    classes = {
        "gaucher": "gaucher",
        "neurofibromatosis": "neurofibroma",
        "ocular-melanoma": "melanoma",
    }
    modalities = dict(zip(classes, ("CT", "MR", "fundus"), strict=True))
    tasks = {
        name: {**task, "modality": modalities[name], "classes": ["healthy", ill], "positive": ill}
        for name, ill in classes.items()
    }
    values = study_of(rounds=1).model_dump(mode="json") | {"tasks": tasks}
    study = Study.parse(values)
    summary = run_simulation(study, find_hospitals(phantoms), tmp_path / "run", threads=1)
    assert summary["sites"] == [f"hospital-{number}" for number in range(1, 5)]
    assert set(summary["tasks"]) == set(tasks)
    assert all(set(found.values()) == {0} for found in summary["unreadable"].values())
