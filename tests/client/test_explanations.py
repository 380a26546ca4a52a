"""Laws of ``client/explanations`` and its command: what is written, for whom, what may leave."""

import json
import logging
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from client.attention_warnings import Share
from client.cli import app
from client.config import Limits, SiteConfig
from client.explained_case import Case
from client.explanations import chosen_rows, explain_site, reportable
from client.final_model import FinalModel
from client.localisation import Localisation
from client.manifest import Row
from common.errors import EmptyManifestError, TaskWithoutSiteError
from common.models import build_model
from common.study import Study

CPU = torch.device("cpu")
LOG = logging.getLogger("test")
CASE = Case(
    line=2,
    part="",
    patient="p",
    label="gaucher",
    explained="gaucher",
    probability=0.9,
    predicted="gaucher",
    localisation=Localisation(pointing=True, energy=0.5, iou=0.2, dice=0.3, area=0.1, chance=0.2),
    attention={"border": Share(0.2, 0.19)},
    faithfulness=None,
    likeness=None,
    empty=False,
)


@pytest.fixture
def site(
    make_hospital: Callable[..., SiteConfig], make_study: Callable[..., Study]
) -> tuple[SiteConfig, FinalModel]:
    """Return a hospital whose diseased test images have masks, and a network at random weights."""
    config, study = make_hospital(), make_study()
    table = config.data["ct"].manifest
    lines = table.read_text().splitlines()
    Image.fromarray(np.pad(np.full((10, 10), 255, np.uint8), 15)[:36, :40]).save(
        table.parent / "mask.png"
    )
    marked = [line + (",mask.png" if "gaucher" in line else ",") for line in lines[1:]]
    table.write_text("\n".join([lines[0] + ",mask", *marked]) + "\n")
    model = build_model(study)
    model.eval()
    return config, FinalModel(study, model, 3, "00", ("ct",))


def row(line: int, patient: str, label: int) -> Row:
    return Row(line=line, path=Path(f"{line}.png"), label=label, patient=patient, unit=patient)


