"""The main job on real images, in short: three data sets, three tasks, six hospitals."""

import json
from pathlib import Path

import pytest

from common.study import Study
from simulations import hospitals
from simulations.federation import find_hospitals
from simulations.run import run_simulation

TASKS = {
    "lung": ("ct_iqoth", "CT", ["normal", "benign", "malignant"]),
    "brain": ("mri_brain_tumour", "MR", ["notumor", "glioma", "meningioma", "pituitary"]),
    "retinopathy": ("fundus_idrid", "fundus", ["no_referable_dr", "referable_dr"]),
}


@pytest.mark.slow
def test_three_real_tasks_share_one_pretrained_backbone(shared: Path, tmp_path: Path) -> None:
    """Every site answers each exchange, yardsticks are measured, and brain tumours are told."""
    for number, (task, (name, _, _)) in enumerate(TASKS.items()):
        hospitals.deal(
            shared / "data" / name, tmp_path / "real", sites=2, task=task, first=2 * number + 1
        )
    weights = shared / "weights" / "mobilenetv2_100_tfslim.timm.safetensors"
    study = Study.parse(
        {
            "name": "real-short",
            "rounds": 2,
            "backbone": {"name": "mobilenetv2_100", "weights": str(weights), "image_size": 64},
            "tasks": {
                task: {"modality": modality, "classes": classes}
                for task, (_, modality, classes) in TASKS.items()
            },
        }
    )
    summary = run_simulation(
        study, find_hospitals(tmp_path / "real"), tmp_path / "run", with_yardsticks=True
    )
    sites = [f"hospital-{number}" for number in range(1, 7)]
    assert summary["sites"] == sites
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["answered"] for line in lines] == [sites] * 3
    assert set(summary["yardsticks"]) == {"alone", "ensemble", "pooled"}
    assert summary["tasks"]["brain"]["pooled"]["auroc"] > 0.7
