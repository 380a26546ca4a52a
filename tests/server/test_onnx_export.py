"""Laws of the ONNX file: it computes what torch does, says what it takes, and refuses otherwise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import OutputError, WeightsError
from common.models import FederatedModel, build_model
from common.study import Study
from server import onnx_export
from server.onnx_export import LARGEST_DIFFERENCE, ONNX, OPSET, export_onnx, load_images

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = 32


def make_study(backbone: str = "test_resnet", size: int = SIZE) -> Study:
    return Study.parse(
        {
            "name": "two",
            "rounds": 1,
            "backbone": {"name": backbone, "weights": "none", "image_size": size},
            "tasks": {
                "lung": {"modality": "CT", "classes": ["normal", "ill"], "positive": "ill"},
                "eye-grade": {"modality": "fundus", "classes": ["none", "mild", "severe"]},
            },
        }
    )


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def model(study: Study) -> FederatedModel:
    return build_model(study).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).random((3, 1, SIZE, SIZE), np.float32))
    return path


@pytest.fixture(scope="module")
def file(
    tmp_path_factory: pytest.TempPathFactory, study: Study, model: FederatedModel, images: Path
) -> Path:
    path = tmp_path_factory.mktemp("onnx") / ONNX
    given = load_images(images, study)
    np.testing.assert_array_equal(given, np.load(images))
    found = export_onnx(model, study, path, given, model_sha256="ab" * 32)
    assert found.opset == OPSET
    assert 0 <= found.largest_difference <= LARGEST_DIFFERENCE
    assert found.images == 3
    return path


def logits(model: FederatedModel, x: torch.Tensor, task: str) -> Any:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    with torch.inference_mode():
        return model((x - mean) / std, task).numpy()


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (1, 3), (5, 1), (5, 3)])
def test_onnx_runtime_gives_torchs_logits(
    file: Path, model: FederatedModel, count: int, channels: int
) -> None:
    """For any batch, grey or colour, each task's output is torch's logits within 1e-4."""
    x = torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["lung", "eye-grade"]
    for task in ("lung", "eye-grade"):
        (found,) = session.run([task], {"image": x.numpy()})
        np.testing.assert_allclose(found, logits(model, x, task), atol=1e-4)


def test_the_file_says_what_it_takes(file: Path, study: Study) -> None:
    """The file passes ONNX's own checker and names opset, digests, classes and its purpose."""
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [OPSET]
    assert said["rarefed.study_digest"] == study.digest()
    assert said["rarefed.model_sha256"] == "ab" * 32
    assert json.loads(said["rarefed.tasks"])["eye-grade"]["classes"] == ["none", "mild", "severe"]
    assert json.loads(said["rarefed.normalisation"])["inside_graph"] is True
    assert "Not a medical device" in said["rarefed.notice"]


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, study: Study, model: FederatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the difference is above the limit, the export is refused and leaves no file."""
    monkeypatch.setattr(onnx_export, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(OutputError, match="differs from torch"):
        export_onnx(model, study, tmp_path / ONNX)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a package the refusal says which, and how to install it."""
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(OutputError, match="no_such_package") as refused:
        onnx_export.check_packages()
    assert "rarefed[onnx]" in refused.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, SIZE, SIZE - 1), np.float32),
        np.full((2, 3, SIZE, SIZE), 2, np.float32),
        np.full((2, 3, SIZE, SIZE), np.nan, np.float32),
        np.zeros((2, 2, SIZE, SIZE), np.float32),
        np.zeros((0, 3, SIZE, SIZE), np.float32),
        np.zeros((2, 3, SIZE, SIZE), np.uint8),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, study: Study, wrong: Any) -> None:
    """An array of another shape, type or range is refused, as is a file that is none."""
    np.save(tmp_path / "wrong.npy", wrong)
    with pytest.raises(WeightsError):
        load_images(tmp_path / "wrong.npy", study)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(WeightsError, match="no array"):
        load_images(tmp_path / "text.npy", study)