def test_overlays_and_scalars_are_for_the_owner_alone(
    site: tuple[SiteConfig, FinalModel], tmp_path: Path
) -> None:
    """One PNG for each test row and one JSON, files 0600 in a folder 0700."""
    config, final = site
    out = tmp_path / "maps"
    found = explain_site(
        config, final, "ct", out, method="hirescam", cells=6, count=10, device=CPU, log=LOG
    )
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [
        *(f"case-{n:04}.png" for n in range(1, 5)),
        "explanations.json",
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert json.loads((out / "explanations.json").read_text()) == found
    assert [case["overlay"] for case in found["cases"]] == [file.name for file in files[:4]]
    assert {case["explained"] for case in found["cases"]} == {"gaucher"}
    marked = [case for case in found["cases"] if case["label"] == "gaucher"]
    assert all(("energy" in c["scalars"]) != c["scalars"]["empty"] for c in marked)
    assert "Not a medical device" in found["notice"]


def test_nothing_names_a_patient_or_a_file(
    site: tuple[SiteConfig, FinalModel], tmp_path: Path
) -> None:
    """Rows are told by their line: no path, no identifier and no keyed hash is written."""
    config, final = site
    out = tmp_path / "maps"
    explain_site(config, final, "ct", out, method="gradcam", cells=6, count=2, device=CPU, log=LOG)
    text = (out / "explanations.json").read_text()
    assert "PATIENT" not in text
    assert "scan_" not in text
    assert not any(len(word) == 32 for word in text.replace('"', " ").split())


def test_what_is_reportable_has_means_and_counts_alone(
    site: tuple[SiteConfig, FinalModel], tmp_path: Path
) -> None:
    """No map, overlay, line or file name stands in that part."""
    config, final = site
    found = explain_site(
        config,
        final,
        "ct",
        tmp_path / "maps",
        method="gradcam",
        cells=6,
        count=9,
        device=CPU,
        log=LOG,
    )
    part = found["reportable"]
    assert set(part) == {"minimum_patients", "means", "withheld"}
    for of in part["means"].values():
        assert set(of) == {"mean", "patients", "images"}
        assert all(isinstance(value, int | float) for value in of.values())


def test_a_mean_over_too_few_patients_is_withheld() -> None:
    """The patients count, not the images; what has none of it does not count."""
    cases = [replace(CASE, patient=f"p{i % 4}") for i in range(12)]
    bare = [replace(CASE, patient=f"q{i}", localisation=None) for i in range(3)]
    found = reportable([*cases, *bare], Limits(minimum_patients=5))
    assert "energy" in found["withheld"]
    assert found["means"]["border_attention"]["patients"] == 7
    assert found["means"]["border_attention"]["images"] == 15
    assert "energy" in reportable(cases, Limits(minimum_patients=4))["means"]


def test_each_patient_counts_once_in_a_mean() -> None:
    """Three images of one patient weigh as much as one of another; counts are rounded if asked."""
    shares = {"p": 0.1, "q": 0.4}
    cases = [
        replace(CASE, patient=name, attention={"border": Share(shares[name], 0.19)})
        for name in ("p", "p", "p", "q")
    ]
    found = reportable(cases, Limits(minimum_patients=1, patients="rounded"))["means"]
    assert found["border_attention"]["mean"] == pytest.approx(0.25)
    assert found["border_attention"]["patients"] % 5 == 0


def test_rows_are_of_many_patients_and_all_classes() -> None:
    """No patient comes twice before all have come once, and classes take turns."""
    rows = [row(i, f"p{i // 3}", (i // 3) % 2) for i in range(24)]
    first = chosen_rows(rows, 8)
    assert len({one.patient for one in first}) == 8
    assert [one.label for one in chosen_rows(rows, 4)].count(0) == 2
    assert chosen_rows(list(reversed(rows)), 8) == first
    assert len(chosen_rows(rows, 100)) == 24


def test_a_mask_of_another_size_leaves_its_row_out(
    site: tuple[SiteConfig, FinalModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The site's log names line and sizes; with no row left the command is refused."""
    config, final = site
    Image.new("L", (8, 8), 255).save(config.data["ct"].manifest.parent / "mask.png")
    asked: dict[str, Any] = {"method": "gradcam", "cells": 6, "count": 9, "device": CPU, "log": LOG}
    with caplog.at_level(logging.WARNING, "test"):
        found = explain_site(config, final, "ct", tmp_path / "maps", **asked)
    assert found["left_out"] == 2
    assert "has 8 x 8 pixels, its image 36 x 40" in caplog.text
    for file in (config.data["ct"].manifest.parent / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(EmptyManifestError, match="No test row"):
        explain_site(config, final, "ct", tmp_path / "more", **asked)
    with pytest.raises(TaskWithoutSiteError):
        explain_site(config, final, "mr", tmp_path / "more", **asked)


def test_the_command_explains_an_exported_model(
    site: tuple[SiteConfig, FinalModel], tmp_path: Path, study_file: Callable[[Study], Path]
) -> None:
    """With a folder of an export it ends well; without any model it says where one comes from."""
    config, final = site
    export = write_export(final, study_file(final.study), tmp_path / "export")
    words = ["explain", str(config.state.parent), "--study", str(export / "study.toml")]
    words += ["--out", str(tmp_path / "maps"), "--count", "2", "--method", "layercam"]
    done = CliRunner().invoke(app, [*words, "--model", str(export), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"] == "layercam"
    assert (tmp_path / "maps" / "case-0002.png").is_file()
    shown = CliRunner().invoke(app, [*words, "--model", str(export)])
    assert "Not a medical device" in shown.output
    without = CliRunner().invoke(app, words)
    assert "keeps no final model" in str(without.exception)


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[[Study], Path]:
    """Return what writes a study as TOML."""

    def write(study: Study) -> Path:
        file = tmp_path / "study.toml"
        backbone = study.backbone
        file.write_text(
            f'name = "{study.name}"\nrounds = {study.rounds}\nseed = {study.seed}\n'
            f'[backbone]\nname = "{backbone.name}"\nweights = "{backbone.weights}"\n'
            f"image_size = {backbone.image_size}\n"
            "[training]\nbatch_size = 4\nhead_lr = 1e-2\nbackbone_lr = 1e-3\n"
            '[tasks.ct]\nmodality = "CT"\nclasses = ["normal", "gaucher"]\npositive = "gaucher"\n'
        )
        assert Study.load(file).digest() == study.digest()
        return file

    return write


def write_export(final: FinalModel, study: Path, folder: Path) -> Path:
    """Write what ``rarefed-server export`` does: the study file, and arrays with their notes."""
    folder.mkdir()
    (folder / "study.toml").write_bytes(study.read_bytes())
    arrays = {name: value.numpy() for name, value in final.model.state_dict().items()}
    notes = {"study_digest": final.study.digest(), "round": "3"}
    save_file(arrays, folder / "model.safetensors", {"rarefed": json.dumps(notes)})
    return folder
