"""Laws of the export: the model as it is on disk, and nothing of the coordinator's own machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from common.arrays import digest
from common.errors import FederationError, OutputError, WeightsError
from common.files import sha256_of
from common.layout import votes_name
from common.models import build_model
from common.study import Study
from common.weights import take
from server import history
from server.card_facts import NOTICE
from server.checkpoint import MODEL, save_model
from server.config import init_folder
from server.export import export
from server.history import RoundRecord
from server.initial_weights import initial_model
from server.stored_model import load_model
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


def test_heads_that_stay_at_sites_are_not_handed_on(tmp_path: Path) -> None:
    """The export is a backbone, says so, begins another study, and makes no ONNX."""
    values: dict[str, Any] = {
        "name": "retina",
        "rounds": 3,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "tasks": {"grade": {"modality": "fundus", "classes": ["none", "some"]}},
        "federation": {"personal": "head"},
    }
    study = Study.parse(values)
    folder = create(init_folder(tmp_path / "c", "trial", "127.0.0.1:21001"), study)
    model = build_model(study)
    arrays = take(model, model.state_dict())
    save_model(folder.path, arrays, {"round": "2", "study_digest": study.digest()})
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="heads") as refusal:
        export(folder, out, onnx=True)
    assert "without --onnx" in refusal.value.remedy
    assert not out.exists()

    card = export(folder, out)
    found = load_file(out / MODEL)
    assert set(arrays) - set(found) == {"heads.grade.weight", "heads.grade.bias"}
    assert all(np.array_equal(found[name], arrays[name]) for name in found)
    with safe_open(out / MODEL, framework="numpy") as file:
        assert json.loads(file.metadata()["rarefed"])["study_digest"] == study.digest()
    assert card["operating"] == {}
    for page in ("README.md", "MODEL_CARD.md"):
        assert "kept its own heads" in (text := (out / page).read_text()) or "own for the" in text
    start = values | {"backbone": {**values["backbone"], "weights": str(out / MODEL)}}
    begun = initial_model(Study.parse(start)).model.state_dict()
    assert all(np.array_equal(begun[name].numpy(), found[name]) for name in found)


def test_what_tells_sites_apart_is_not_handed_on(tmp_path: Path) -> None:
    """The export of a study that aligns its sites has the rest, and can be asked."""
    study = Study.parse(
        {
            "name": "alike",
            "rounds": 3,
            "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
            "tasks": {"grade": {"modality": "fundus", "classes": ["none", "some"]}},
            "training": {"adversarial_weight": 1.0, "adversarial_sites": 2},
        }
    )
    folder = create(init_folder(tmp_path / "c", "trial", "127.0.0.1:21001"), study)
    model = build_model(study)
    arrays = take(model, model.state_dict())
    save_model(folder.path, arrays, {"round": "2", "study_digest": study.digest()})
    card = export(folder, tmp_path / "out")
    found = load_file(tmp_path / "out" / MODEL)
    assert set(arrays) - set(found) == {n for n in arrays if n.startswith("discriminator.")}
    assert len(found) == len(arrays) - 4
    assert card["arrays_sha256"] == digest(found)
    asked = load_model(study, tmp_path / "out" / MODEL).state_dict()
    assert all(np.array_equal(asked[name].numpy(), arrays[name]) for name in found)


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


@pytest.mark.slow
def test_an_ensemble_is_exported_as_any_network(folder: StudyFolder, tmp_path: Path) -> None:
    """Model, study without folders, card and ONNX: all say what the ensemble says."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    values = Study.load(folder.study_file).model_dump(mode="json", exclude_none=True)
    values["backbone"] |= {"name": "test_resnet", "image_size": 32}
    own = {"name": "test_vit", "weights": str(tmp_path / "private" / "vit.safetensors")}
    values["federation"] |= {"votes": "validation"}
    study = Study.parse(values | {"name": "voted", "ensemble": [{}, own]})
    found = create(init_folder(tmp_path / "d", "trial", "127.0.0.1:21001"), study)
    model = build_model(study)
    weighed = {votes_name(task): np.array([0.875, 0.125], np.float32) for task in study.tasks}
    save_model(found.path, take(model, model.state_dict()) | weighed, {"round": "2"})
    card = export(found, tmp_path / "out", onnx=True)
    assert card["votes"] == {task: [0.875, 0.125] for task in study.tasks}
    assert card["backbone"] == "ensemble of test_resnet, test_vit"
    assert card["onnx"]["largest_difference"] <= 1e-4
    assert "test_vit: the file vit.safetensors" in card["weights"]["source"]
    told = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "whose probabilities are averaged" in told
    files = [file for file in (tmp_path / "out").iterdir() if file.suffix in (".toml", ".md")]
    assert all(str(tmp_path) not in file.read_text() for file in files)
    again = Study.load(tmp_path / "out" / "study.toml")
    assert again.digest() == study.digest()
    assert set(load_file(tmp_path / "out" / MODEL)) == set(build_model(again).state_dict())
