"""Laws of ``simulations/benches``: what they say has one shape, and none is forgotten."""

import json
import pkgutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulations.benches
from common.errors import MissingFolderError
from simulations.benches import combine_parts, localisation, real
from simulations.benches.__main__ import BENCHES
from simulations.benches.result import KEYS, Result
from simulations.benches.transfer_gain import gains_of

HELPERS = {
    "__main__",
    "combine_parts",
    "ct_files",
    "deployed",
    "egress_attention",
    "egress_cases",
    "egress_figures",
    "egress_mutations",
    "result",
    "studies",
}


def summary_of(federated: float, pooled: float, alone: float) -> dict[str, Any]:
    """Return as much of a summary as the judgement looks at."""
    return {
        "tasks": {"lung": {"pooled": {"auroc": federated}}},
        "yardsticks": {
            name: {"lung": {"auroc": value}}
            for name, value in (("alone", alone), ("ensemble", 0.5), ("pooled", pooled))
        },
    }


def test_the_last_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """A result prints exactly its keys as JSON, and its exit code says whether it holds."""
    against = {"what": "a floor", "figure": 2.0, "unit": "s"}
    good = Result("a", 1.0, against, 0.5, 1.1, holds=True)
    assert good.tell() == 0
    assert tuple(json.loads(capsys.readouterr().out)) == KEYS
    assert Result("a", 3.0, against, 1.5, 1.1, holds=False).tell() == 1
    assert tuple(field.name for field in fields(Result)) == KEYS


def test_every_bench_is_run_by_make_bench() -> None:
    """The list that ``make bench`` runs is exactly the modules that measure something."""
    modules = {module.name for module in pkgutil.iter_modules(simulations.benches.__path__)}
    assert set(BENCHES) == modules - HELPERS


@pytest.mark.parametrize(
    ("federated", "pooled", "alone", "holds"),
    [
        (0.90, 0.91, 0.85, True),
        (0.95, 0.91, 0.85, True),
        (0.90, 0.93, 0.85, False),
        (0.90, 0.91, 0.90, False),
    ],
)
def test_real_holds_near_pooled_and_above_alone(
    federated: float, pooled: float, alone: float, *, holds: bool
) -> None:
    """At most 0.02 below pooled, and above the mean of the sites alone; anything else fails."""
    found = real.judged(summary_of(federated, pooled, alone))
    assert found.holds is holds
    assert found.figure == pytest.approx(federated - pooled)


@pytest.mark.parametrize(
    ("auroc", "trained", "other", "holds"),
    [
        (0.96, 0.81, 0.10, True),
        (0.94, 0.81, 0.10, False),
        (0.96, 0.79, 0.10, False),
        (0.96, 0.81, 0.40, False),
    ],
)
def test_localisation_holds_for_a_good_network_alone(
    auroc: float, trained: float, other: float, *, holds: bool
) -> None:
    """Its maps point at the lesions, and those of the randomised network stay near chance."""
    found = {
        "auroc": auroc,
        "gradcam": {"pointing": trained, "chance": 0.1},
        "randomised": {"pointing": other, "chance": 0.1},
    }
    assert localisation.holds(found) is holds


def test_cells_are_no_larger_than_lesions() -> None:
    """A lesion of a sixteenth of a side asks for 16 cells, a large one for the usual number."""
    mask = np.zeros((64, 64), np.bool_)
    mask[:4, :4] = True
    assert localisation.cells_for([mask, np.zeros_like(mask)]) == 16
    assert localisation.cells_for([np.ones_like(mask)]) == 6


def test_a_data_set_becomes_a_task(tmp_path: Path) -> None:
    """Classes come from the labels, modality from the name; of two classes one is positive."""
    folder = tmp_path / "oct_clinic"
    folder.mkdir()
    (folder / "labels.csv").write_text("path,label\na.png,ill\nb.png,healthy\n", encoding="utf-8")
    assert real.find_datasets(tmp_path, None) == [folder]
    task = real.task_of(folder, None)
    assert task == {"modality": "OCT", "classes": ["healthy", "ill"], "positive": "ill"}
    assert real.task_of(folder, "healthy")["positive"] == "healthy"
    with pytest.raises(MissingFolderError):
        real.find_datasets(tmp_path / "none", None)


def test_the_made_up_round_uses_every_reply(tmp_path: Path) -> None:
    """The round whose memory is measured is a real one: all its sites' replies are combined."""
    shapes = {"backbone.a": (3, 4), "backbone.b": (5,)}
    combine_parts.write_model(tmp_path, shapes)
    combine_parts.our_round(tmp_path, shapes, 3)()
    assert (tmp_path / "run-3" / "model.safetensors").exists()
    combine_parts.flower_round(tmp_path, shapes)()


def test_transfer_gain_is_the_better_way_above_random_weights() -> None:
    """Of each backbone the larger pretrained AUROC counts, whichever way it came from."""
    aurocs = {
        "a / from scratch": 0.6,
        "a / pretrained, frozen": 0.75,
        "a / pretrained, fine-tuned": 0.7,
        "b / from scratch": 0.9,
        "b / pretrained, frozen": 0.7,
        "b / pretrained, fine-tuned": 0.85,
        "HOG and LBP, SVM": 0.99,
    }
    rows = [{"row": row, "metrics": {"auroc": {"mean": value}}} for row, value in aurocs.items()]
    assert gains_of(rows) == pytest.approx({"a": 0.15, "b": -0.05})
