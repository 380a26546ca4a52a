"""Laws of the network that is loaded from a study's file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import WeightsError
from common.models import build_model
from common.study import Study
from common.weights import take
from server.checkpoint import MODEL, save_model
from server.stored_model import load_model

STUDY = Study.parse(
    {
        "name": "one",
        "rounds": 1,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "tasks": {"lung": {"modality": "CT", "classes": ["no", "yes"]}},
    }
)


def test_the_network_is_the_stored_one(tmp_path: Path) -> None:
    """Every array is that of the file, and the network is in evaluation mode."""
    model = build_model(STUDY)
    arrays = {
        name: value + 1 if value.dtype == np.float32 else value
        for name, value in take(model, model.state_dict()).items()
    }
    found = load_model(STUDY, save_model(tmp_path, arrays, {}))
    assert not found.training
    for name, value in found.state_dict().items():
        assert torch.equal(value, torch.from_numpy(arrays[name]))


def test_another_file_is_refused(tmp_path: Path) -> None:
    """One that is missing, damaged, incomplete or of another network is told as such."""
    model = build_model(STUDY)
    arrays = take(model, model.state_dict())
    with pytest.raises(WeightsError, match="cannot be used"):
        load_model(STUDY, tmp_path / MODEL)
    (tmp_path / MODEL).write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="cannot be used"):
        load_model(STUDY, tmp_path / MODEL)
    save_model(tmp_path, {"weight": np.zeros(3, np.float32)}, {})
    with pytest.raises(WeightsError, match="do not fit"):
        load_model(STUDY, tmp_path / MODEL)
    del arrays["heads.lung.bias"]
    save_model(tmp_path, arrays, {})
    with pytest.raises(WeightsError, match=r"lacks the arrays heads\.lung\.bias"):
        load_model(STUDY, tmp_path / MODEL)
