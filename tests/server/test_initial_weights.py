"""Laws of where the network begins."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tomli_w
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from common.arrays import digest
from common.errors import MissingFolderError, StudyError, UnknownBackboneError, WeightsError
from common.files import sha256_of
from common.models import build_model
from common.study import Study
from common.weights import take
from server.checkpoint import save_model
from server.cli import app
from server.initial_weights import Start, initial_model

Make = Callable[..., Study]
NAME = "test_resnet"


def study_with(make_study: Make, weights: Path | str, **backbone: Any) -> Study:
    values = {"name": NAME, "weights": str(weights), "image_size": 32}
    return make_study(backbone=values | backbone)


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    """What someone else trained: the backbone with a head of 7 classes."""
    torch.manual_seed(99)
    state: dict[str, Tensor] = timm.create_model(NAME, num_classes=7).state_dict()
    return {name: value + torch.ones((), dtype=value.dtype) for name, value in state.items()}


def loaded(start: Start, source: dict[str, Tensor]) -> list[str]:
    """Return the arrays of the backbone that are not those of the source."""
    state = start.model.backbone.state_dict()
    return [name for name in state if not torch.equal(state[name], source[name])]


def test_none_is_the_random_network_of_the_seed(make_study: Make) -> None:
    """With ``none`` the network is what every party builds from the study alone."""
    study = study_with(make_study, "none")
    start, built = initial_model(study), build_model(study)
    assert (start.source, start.left_out) == ("none", ())
    names = list(built.state_dict())
    assert digest(take(start.model, names)) == digest(take(built, names))


def test_a_file_with_another_head_loads_its_backbone(
    make_study: Make, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    """All of the backbone is loaded; the other head is listed, and ours stays as it was."""
    file = tmp_path / "start.safetensors"
    save_file(pretrained, file)
    study = study_with(make_study, file)
    start = initial_model(study)
    assert start.source == "start.safetensors"
    assert start.left_out == ("fc.bias", "fc.weight")
    assert loaded(start, pretrained) == []
    heads = [name for name in start.model.state_dict() if name.startswith("heads.")]
    assert digest(take(start.model, heads)) == digest(take(build_model(study), heads))


def test_members_of_an_ensemble_have_weights_of_their_own(
    make_study: Make, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    """Each member loads what the study says of it, and the command tells of all of them."""
    other = timm.create_model("test_vit", img_size=32, num_classes=0).state_dict()
    for name, state in {NAME: pretrained, "test_vit": other}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    values = study_with(make_study, f"{NAME}.safetensors").model_dump(exclude_none=True)
    own = {"name": "test_vit", "weights": "test_vit.safetensors"}
    values["ensemble"] = [own, {}, {"name": "test_vit", "weights": "none"}]
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values))
    study = Study.load(tmp_path / "study.toml")
    start = initial_model(study)
    state = start.model.state_dict()
    built = build_model(study).state_dict()
    sources = [{f"backbone.members.0.{name}": value for name, value in other.items()}]
    sources += [{f"backbone.members.1.{name}": value for name, value in pretrained.items()}, built]
    for number, source in enumerate(sources):
        names = [name for name in state if name.startswith(f"backbone.members.{number}.")]
        assert names
        assert all(torch.equal(state[name], source[name]) for name in names)
    assert start.left_out == ("members.1.fc.bias", "members.1.fc.weight")
    done = CliRunner().invoke(app, ["check", str(tmp_path / "study.toml"), "--json"])
    told = json.loads(done.stdout)
    assert told["weights"]["source"] == f"test_vit.safetensors, {NAME}.safetensors, none"
    assert told["digest"] == study.digest()
    sent = sum(part["count"] for name, part in told["arrays"].items() if name != "sent once")
    assert sent > len(pretrained) + len(other)


def test_check_refuses_what_could_not_be_run(make_study: Make, tmp_path: Path) -> None:
    """A network whose statistics would travel is told before a study with central privacy runs."""
    study = make_study(
        backbone={"name": NAME, "weights": "none", "image_size": 32},
        federation={"weighting": "equal"},
        central_privacy={"noise_multiplier": 1.0},
    )
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(study.model_dump(exclude_none=True, mode="json")))
    done = CliRunner().invoke(app, ["check", str(file)])
    assert isinstance(done.exception, StudyError)
    assert "running statistics" in done.exception.message


@pytest.mark.parametrize(
    ("normalisation", "train"), [("frozen", "all"), ("average", "head"), ("local", "last:1")]
)
def test_frozen_layers_take_their_weights_too(
    make_study: Make,
    tmp_path: Path,
    pretrained: dict[str, Tensor],
    normalisation: str,
    train: str,
) -> None:
    """A frozen layer has no step counter; the file's is no unmatched array then."""
    file = tmp_path / "start.safetensors"
    save_file(pretrained, file)
    values = {"name": NAME, "weights": str(file), "image_size": 32, "normalisation": normalisation}
    start = initial_model(make_study(backbone=values, training={"train": train}))
    assert start.left_out == ("fc.bias", "fc.weight")
    assert loaded(start, pretrained) == []


