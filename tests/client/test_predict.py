"""Laws of predictions: they are the network's on the image as it was prepared in training."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import CTImageStorage, generate_uid
from scipy.special import expit, softmax
from typer.testing import CliRunner

from client.cli import app
from client.config import SiteConfig
from client.evaluate import logits_of
from client.evaluation import evaluate_site, exported_models, file_of, write_figures
from client.final_model import FinalModel, exported_model
from client.known_images import known_images
from client.operating_point import Operating, operating_of, operating_of_site
from client.out_of_distribution import FEWEST, Likeness
from client.predict import (
    Asked,
    Prediction,
    Unread,
    decided,
    joined,
    predict,
    statement_of,
)
from client.prepared import prepare
from common.errors import FederationError, ImageError, MissingFolderError, WeightsError
from common.models import build_model
from common.study import Study
from common.weights import take
from server.checkpoint import save_round
from server.studies import toml_text

CPU = torch.device("cpu")
LOG = logging.getLogger("test")
MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study()


@pytest.fixture
def folder(tmp_path: Path, study: Study) -> Path:
    """What the coordinator exported: a network of random weights."""
    out, model = tmp_path / "model", build_model(study)
    out.mkdir()
    save_round(out, take(model, model.state_dict()), {}, study, 3)
    (out / "study.toml").write_text(toml_text(study))
    return out


@pytest.fixture
def final(folder: Path) -> FinalModel:
    return exported_model(folder, device=CPU)


def card(folder: Path, **operating: Any) -> None:
    (folder / "card.json").write_text(json.dumps({"operating": {"ct": operating}}))


def call(*words: object) -> Any:
    """Run the command and return its JSON; its error is raised."""
    told = CliRunner().invoke(app, ["predict", *map(str, words)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout) if "--json" in words else told.stdout


def test_a_prediction_is_what_evaluation_measures(
    study: Study, make_hospital: MakeHospital, final: FinalModel
) -> None:
    """Files of the site's own test rows get the probabilities that evaluation would measure."""
    config = make_hospital()
    images = prepare(study, config, begun=None, device=CPU, log=LOG).tasks["ct"].splits["test"]
    expected = softmax(logits_of(final.model, images, "ct", device=CPU).astype(float), axis=1)
    files = [origin.row.path for origin in images.origins]
    seen: list[int] = []
    asked = Asked(final, "ct", Operating(), None, CPU)
    found = list(predict(files, asked, config, seen.append))
    assert seen == list(range(1, len(files) + 1))
    for one, chances in zip(found, expected, strict=True):
        assert isinstance(one, Prediction)
        np.testing.assert_allclose(list(one.probabilities.values()), chances, atol=1e-6)
        assert one.label == study.tasks["ct"].classes[int(chances.argmax())]
        assert (one.images, one.likeness) == (1, None)


