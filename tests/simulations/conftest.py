"""Small hospitals, small studies and a small backbone's weights for the simulations' tests."""

import csv
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from common.models import build_model
from common.study import Study
from simulations import cli
from simulations import hospitals as makers
from simulations.federation import find_hospitals
from simulations.run import run_simulation

SIZE, PATIENTS, CONTRAST = 32, 24, 40
DATA_SETS = {"spots": ("L", 2), "bars": ("RGB", 1), "rings": ("L", 1)}
"""Tasks of the small hospitals: kind of picture, and to how many hospitals they are dealt."""

STUDY = """
name = "small"
rounds = 2
seed = 1

[backbone]
name = "test_resnet"
weights = "none"
image_size = 32

[tasks.spots]
modality = "other"
classes = ["without", "with"]
positive = "with"

[tasks.bars]
modality = "fundus"
classes = ["without", "with"]

[tasks.rings]
modality = "MR"
classes = ["with", "without"]
positive = "with"

[training]
batch_size = 8
head_lr = 1e-2
backbone_lr = 3e-3

[split]
validation = 0.15
test = 0.4

[federation]
quorum = 1
deadline_s = 120.0
"""

StudyOf = Callable[..., Study]
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four hospitals of phantoms: two with CT, one with MR, one with fundus."""
    folder = tmp_path_factory.mktemp("phantoms")
    makers.make(folder, sites=4, patients=8, images=1, seed=3)
    return folder


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small data set for each task."""
    folder = tmp_path_factory.mktemp("data")
    for number, (task, (mode, sites)) in enumerate(DATA_SETS.items()):
        _write_data_set(folder / task, np.random.default_rng(number), mode, PATIENTS * sites)
    return folder


@pytest.fixture(scope="session")
def template(data_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``small`` is copied from; nobody else touches it."""
    folder = tmp_path_factory.mktemp("template")
    first = 1
    for task, (_, sites) in DATA_SETS.items():
        makers.deal(
            data_sets / task, folder, sites=sites, task=task, skew="iid", seed=5, first=first
        )
        first += sites
    return folder


@pytest.fixture
def small(template: Path, tmp_path: Path) -> Path:
    """A folder of four hospitals of 32-pixel PNGs: spots, spots, bars and rings.

    Every test has its own copy and may spoil it.
    """
    return Path(shutil.copytree(template, tmp_path / "hospitals"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file for the studies' backbone."""
    state = build_model(Study.parse({**tomllib.loads(STUDY), "seed": 77})).backbone.state_dict()
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return file


@pytest.fixture
def study_text() -> str:
    """The study file of the small hospitals' three tasks."""
    return STUDY


@pytest.fixture(scope="session")
def study_of() -> StudyOf:
    """A function that gives the small study of some tasks; keywords replace parts of it."""

    def make(*tasks: str, **changes: Any) -> Study:
        values = tomllib.loads(STUDY)
        values["tasks"] = {name: values["tasks"][name] for name in tasks or DATA_SETS}
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return Study.parse(values)

    return make


@pytest.fixture(scope="session")
def long_study(study_of: StudyOf) -> Study:
    """A study of all three tasks that trains long enough to learn something."""
    return study_of(rounds=3, training={"local_epochs": 3})


@pytest.fixture(scope="session")
def finished(template: Path, long_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of ``long_study`` with yardsticks; only to be read.

    Its hospitals stand beside it, in ``hospitals``.
    """
    folder = tmp_path_factory.mktemp("finished")
    hospitals = Path(shutil.copytree(template, folder / "hospitals"))
    out = folder / "run"
    run_simulation(long_study, find_hospitals(hospitals), out, threads=1, with_yardsticks=True)
    return out


@pytest.fixture
def rarefed_sim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """A function that runs ``rarefed-sim`` in this process: exit code, stdout, stderr."""

    def program(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rarefed-sim", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return program


def _write_data_set(folder: Path, rng: np.random.Generator, mode: str, patients: int) -> None:
    """Write pictures of noise, with a brighter square where there is something to find."""
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "patient_id"))
        for patient in range(patients):
            found = patient // 2 % 2
            for view in range(1 + patient % 2):
                shape = (SIZE, SIZE) if mode == "L" else (SIZE, SIZE, 3)
                pixels = rng.integers(0, 150, shape, np.uint8)
                row, column = rng.integers(2, SIZE - 14, 2)
                pixels[row : row + 12, column : column + 12] += np.uint8(CONTRAST * found)
                path = f"images/{folder.name}-p{patient:03d}-{view}.png"
                Image.fromarray(pixels).save(folder / path)
                table.writerow((path, ("without", "with")[found], f"{folder.name}-p{patient:03d}"))