def test_missing_counters_do_not_matter(
    make_study: Make, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    """Old files lack batch norm's step counter, which nothing depends on."""
    file = tmp_path / "start.safetensors"
    save_file({n: v for n, v in pretrained.items() if "num_batches" not in n}, file)
    start = initial_model(study_with(make_study, file))
    assert all("num_batches_tracked" in name for name in loaded(start, pretrained))


def test_our_own_model_is_a_start(
    make_study: Make, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    """A model.safetensors that a study left behind loads; its heads are listed as left out."""
    model = build_model(study_with(make_study, "none"))
    model.backbone.load_state_dict(
        {name: value for name, value in pretrained.items() if not name.startswith("fc.")}
    )
    path = save_model(tmp_path, take(model, model.state_dict()), {"round": "5"})
    start = initial_model(study_with(make_study, path))
    assert loaded(start, pretrained) == []
    heads = [f"heads.{task}.{part}" for task in ("ct", "mr") for part in ("bias", "weight")]
    assert start.left_out == tuple(heads)


def test_everything_that_does_not_fit_is_listed(
    make_study: Make, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    """Missing and misshapen arrays are told at once, each with what is wrong."""
    source = dict(pretrained)
    names = [name for name in source if name.startswith("layer1") and name.endswith("weight")]
    del source[names[0]], source["bn1.running_mean"]
    source[names[1]] = torch.zeros(3, 1)
    file = tmp_path / "start.safetensors"
    save_file(source, file)
    with pytest.raises(WeightsError) as refused:
        initial_model(study_with(make_study, file))
    text = refused.value.message
    assert f"; 3 of {len(pretrained) - 2} arrays:" in text
    assert f"  - {names[0]} is missing" in text
    assert "  - bn1.running_mean is missing" in text
    assert f"  - {names[1]} has the shape (3, 1) instead of (" in text
    assert refused.value.remedy


def test_weights_of_another_backbone_are_refused(make_study: Make, tmp_path: Path) -> None:
    """A file without one array of the backbone is refused, not skipped silently."""
    file = tmp_path / "start.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        initial_model(study_with(make_study, file))


def test_a_missing_file_has_its_own_error(make_study: Make, tmp_path: Path) -> None:
    """A path that leads nowhere, or to a folder, is a MissingFolderError."""
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("none.safetensors", "folder.safetensors"):
        with pytest.raises(MissingFolderError, match=name):
            initial_model(study_with(make_study, tmp_path / name))


def test_a_file_of_another_form_is_refused(make_study: Make, tmp_path: Path) -> None:
    """A checkpoint as torch writes it, an archive of Python objects, is never opened."""
    file = tmp_path / "start.safetensors"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("start/data.pkl", bytes.fromhex("80045d942e"))
    with pytest.raises(WeightsError, match="is no safetensors file") as refused:
        initial_model(study_with(make_study, file))
    assert "never read" in refused.value.remedy


def test_the_file_must_be_the_agreed_one(
    make_study: Make, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    """With a SHA-256 in the study, one other byte in the file is refused."""
    file = tmp_path / "start.safetensors"
    save_file(pretrained, file)
    right = sha256_of(file)
    assert initial_model(study_with(make_study, file, sha256=right)).source == file.name
    with pytest.raises(StudyError, match="SHA-256"):
        initial_model(study_with(make_study, file, sha256="0" * 64))


def test_an_unknown_backbone_is_told_before_its_weights(make_study: Make, tmp_path: Path) -> None:
    """A wrong name is the fault, whatever the weights."""
    with pytest.raises(UnknownBackboneError):
        initial_model(study_with(make_study, tmp_path / "none.safetensors", name="resnet18x"))


def test_without_the_hub_the_error_says_how_to_give_a_file(
    make_study: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When ``pretrained`` cannot be had, the remedy is a file made on another machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error: WeightsError | None = None
    try:
        initial_model(study_with(make_study, "pretrained"))
    except WeightsError as raised:
        error = raised
    if error is None:
        pytest.skip("this machine holds timm's weights already")
    assert "cannot reach its hub" in error.message
    for word in ("save_file", f"timm.create_model('{NAME}', pretrained=True)", "weights"):
        assert word in error.remedy


def test_a_backbone_without_pretrained_weights_says_so(make_study: Make) -> None:
    """Where timm has no weights at all, that is a WeightsError too and not a random start."""
    with pytest.raises(WeightsError, match="no pretrained weights"):
        initial_model(study_with(make_study, "pretrained", name="mobilenetv2_035"))


def test_real_weights_load_in_full(make_study: Make, shared: Path) -> None:
    """MobileNetV2 as someone else trained it fits timm's own, array for array."""
    file = shared / "weights" / "mobilenetv2_100_tfslim.timm.safetensors"
    study = make_study(backbone={"name": "mobilenetv2_100", "weights": str(file), "image_size": 64})
    start, source = initial_model(study), load_file(file)
    state = start.model.backbone.state_dict()
    differing = [n for n in state if n in source and not torch.equal(state[n], source[n])]
    assert differing == []
    assert {n for n in state if n not in source} <= {n for n in state if n.endswith("_tracked")}
    assert all(name.startswith("classifier.") for name in start.left_out)
    x_BCHW = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64))).float()
    with torch.inference_mode():
        assert torch.isfinite(start.model.eval().features(x_BCHW)).all()
