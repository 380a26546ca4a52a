"""Laws of the beginning of a study: the rounds find what they need on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.arrays import digest
from common.errors import OutputError, WeightsError
from common.layout import Layout
from common.study import Study
from common.weights import layout_of, take
from server.begin import begin
from server.checkpoint import LAYOUT, MODEL, find_checkpoint, load_layout, save_layout
from server.initial_weights import initial_model
from server.stored_arrays import StoredArrays


def study(weights: str = "none") -> Study:
    return Study.parse(
        {
            "name": "begun",
            "rounds": 2,
            "backbone": {"name": "mobilenetv3_small_050", "weights": weights},
            "tasks": {"a": {"modality": "CT", "classes": ["no", "yes"]}},
        }
    )


def test_what_is_written_is_the_network(tmp_path: Path) -> None:
    """Layout and arrays on disk are those of the network that the study begins with."""
    begin(study(), tmp_path)
    model = initial_model(study()).model
    layout = load_layout(tmp_path)
    assert layout == layout_of(model, study())
    stored = StoredArrays(tmp_path / MODEL, tuple(model.state_dict()))
    assert digest(stored) == digest(take(model, model.state_dict()))
    travelling = [name for names in layout.groups.values() for name in names]
    assert sorted([*travelling, *layout.sent_once]) == sorted(model.state_dict())
    assert find_checkpoint(tmp_path, study()).round == 0


def test_to_begin_again_changes_nothing(tmp_path: Path) -> None:
    """A study that has begun keeps its arrays, whatever torch's generator would draw now."""
    begin(study(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    torch.manual_seed(7)
    begin(study(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_do_not_fit_begin_nothing(tmp_path: Path) -> None:
    """Where the weights are of another network, no study has begun."""
    begin(study(), tmp_path / "other")
    other = study(str(tmp_path / "other" / MODEL))
    wrong = other.model_copy(
        update={"backbone": other.backbone.model_copy(update={"name": "resnet18"})}
    )
    with pytest.raises(WeightsError, match="does not fit"):
        begin(wrong, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"groups": {"a": "w"}, "local": [], "base": []}', '{"groups": {"a": [1]}}'],
)
def test_a_damaged_layout_is_said(tmp_path: Path, text: str) -> None:
    """What is no layout is an error that names the file, and so is a study that has not begun."""
    with pytest.raises(OutputError, match=LAYOUT):
        load_layout(tmp_path)
    (tmp_path / LAYOUT).write_text(text)
    with pytest.raises(OutputError, match=LAYOUT):
        load_layout(tmp_path)


def test_a_layout_reads_back(tmp_path: Path) -> None:
    """Names keep their order and groups their names, empty ones too."""
    layout = Layout({"shared": ("b", "a"), "head:x": ()}, local=("l",), base=("c", "ä"))
    save_layout(tmp_path, layout)
    assert load_layout(tmp_path) == layout
    assert list(json.loads((tmp_path / LAYOUT).read_text())["groups"]) == ["shared", "head:x"]


def test_the_rounds_need_no_torch() -> None:
    """Flower starts the ServerApp anew after each fault: it imports nothing that takes seconds."""
    script = "import sys, server.app; print(sorted({'torch', 'timm', 'PIL'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
