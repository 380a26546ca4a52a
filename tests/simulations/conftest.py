"""Small hospitals, a small backbone's weights and small studies for the simulations' tests."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.models import build_model
from common.study import Study
from simulations import hospitals as makers

SIZE, PATIENTS = 32, 24
DATA_SETS = {"spots": ("L", 2), "bars": ("RGB", 1), "rings": ("L", 1)}
"""Tasks of the small hospitals: kind of picture, and to how many hospitals they are dealt."""

StudyOf = Callable[..., Study]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four hospitals of phantoms: two with CT, one with MR, one with fundus."""
    folder = tmp_path_factory.mktemp("phantoms")
    makers.make(folder, sites=4, patients=10, images=2, seed=3)
    return folder


@pytest.fixture(scope="session")
def small_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    first = 1
    for number, (task, (mode, sites)) in enumerate(DATA_SETS.items()):
        source = folder / "source" / task
        _data_set(source, np.random.default_rng(number), mode, PATIENTS * sites)
        makers.deal(
            source, folder / "hospitals", sites=sites, task=task, skew="iid", seed=5, first=first
        )
        first += sites
    return folder / "hospitals"


@pytest.fixture
def small(small_template: Path, tmp_path: Path) -> Path:
    """A folder of four hospitals of 32-pixel PNGs: spots, spots, bars and rings.

    Every test has its own copy and may spoil it.
    """
    return Path(shutil.copytree(small_template, tmp_path / "hospitals"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file for the backbone test_resnet, with a head of other classes in it."""
    study = Study.parse(_values({"spots": {}}))
    model = build_model(study.model_copy(update={"seed": 77}))
    arrays = dict(model.backbone.state_dict()) | {"fc.weight": torch.zeros(1000, 384)}
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file({name: value.contiguous() for name, value in arrays.items()}, file)
    return file


@pytest.fixture
def study_of() -> StudyOf:
    """A function that gives a small study of some tasks; keywords replace parts of sections."""

    def make(*tasks: str, **changes: Any) -> Study:
        values = _values({name: {} for name in tasks or DATA_SETS})
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return Study.parse(values)

    return make


def _values(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a small study file."""
    form = {"modality": "other", "classes": ["without", "with"], "positive": "with"}
    return {
        "name": "small",
        "rounds": 2,
        "seed": 1,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": SIZE},
        "tasks": {name: {**form, **task} for name, task in tasks.items()},
        "training": {"batch_size": 8, "head_lr": 3e-3, "backbone_lr": 1e-3},
        "federation": {"quorum": 1, "deadline_s": 120},
    }


def _data_set(folder: Path, rng: np.random.Generator, mode: str, patients: int) -> None:
    """Write a data set of noise, with a bright square where there is something to find."""
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "patient_id"))
        for patient in range(patients):
            for view in range(1 + patient % 2):
                pixels = rng.integers(0, 150, (SIZE, SIZE, 3)[: 2 if mode == "L" else 3], np.uint8)
                if patient // 2 % 2:
                    row, column = rng.integers(2, SIZE - 14, 2)
                    pixels[row : row + 12, column : column + 12] += 100
                path = f"images/p{patient:03d}-{view}.png"
                Image.fromarray(pixels).save(folder / path)
                table.writerow((path, ("without", "with")[patient // 2 % 2], f"p{patient:03d}"))