def test_an_ensemble_predicts_the_mean_of_its_members(
    tmp_path: Path, make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """From an export, a file's probabilities are the mean of what each member says of it."""
    study = make_study(ensemble=[{}, {"name": "test_vit", "weights": "vit.safetensors"}])
    out, model = tmp_path / "ensemble", build_model(study)
    out.mkdir()
    save_round(out, take(model, model.state_dict()), {}, study, 3)
    (out / "study.toml").write_text(toml_text(study))
    config = make_hospital()
    images = prepare(study, config, begun=None, device=CPU, log=LOG).tasks["ct"].splits["test"]
    members = [build_model(member) for member in study.members]
    each = [logits_of(member, images, "ct", device=CPU).astype(float) for member in members]
    expected = np.mean([softmax(logits, axis=1) for logits in each], axis=0)
    files = [origin.row.path for origin in images.origins]
    asked = Asked(exported_model(out, device=CPU), "ct", Operating(), None, CPU)
    for one, chances in zip(predict(files, asked, config), expected, strict=True):
        assert isinstance(one, Prediction)
        np.testing.assert_allclose(list(one.probabilities.values()), chances, atol=1e-5)


def test_files_that_cannot_be_read_do_not_stop_the_others(
    tmp_path: Path, make_hospital: MakeHospital, final: FinalModel
) -> None:
    """Each is yielded in its place with what is wrong with it."""
    config = make_hospital()
    good = next((config.data["ct"].manifest.parent / "images").glob("*.png"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = [tmp_path / "none.png", good, tmp_path / "bad.png"]
    found = list(predict(files, Asked(final, "ct", Operating(), None, CPU), config))
    assert [type(one) for one in found] == [Unread, Prediction, Unread]
    assert [one.file for one in found] == files
    assert isinstance(found[0], Unread)
    assert "no such file" in found[0].error


def test_images_of_one_file_become_one_prediction(study: Study) -> None:
    """They are joined as the study joins a patient's, and then comes the temperature."""
    task = study.tasks["ct"]
    logits = np.array([[0.0, 2.0], [1.0, 0.0], [0.5, 0.5]], np.float32)
    mean = np.log(softmax(logits.astype(float), axis=1).mean(axis=0))
    np.testing.assert_allclose(joined(logits, task, 2.0), softmax(mean / 2), atol=1e-6)
    most = task.model_copy(update={"per_patient": "max"})
    np.testing.assert_allclose(joined(logits, most, 1.0), softmax(logits[0].astype(float)))
    np.testing.assert_allclose(
        joined(logits[:1], task, 0.5), softmax(2.0 * logits[0].astype(float))
    )


def test_the_threshold_is_on_the_scaled_probability(study: Study, folder: Path) -> None:
    """A case is positive from the card's log-odds on, whatever the temperature makes of it."""
    task = study.tasks["ct"]
    card(folder, temperature=2.5, log_odds=-0.8, rule="youden")
    operating = operating_of(folder, "ct")
    assert (operating.known, operating.rule) == (True, "youden")
    assert operating.threshold == pytest.approx(expit(-0.8 / 2.5))
    for log_odds, label in ((-0.81, "normal"), (-0.79, "gaucher"), (3.0, "gaucher")):
        chances = joined(np.array([[0.0, log_odds]]), task, operating.temperature)
        assert decided(chances, task, operating.threshold) == label
    assert decided(np.array([0.6, 0.4]), task, None) == "normal"
    assert decided(np.array([0.4, 0.6]), task, 0.9) == "normal"


@pytest.mark.parametrize("text", ["[]", "{", '{"operating": {"ct": {"temperature": -1}}}'])
def test_a_damaged_card_is_refused(folder: Path, text: str) -> None:
    """A card that cannot be read, or says something impossible, is no reason to guess."""
    (folder / "card.json").write_text(text)
    with pytest.raises(WeightsError):
        operating_of(folder, "ct")


def test_without_a_card_nothing_is_known(folder: Path) -> None:
    """Then the temperature is 1, and there is no threshold."""
    found = operating_of(folder, "ct")
    assert (found.temperature, found.threshold, found.known) == (1.0, None, False)
    card(folder)
    assert operating_of(folder, "other") == found


def test_the_sites_own_threshold_is_that_of_its_evaluation(
    make_hospital: MakeHospital, final: FinalModel
) -> None:
    """Temperature and threshold come from ``evaluate``, and only for the very same network."""
    config = make_hospital(splits=("train",) * 4 + ("validation", "validation", "test", "test") * 3)
    assert operating_of_site(config, final, "ct") == Operating()
    models = exported_models(final, final.study)
    figures = evaluate_site(config, final.study, models, alone=False, device=CPU, log=LOG)
    write_figures(figures, file_of(config, final.study))
    of_patients = figures.tasks["ct"].of_patients
    assert of_patients is not None
    points = of_patients.classes["gaucher"].operating_points
    assert points is not None
    found = operating_of_site(config, final, "ct")
    assert found.log_odds == points["youden"]["threshold"]
    assert found.known is (of_patients.temperature is not None)
    if of_patients.temperature is not None:
        assert found.temperature == of_patients.temperature.value
    assert operating_of_site(config, final._replace(sha256="00"), "ct") == Operating()
    file_of(config, final.study).write_text("[]")
    with pytest.raises(WeightsError) as refused:
        operating_of_site(config, final, "ct")
    assert "rarefed-client evaluate" in refused.value.remedy


def test_likeness_is_learnt_once_for_a_network(
    make_hospital: MakeHospital, final: FinalModel
) -> None:
    """It is kept in the site's state, taken from there again, and learnt anew for another model."""
    # Two images of each patient.
    splits = ("train",) * 4 + ("validation",) * (FEWEST // 2) + ("test",) * 2
    config = make_hospital(splits=splits)
    known, why = known_images(config, final, "ct", device=CPU, log=LOG)
    assert known is not None
    assert why == ""
    (file,) = (config.state / "likeness").iterdir()
    before = file.stat().st_mtime_ns
    again, _ = known_images(config, final, "ct", device=CPU, log=LOG)
    assert again is not None
    assert np.array_equal(again.held_out, known.held_out)
    assert file.stat().st_mtime_ns == before
    other = final._replace(sha256="00" * 32)
    known_images(config, other, "ct", device=CPU, log=LOG)
    assert file.stat().st_mtime_ns != before


def test_where_likeness_is_unknown_it_is_said_why(
    make_hospital: MakeHospital, final: FinalModel
) -> None:
    """No such task, too few images, or images that cannot be read: each has its own words."""
    config = make_hospital()
    known, why = known_images(config, final, "mr", device=CPU, log=LOG)
    assert known is None
    assert "no images of mr" in why
    known, why = known_images(config, final, "ct", device=CPU, log=LOG)
    assert known is None
    assert "held out" in why
    config.data["ct"].manifest.unlink()
    known, why = known_images(config, final, "ct", device=CPU, log=LOG)
    assert known is None
    assert "cannot be read" in why


def test_a_warning_names_itself() -> None:
    """What is unlike the training images is warned of in capital letters."""
    assert statement_of(Likeness(1.0, 0.01), "").startswith("WARNING: unlike")
    assert statement_of(Likeness(0.1, 0.5), "").startswith("Like the site's")
    assert statement_of(None, "why") == "why"


def test_the_command_prints_and_writes_tables(
    tmp_path: Path, make_hospital: MakeHospital, folder: Path
) -> None:
    """JSON, table and CSV agree, name model and threshold, and say that this is no device."""
    config = make_hospital()
    site = config.state.parent
    files = sorted((config.data["ct"].manifest.parent / "images").glob("*.png"))[:3]
    card(folder, temperature=0.5, log_odds=0.0, rule="youden")
    found = call(site, folder, *files, "--csv", tmp_path / "p.csv", "--json")
    assert "Not a medical device" in found["notice"]
    assert (found["task"], found["temperature"], found["model_round"]) == ("ct", 0.5, 3)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    for one, row, path in zip(found["predictions"], rows, files, strict=True):
        assert one["file"] == row["file"] == str(path)
        assert one["class"] == row["class"]
        assert one["probabilities"]["gaucher"] == pytest.approx(
            float(row["probability_gaucher"]), abs=1e-6
        )
        assert one["threshold"] == 0.5
        assert one["unlike_training"] is None
    text = call(site, folder, *files)
    assert "Not a medical device" in text
    assert "likeness is unknown" in text


def test_the_command_names_every_bad_file_after_the_good(
    tmp_path: Path, make_hospital: MakeHospital, folder: Path
) -> None:
    """All bad files are listed at once, in an image error, and the good ones are predicted."""
    config = make_hospital()
    good = next((config.data["ct"].manifest.parent / "images").glob("*.png"))
    files = [tmp_path / "a.png", good, tmp_path / "b.png"]
    with pytest.raises(ImageError) as refused:
        call(config.state.parent, folder, *files, "--csv", tmp_path / "p.csv")
    assert "a.png" in refused.value.message
    assert "b.png" in refused.value.message
    assert str(good) in (tmp_path / "p.csv").read_text()


def test_what_the_site_keeps_can_be_asked(
    tmp_path: Path, make_hospital: MakeHospital, folder: Path
) -> None:
    """A study file asks for the site's own network; a folder that is no export is refused."""
    config = make_hospital()
    with pytest.raises(FederationError, match="keeps no final model"):
        call(config.state.parent, folder / "study.toml", "x.png")
    with pytest.raises(MissingFolderError):
        call(config.state.parent, tmp_path, "x.png")


def test_dicom_in_dicom_out(
    tmp_path: Path, make_hospital: MakeHospital, folder: Path, write_dicom: Callable[..., Path]
) -> None:
    """A DICOM file gives a report and a picture of its study; a PNG is predicted without."""
    config = make_hospital()
    png = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    Image.fromarray(pixels).save(png)
    scan = write_dicom(
        tmp_path / "scan.dcm",
        (pixels.astype(np.int16) - 100) * 4,
        SOPClassUID=CTImageStorage,
        Modality="CT",
        RescaleSlope=1,
        RescaleIntercept=0,
        PatientID="17",
        StudyInstanceUID=generate_uid(prefix=None),
        SeriesInstanceUID=generate_uid(prefix=None),
    )
    out = tmp_path / "out"
    found = call(config.state.parent, folder, scan, "--dicom", out, "--json")
    files = [pydicom.dcmread(file) for file in found["predictions"][0]["dicom"]]
    assert [one.Modality for one in files] == ["SR", "OT"]
    study_uid = pydicom.dcmread(scan).StudyInstanceUID
    assert {one.StudyInstanceUID for one in files} == {study_uid}
    assert files[1].pixel_array.shape[2] == 3
    told = [element.value for element in files[0].iterall() if element.keyword == "TextValue"]
    assert any("likeness is unknown" in text for text in told)
    with pytest.raises(ImageError, match="would not know which study"):
        call(config.state.parent, folder, png, "--dicom", out)
    assert len(list(out.iterdir())) == 2
