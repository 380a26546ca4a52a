"""Laws of the export: the model as it is on disk, and nothing of the coordinator's own machine."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.arrays import digest
from common.errors import FederationError, OutputError, WeightsError
from common.files import sha256_of
from common.models import build_model
from common.study import Study
from common.weights import take
from server import history
from server.card_facts import NOTICE
from server.checkpoint import MODEL, save_model
from server.config import init_folder
from server.export import export
from server.history import RoundRecord
from server.studies import StudyFolder, create

FIGURES = {"grade": {"validation": {"pooled": {"auroc": 0.75}, "per_site": {}}}}


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study that has done two of three rounds."""
    secret_place = tmp_path / "private"
    study = Study.parse(
        {
            "name": "retina",
            "rounds": 3,
            "backbone": {"name": "resnet18", "weights": str(secret_place / "start.safetensors")},
            "tasks": {"grade": {"modality": "fundus", "classes": ["none", "some"]}},
        }
    )
    found = create(init_folder(tmp_path / "c", "trial", "127.0.0.1:21001"), study)
    save_model(found.path, {"weight": np.arange(6, dtype=np.float32)}, {"round": "2"})
    for number in (1, 2):
        record = RoundRecord(number, model_round=number - 1, trained=True, combined=True)
        record.tasks = FIGURES
        history.append(found.path, record)
    found.write_progress("running", 2, 3, sites=["north", "south"])
    return found


def test_the_export_is_the_model_and_what_it_is(folder: StudyFolder, tmp_path: Path) -> None:
    """The model is copied bit for bit, and the card says of what round, study and figures it is."""
    out = tmp_path / "out"
    card = export(folder, out)
    assert (out / MODEL).read_bytes() == (folder.path / MODEL).read_bytes()
    assert card == json.loads((out / "card.json").read_text())
    assert (card["round"], card["rounds"], card["state"]) == (2, 3, "running")
    assert card["sites"] == ["north", "south"]
    assert card["sha256"] == sha256_of(out / MODEL)
    assert (card["measured_round"], card["figures"]) == (1, FIGURES)
    assert Study.load(out / "study.toml").digest() == card["digest"]
    assert (out / "history.jsonl").read_text() == (folder.path / "history.jsonl").read_text()
    assert "after 2 of 3 rounds" in (out / "README.md").read_text()
    model_card = (out / "MODEL_CARD.md").read_text()
    assert card["sha256"] in model_card
    assert "Not a medical device" in model_card
    assert card["arrays_sha256"] == digest({"weight": np.arange(6, dtype=np.float32)})
    assert (card["notice"], card["operating"]) == (NOTICE, {})


def test_nothing_of_the_machine_is_exported(folder: StudyFolder, tmp_path: Path) -> None:
    """No file but the model's arrays tells of a folder of the coordinator's machine."""
    export(folder, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_nothing_is_overwritten(folder: StudyFolder, tmp_path: Path) -> None:
    """A folder that holds something is refused and stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        export(folder, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_study_without_a_model_cannot_be_exported(folder: StudyFolder, tmp_path: Path) -> None:
    """Before a study has begun there is nothing to hand on, and no folder is made."""
    (folder.path / MODEL).unlink()
    with pytest.raises(FederationError, match="no model yet"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_is_written_beside_the_rest(folder: StudyFolder, tmp_path: Path) -> None:
    """The card names file, digest, opset and the largest difference from torch."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    study = Study.load(folder.study_file)
    model = build_model(study)
    save_model(folder.path, take(model, model.state_dict()), {"round": "2"})
    card = export(folder, tmp_path / "out", onnx=True)
    made = card["onnx"]
    assert made["sha256"] == sha256_of(tmp_path / "out" / made["file"])
    assert made["largest_difference"] <= 1e-4
    assert card == json.loads((tmp_path / "out" / "card.json").read_text())
    assert f"opset {made['opset']}" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_a_model_of_another_network_gives_no_onnx(folder: StudyFolder, tmp_path: Path) -> None:
    """It is refused, and what was written before stays without a word of ONNX."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(WeightsError, match="cannot be used"):
        export(folder, tmp_path / "out", onnx=True)
    assert "onnx" not in json.loads((tmp_path / "out" / "card.json").read_text())
