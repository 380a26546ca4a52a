"""Laws of the script that trains the demo's backbone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from client.images import read_image
from client.preprocess import prepare
from common.study import Study
from server.initial_weights import initial_model
from simulations import pretrain
from simulations.dicom_files import Origin, write_dicom
from simulations.phantoms import PRETEXT, TASKS, Scanner, scanner

StudyOf = Callable[..., Study]
Drawn = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """A batch of pretext phantoms, a few of them repeated."""
    pixels, labels = pretrain.draw(2 * len(PRETEXT), seed=4)
    return pixels.repeat(4, 1, 1, 1)[:64], labels.repeat(4)[:64]


def test_no_disease_of_the_demo_is_learnt_before(drawn: Drawn) -> None:
    """The pretext findings name none of the tasks' diseases, and each comes in turn."""
    findings = {finding for _, finding in PRETEXT}
    assert findings.isdisjoint({name for task in TASKS.values() for name in task.classes})
    assert drawn[1][: 2 * len(PRETEXT)].tolist() == [*range(len(PRETEXT))] * 2


def test_drawing_depends_on_the_seed_alone(drawn: Drawn) -> None:
    """The same seed draws the same phantoms, values in [0, 1], three channels of 96 pixels."""
    pixels, labels = pretrain.draw(9, seed=4)
    other, _ = pretrain.draw(9, seed=5)
    assert pixels.shape == (9, 3, pretrain.SIZE, pretrain.SIZE)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert torch.equal(pixels, drawn[0][:9])
    assert torch.equal(labels, drawn[1][:9])
    assert not torch.equal(pixels, other)


@pytest.mark.parametrize(("task", "modality"), [("gaucher", "CT"), ("neurofibromatosis", "MR")])
def test_it_sees_what_a_site_would_read(
    task: str, modality: Literal["CT", "MR"], tmp_path: Path
) -> None:
    """A phantom brought to [0, 1] here is what the client reads from its DICOM file."""
    device: Scanner = scanner(0, np.random.default_rng(0))
    phantom = TASKS[task].draw(3, 0, diseased=True, scanner=device)
    origin = Origin("site", device.name, "patient", 0, 0)
    write_dicom(tmp_path / "image.dcm", phantom, modality=modality, origin=origin)
    read = prepare(read_image(tmp_path / "image.dcm", modality=modality), pretrain.SIZE)
    made = prepare(pretrain._scaled(phantom.pixels), pretrain.SIZE)
    assert torch.allclose(read.float(), made.float(), atol=2e-3)


def test_training_gives_weights_for_the_demos_backbone(
    drawn: Drawn, study_of: StudyOf, tmp_path: Path
) -> None:
    """The same seed trains the same network, whose file loads as a study's backbone."""
    model = pretrain.fit(*drawn, epochs=1, seed=0)
    again = pretrain.fit(*drawn, epochs=1, seed=0)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert 0 <= pretrain.accuracy(model, *drawn) <= 1
    save_file(state, tmp_path / "w.safetensors")
    backbone = {"name": pretrain.BACKBONE, "weights": str(tmp_path / "w.safetensors")}
    start = initial_model(study_of(backbone=backbone))
    assert set(start.left_out) == {"fc.bias", "fc.weight"}


@pytest.mark.slow
def test_the_script_writes_a_file_that_says_how_it_came_about(tmp_path: Path) -> None:
    """The header holds backbone, images, epochs, seed and the held-out accuracy."""
    pretrain.main(tmp_path / "w.safetensors", images=64, epochs=1, seed=3)
    with safe_open(tmp_path / "w.safetensors", framework="numpy") as file:
        notes = json.loads(file.metadata()["rarefed"])
    assert 0 <= float(notes.pop("held_out_accuracy")) <= 1
    assert notes == {"backbone": "test_resnet", "images": "64", "epochs": "1", "seed": "3"}
