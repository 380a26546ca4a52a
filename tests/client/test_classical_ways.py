"""Laws of classical ways at a site, beside the study's network."""

import json
import logging
import sys
import tomllib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from typer.testing import CliRunner

from client.classical_ways import RECIPES
from client.cli import app
from client.config import SiteConfig
from client.final_model import first_model
from client.handcrafted import handcrafted_features
from client.out_of_distribution import pooled_features
from client.prepared import deal, load_tasks
from client.store import FINAL, FIRST, SiteStore
from common.classical_names import Way
from common.errors import (
    DataError,
    FederationError,
    OrderError,
    OutputError,
    RarefedError,
    StudyError,
)
from common.models import FederatedModel, build_model
from common.seeds import stream
from common.study import Study
from common.weights import take
from server.checkpoint import save_round
from server.studies import toml_text

RUN = CliRunner()
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
PATIENTS = (*("train",) * 8, *("validation",) * 4, *("test",) * 10)
MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]


def ended(config: SiteConfig, study: Study) -> FederatedModel:
    """Let a site keep one network as that which the study began and ended with."""
    model, store = build_model(study), SiteStore(config.state, study.digest())
    arrays, tasks = take(model, model.state_dict()), list(config.data)
    store.save_network(FIRST, arrays, model_round=0, tasks=tasks)
    store.save_network(FINAL, arrays, model_round=3, tasks=tasks)
    return model


def evaluated(config: SiteConfig, study: Study, *options: str) -> Result:
    file = config.state.parent / "study.toml"
    file.write_text(toml_text(study))
    words = [str(config.state.parent), "--study", str(file), *options]
    return RUN.invoke(app, ["evaluate", *words])


