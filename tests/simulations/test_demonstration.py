"""Laws of the demo."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from server.initial_weights import initial_model
from simulations import demonstration
from simulations.phantoms import TASKS
from simulations.run import read_summary

Program = Callable[..., tuple[int, str, str]]


def test_the_study_is_of_all_phantom_tasks() -> None:
    """Both forms of the demo parse, and name the phantoms' own tasks and classes."""
    for weights in ("phantoms", "pretrained"):
        study = demonstration.study(weights)
        assert {name: tuple(task.classes) for name, task in study.tasks.items()} == {
            name: task.classes for name, task in TASKS.items()
        }
        assert {name: task.positive for name, task in study.tasks.items()} == {
            name: task.positive for name, task in TASKS.items()
        }
    assert demonstration.study("pretrained").backbone.weights == "pretrained"


def test_the_weights_in_the_repository_are_the_studys() -> None:
    """The file is at most 8 MB, and every array of the backbone comes from it."""
    if not demonstration.WEIGHTS.is_file():
        pytest.skip("simulations/pretrain.py has not written the demo's weights yet")
    assert demonstration.WEIGHTS.stat().st_size <= 8_000_000
    start = initial_model(demonstration.study("phantoms"))
    assert start.source == demonstration.WEIGHTS.name
    stored = load_file(demonstration.WEIGHTS)
    for name, value in start.model.backbone.state_dict().items():
        assert torch.equal(value, stored[name])
    assert set(start.left_out) == {name for name in stored if name.startswith("fc.")}


@pytest.mark.parametrize("words", [(), ("--again",)])
def test_a_folder_with_something_in_it_is_left_alone(
    rarefed_sim: Program, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """What the demo did not make it neither fills nor removes, --again or not."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    code, out, err = rarefed_sim("demo", "--out", tmp_path / "out", *words)
    assert (code, out) == (40, "")
    assert "is not empty" in " ".join(err.split())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_earlier_demo_is_left_alone_too(rarefed_sim: Program, tmp_path: Path) -> None:
    """Without --again, an earlier demo is not replaced either."""
    (tmp_path / demonstration.MARK).touch()
    code, _, err = rarefed_sim("demo", "--out", tmp_path)
    assert code == 40
    assert "--again" in err
    assert [file.name for file in tmp_path.iterdir()] == [demonstration.MARK]


def test_a_folder_that_cannot_be_made_is_refused(rarefed_sim: Program, tmp_path: Path) -> None:
    """A file in the folder's place is exit code 40, not a traceback."""
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "demo"):
        code, _, err = rarefed_sim("demo", "--out", out)
        assert code == 40
        assert "Remedy:" in err


@pytest.mark.slow
def test_the_whole_demo_learns_every_task(rarefed_sim: Program, tmp_path: Path) -> None:
    """It replaces an earlier demo, and the federated AUROC of each task is above 0.6."""
    if not demonstration.WEIGHTS.is_file():
        pytest.skip("simulations/pretrain.py has not written the demo's weights yet")
    (tmp_path / demonstration.MARK).touch()
    (tmp_path / "earlier.txt").touch()
    code, out, err = rarefed_sim("demo", "--out", tmp_path, "--again")
    assert (code, err) == (0, "")
    assert not (tmp_path / "earlier.txt").exists()
    summary = read_summary(tmp_path / "run")
    assert set(summary["tasks"]) == set(TASKS)
    for task, found in summary["tasks"].items():
        assert found["pooled"]["auroc"] > 0.6, task
        assert task in out
    assert len(summary["sites"]) == demonstration.SITES
