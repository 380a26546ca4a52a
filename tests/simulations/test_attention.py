"""Laws of where the network of a played study looks, as the coordinator hears of it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from client.attention import SCALARS
from client.config import SiteConfig
from client.explanations import explain_site
from client.final_model import final_model
from common.study import Study
from server.history import HISTORY
from simulations.demonstration import study as demo
from simulations.federation import find_hospitals
from simulations.run import run_simulation

LOG = logging.getLogger("test")


def asking() -> Study:
    """Return the demo's study, of one round, that asks for attention."""
    values = demo("phantoms").model_dump(mode="json")
    values["evaluation"] = {"attention": "hirescam"}
    values["training"]["local_epochs"] = 1
    return Study.parse({**values, "rounds": 1, "federation": {"quorum": 1}})


def told_by_explain(site: Path, study: Study, out: Path) -> tuple[str, dict[str, Any]]:
    """Return a hospital's name, and the means of its own command on the network that it keeps."""
    config, device = SiteConfig.load(site), torch.device("cpu")
    (task,) = config.data
    found = explain_site(
        config,
        final_model(config, study, device=device),
        task,
        out / config.name,
        method="hirescam",
        cells=6,
        count=999,
        device=device,
        log=LOG,
    )
    return config.name, found["reportable"]["means"]


@pytest.mark.slow
def test_a_played_study_reports_what_explain_computes(phantoms: Path, tmp_path: Path) -> None:
    """Each site's means are those of its own command; pooled ones count each patient once."""
    folder = Path(shutil.copytree(phantoms, tmp_path / "hospitals"))
    *asked, quiet = find_hospitals(folder)
    for path in asked:
        with (path / "site.toml").open("a", encoding="utf-8") as file:
            file.write('attention = "report"\n')
    study = asking()
    summary = run_simulation(study, [*asked, quiet], tmp_path / "run", threads=1)
    told = dict(told_by_explain(site, study, tmp_path) for site in asked)
    seen: dict[str, Any] = {}
    for task in summary["tasks"].values():
        found = task.get("attention", {"per_site": {}})
        seen |= found["per_site"]
        for figure, pooled in found.get("pooled", {}).items():
            each = [of[figure] for of in found["per_site"].values() if figure in of]
            patients = sum(of["patients"] for of in each)
            assert pooled["patients"] == patients
            total = sum(of["mean"] * of["patients"] for of in each)
            assert pooled["mean"] == pytest.approx(total / patients)
    assert set(seen) == set(told)
    for site, figures in seen.items():
        assert {SCALARS[figure][0] for figure in figures} == {
            value for value, _ in SCALARS.values() if value in told[site]
        }
        for figure, of in figures.items():
            value, even = (told[site][name] for name in SCALARS[figure])
            assert of["mean"] == pytest.approx(value["mean"], rel=1e-6)
            assert of["even"] == pytest.approx(even["mean"], rel=1e-6)
            assert of["patients"] == value["patients"]
    lines = (tmp_path / "run" / HISTORY).read_text(encoding="utf-8").splitlines()
    first, last = (json.loads(line)["tasks"] for line in lines)
    assert not any("attention" in splits["test"] for splits in first.values())
    assert {task: of["test"] for task, of in last.items() if "test" in of} == summary["tasks"]