def asked(config: SiteConfig, study: Study, *ways: str, alone: bool = False) -> dict[str, Any]:
    """Return the statement of what taking part gained."""
    options = [word for way in ways for word in ("--classical", way)]
    result = evaluated(config, study, *options, *(["--alone"] if alone else []), "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)["benefit"]
    return found


def refused(config: SiteConfig, study: Study, *options: str) -> RarefedError:
    error = evaluated(config, study, *options).exception
    assert isinstance(error, RarefedError), error
    return error


def by_patient(values_N: NDArray[Any], patients: tuple[str, ...]) -> NDArray[Any]:
    """Return the mean over each patient's images."""
    names = np.array(patients)
    return np.array([values_N[names == one].mean() for one in np.unique(names)])


def test_figures_are_those_of_scikit_learn(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """Fitted by hand to the features of the training images, and asked about test patients."""
    study = make_study(training={"class_weights": "balanced"})
    config = make_hospital(splits=("train", "validation", *("train",) * 7, *("test",) * 10))
    ended(config, study)
    found = asked(config, study, "logistic", "forest", "handcrafted-svm")["ct"]["metrics"]
    log = logging.getLogger("test")
    splits = load_tasks(study, config, deal(study, config), log)["ct"].splits
    train, test = splits["train"], splits["test"]
    model = first_model(config, study, device=CPU).model
    state = stream(study.seed, "classical", "site-a", "ct") % 2**32
    for name, classifier in {
        "logistic": LogisticRegression(max_iter=5000, class_weight="balanced"),
        "forest": RandomForestClassifier(500, class_weight="balanced", random_state=state),
        "handcrafted-svm": SVC(class_weight="balanced", break_ties=True),
    }.items():
        known, others = (
            handcrafted_features(images.pixels)
            if name.startswith("handcrafted")
            else pooled_features(model, images, device=CPU)
            for images in (train, test)
        )
        fitted = make_pipeline(StandardScaler(), classifier)
        fitted.fit(known.astype(np.float64), train.labels.numpy())
        p_N = (
            expit(fitted.decision_function(others.astype(np.float64)))
            if name == "handcrafted-svm"
            else fitted.predict_proba(others.astype(np.float64))[:, 1]
        )
        p = by_patient(p_N, test.patients)
        labels = by_patient(test.labels.numpy(), test.patients) > 0
        assert found[name]["brier"]["value"] == pytest.approx(brier_score_loss(labels, p), abs=1e-5)
        assert found[name]["loss"]["value"] == pytest.approx(log_loss(labels, p), abs=1e-5)
        assert found[name]["accuracy"]["value"] == ((p > 0.5) == labels).mean()


def test_each_network_stands_against_each_way(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """A way that is named twice stands once; networks have the figures that they have without."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    ended(config, study)
    ways = ("svm", "elm", "handcrafted-svm")
    found = asked(config, study, *ways, "svm", alone=True)["ct"]
    without = asked(config, study, alone=True)["ct"]
    assert list(found["metrics"]) == ["global", "alone", *ways]
    assert list(found["differences"]) == [
        "global - alone",
        *(f"{network} - {way}" for way in ways for network in ("global", "alone")),
    ]
    for pair, difference in found["differences"].items():
        one, other = (found["metrics"][name]["brier"]["value"] for name in pair.split(" - "))
        assert difference["brier"]["value"] == pytest.approx(one - other)
        assert difference["brier"]["low"] is not None
    for part in ("metrics", "differences"):
        assert {name: found[part][name] for name in without[part]} == without[part]


def test_the_tables_are_for_people(make_study: MakeStudy, make_hospital: MakeHospital) -> None:
    """Each way has a table of its own of what lies between it and the networks."""
    study, config = make_study(("ct", "mr")), make_hospital(tasks=("ct", "mr"), splits=PATIENTS)
    ended(config, study)
    shown = evaluated(config, study, "--classical", "logistic", "--classical", "handcrafted-svm")
    assert shown.exit_code == 0, shown.output
    for word in ("Less logistic", "Less handcrafted-svm", "ct: what", "mr: what"):
        assert word in shown.stdout


def test_nothing_of_it_is_kept_but_the_figures(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """What a site answers from is as it was; the file of the figures is the owner's alone."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    ended(config, study)
    asked(config, study)

    def files() -> dict[str, str]:
        found = (file for file in config.state.rglob("*") if file.is_file())
        return {file.name: sha256(file.read_bytes()).hexdigest() for file in found}

    before = files()
    asked(config, study, "logistic", "handcrafted-svm")
    after = files()
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name for name in changed if not name.endswith(".log")} == {
        f"evaluation-{study.digest()[:16]}.json"
    }
    assert before.keys() == after.keys()


def test_an_unknown_way_is_refused_at_once(tmp_path: Path) -> None:
    """Before site or study is looked for, with all names that there are."""
    words = [str(tmp_path), "--study", str(tmp_path / "none.toml"), "--classical", "knn"]
    result = RUN.invoke(app, ["evaluate", *words])
    assert result.exit_code == 2
    said = "".join(result.output.split())
    assert all(f"'{way}'" in said for way in Way)


def test_a_name_says_what_a_way_is_made_of() -> None:
    """The classifier, and what it looks at where that is not the study's first backbone."""
    assert list(RECIPES) == list(Way)
    for way, (features, classifier) in RECIPES.items():
        prefix = "" if features == "backbone" else f"{features}-"
        assert way == f"{prefix}{classifier}"


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        (("train", "test") * 10, "0 of gaucher"),
        (("train", "train", *("train", "test") * 9), "1 of gaucher"),
    ],
)
def test_too_few_patients_are_refused(
    patients: tuple[str, ...], said: str, make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """One class alone, or one patient of the second: the error names the task and the counts."""
    study, config = make_study(), make_hospital(splits=patients)
    ended(config, study)
    error = refused(config, study, "--classical", "handcrafted-svm")
    assert type(error) is DataError
    assert f"ct (training patients: 10 of normal, {said})" in error.message
    assert "add patients" in error.remedy


def test_the_first_backbone_must_be_known(
    make_study: MakeStudy, make_hospital: MakeHospital, tmp_path: Path
) -> None:
    """A site that was not there then can fit what needs no backbone to compare an export with."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    model, folder = build_model(study), tmp_path / "export"
    folder.mkdir()
    save_round(folder, take(model, model.state_dict()), {}, study, 3)
    (folder / "study.toml").write_text(toml_text(study))
    export = ("--model", str(folder), "--classical")
    assert type(refused(config, study, *export, "logistic")) is FederationError
    assert evaluated(config, study, *export, "handcrafted-svm").exit_code == 0


def test_a_random_backbone_tells_nothing(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """Its features are refused as in a lab, and the remedy names what does not need them."""
    study = make_study(backbone={"weights": "none"})
    config = make_hospital(splits=PATIENTS)
    ended(config, study)
    error = refused(config, study, "--classical", "elm")
    assert type(error) is StudyError
    assert "handcrafted-svm" in error.remedy


def test_scikit_image_may_be_missing(
    make_study: MakeStudy, make_hospital: MakeHospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs it is refused with what to install; the rest works without it."""
    monkeypatch.setitem(sys.modules, "skimage", None)
    study, config = make_study(), make_hospital(splits=PATIENTS)
    ended(config, study)
    error = refused(config, study, "--classical", "handcrafted-forest")
    assert type(error) is OutputError
    assert f"{sys.executable} -m pip install 'rarefed[classical]'" in error.remedy
    assert "logistic" in asked(config, study, "logistic")["ct"]["metrics"]


def test_all_that_hinders_demanded_ways_is_told_at_once(
    make_study: MakeStudy, make_hospital: MakeHospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reason beside its ways, of those alone that are asked for, and every remedy."""
    monkeypatch.setitem(sys.modules, "skimage", None)
    study = make_study(backbone={"weights": "none"})
    config = make_hospital(splits=PATIENTS)
    ended(config, study)
    named = [f"--classical={way}" for way in ("handcrafted-svm", "svm", "elm", "svm")]
    error = refused(config, study, *named)
    assert type(error) is StudyError
    random, missing = error.message.splitlines()[1:]
    assert random.startswith("  - svm, elm: ")
    assert "random backbone" in random
    assert missing.startswith("  - handcrafted-svm: ")
    assert "scikit-image" in missing
    assert "Ask for handcrafted-svm" in error.remedy
    assert "pip install 'rarefed[classical]'" in error.remedy


def test_the_extra_of_the_remedy_brings_scikit_image() -> None:
    """The guide and the vault's image install it, so that every site can fit what a study asks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert any(one.startswith("scikit-image") for one in extras["classical"])
    assert "rarefed[classical]" in extras["simulation"]
    for file in ("docs/hospital.md", "deploy/docker/Dockerfile.vault"):
        assert "'.[classical]'" in (ROOT / file).read_text()


def test_a_studys_ways_are_fitted_unasked(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """With the figures that --classical gives; what a hospital asks for besides comes after."""
    plain, config = make_study(), make_hospital(splits=PATIENTS)
    study = make_study(evaluation={"classical": ["svm", "handcrafted-svm"]})
    for one in (plain, study):
        ended(config, one)
    by_option = asked(config, plain, "svm", "handcrafted-svm")["ct"]
    assert asked(config, study)["ct"] == by_option
    more = asked(config, study, "elm", "svm")["ct"]
    assert list(more["metrics"]) == ["global", "svm", "handcrafted-svm", "elm"]
    assert {name: more["metrics"][name] for name in by_option["metrics"]} == by_option["metrics"]


def test_what_a_site_cannot_fit_for_a_study_is_a_note(
    make_study: MakeStudy, make_hospital: MakeHospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its own figures all the same, and the reason; asked for by name, it is refused."""
    monkeypatch.setitem(sys.modules, "skimage", None)
    study = make_study(evaluation={"classical": ["svm", "handcrafted-svm"]})
    config = make_hospital(splits=PATIENTS)
    ended(config, study)
    found = json.loads(evaluated(config, study, "--json").stdout)
    assert list(found["benefit"]["ct"]["metrics"]) == ["global", "svm"]
    notes = [note for note in found["tasks"]["ct"]["notes"] if "Not compared" in note]
    assert len(notes) == 1
    assert "with handcrafted-svm, " in notes[0]
    assert "scikit-image" in notes[0]
    assert type(refused(config, study, "--classical", "handcrafted-svm")) is OutputError


def test_too_few_patients_for_a_study_are_a_note(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """A site without ill training patients is measured, and told what it is not compared with."""
    study = make_study(evaluation={"classical": ["svm"]})
    config = make_hospital(splits=("train", "test") * 10)
    ended(config, study)
    found = json.loads(evaluated(config, study, "--json").stdout)
    assert found["benefit"] == {}
    (note,) = (note for note in found["tasks"]["ct"]["notes"] if "with svm, " in note)
    assert note.endswith("no two classes have 2 training patients each.")
    assert type(refused(config, study, "--classical", "svm")) is DataError


def test_no_file_stands_in_a_note(make_study: MakeStudy, make_hospital: MakeHospital) -> None:
    """Where the study's beginning is damaged the note says so; who asks for it learns where."""
    study = make_study(evaluation={"classical": ["svm"]})
    config = make_hospital(splits=PATIENTS)
    ended(config, study)
    (first,) = config.state.rglob(FIRST)
    first.write_bytes(first.read_bytes()[:100])
    found = json.loads(evaluated(config, study, "--json").stdout)
    (note,) = (note for note in found["tasks"]["ct"]["notes"] if "with svm, " in note)
    assert "is damaged" in note
    assert FIRST not in json.dumps(found)
    error = refused(config, study, "--classical", "svm")
    assert type(error) is OrderError
    assert FIRST in error.message


def test_a_site_that_came_later_is_measured(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """It does not know the first backbone: a note, and the ways that need none are fitted."""
    study = make_study(evaluation={"classical": ["elm", "handcrafted-svm"]})
    config = make_hospital(splits=PATIENTS)
    ended(config, study)
    SiteStore(config.state, study.digest()).remove_network(FIRST)
    found = json.loads(evaluated(config, study, "--json").stdout)
    assert list(found["benefit"]["ct"]["metrics"]) == ["global", "handcrafted-svm"]
    assert any("with elm, " in note for note in found["tasks"]["ct"]["notes"])
