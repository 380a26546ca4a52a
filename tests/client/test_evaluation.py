"""Laws of the command that measures a study's network on the hospital's own patients."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from client.alone import train_alone
from client.cli import app
from client.config import SiteConfig
from client.evaluate import logits_of
from client.final_model import final_model, first_model
from client.site import Site
from common.arrays import Arrays, digest
from common.errors import (
    FederationError,
    MissingFolderError,
    StudyMismatchError,
    TaskWithoutSiteError,
)
from common.messages import Kind, Order
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import put, take
from server.checkpoint import save_round
from server.studies import toml_text

RUN = CliRunner()
CPU = torch.device("cpu")
PATIENTS = (*("train",) * 8, *("validation",) * 4, *("test",) * 10)
MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]


def played(config: SiteConfig, study: Study, make_order: MakeOrder) -> Site:
    """Play one round and the last exchange at one site, whose change is taken as it is."""
    site = Site(config)
    first = make_order(study, "train")
    reply = site.answer(first).reply
    model = build_model(study)
    for group, arrays in first.groups.items():
        changed: Arrays = {n: arrays[n] + reply.groups[group][n] for n in arrays}
        put(model, changed)
    kind: Kind = "evaluate"
    assert site.answer(make_order(study, kind, number=2, model=model)).reply.metrics
    return site


def file_of_study(folder: Path, study: Study) -> str:
    path = folder / "study.toml"
    path.write_text(toml_text(study))
    return str(path)


def asked(folder: Path, *options: str) -> dict[str, Any]:
    result = RUN.invoke(app, ["evaluate", str(folder), *options, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_kept_model_is_measured(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """Figures are of the test patients and the kept network; the file is the owner's alone."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    site = played(config, study, make_order)
    found = asked(config.state.parent, "--study", file_of_study(tmp_path, study))
    file = Path(found["file"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = json.loads(file.read_text())
    assert len(kept["tasks"]["ct"]["cases"]) == 20
    assert "cases" not in found["tasks"]["ct"]
    assert (found["model"], found["model_round"]) == ("global", 1)
    assert "Not a medical device" in found["disclaimer"]
    images = site.prepare(study).tasks["ct"].splits["test"]
    model = final_model(config, study, device=CPU).model
    right = logits_of(model, images, "ct", device=CPU).argmax(axis=1) == images.labels.numpy()
    assert found["tasks"]["ct"]["of_images"]["metrics"]["accuracy"]["value"] == right.mean()
    assert found["tasks"]["ct"]["of_patients"]["patients"] == 10
    assert found["benefit"] == {}


def test_the_table_is_for_people(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """Without --json a table names figures, intervals and the file, and what this is not."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    table = config.data["ct"].manifest
    first, *rows = table.read_text().splitlines()
    sexes = (f"{row},{'F' if int(row.split('-')[-1].split(',')[0]) < 20 else 'M'}" for row in rows)
    table.write_text("\n".join([f"{first},sex", *sexes]) + "\n")
    site_file = config.state.parent / "site.toml"
    site_file.write_text(
        site_file.read_text().replace("minimum_patients = 1", "minimum_patients = 3")
    )
    played(config, study, make_order)
    options = ["--study", file_of_study(tmp_path, study), "--alone"]
    result = RUN.invoke(app, ["evaluate", str(config.state.parent), *options])
    assert result.exit_code == 0, result.output
    for word in (
        "AUROC",
        "Not a medical device",
        "what taking part gained",
        "by sex",
        "suppressed",
    ):
        assert word in result.stdout


def test_alone_repeats_what_the_site_did(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A study of one site and one round, played, is that site's training alone, to the bit."""
    study, config = make_study().model_copy(update={"rounds": 1}), make_hospital()
    site = Site(config)
    order = make_order(study, "train")
    reply = site.answer(order).reply
    images = {"ct": site.prepare(study).tasks["ct"].splits["train"]}
    model = first_model(config, study, device=CPU).model
    rounds: list[int] = []
    alone = train_alone(model, images, study, site="site-a", device=CPU, progress=rounds.append)
    for group, arrays in order.groups.items():
        expected = {name: arrays[name] + reply.groups[group][name] for name in arrays}
        found = take(alone, arrays)
        assert all(np.allclose(found[n], expected[n], atol=1e-6) for n in arrays)
    assert rounds == [1]
    assert not alone.training


def test_models_are_compared_in_pairs(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """With local arrays and --alone three models and three paired differences stand there."""
    study = make_study(backbone={"normalisation": "local"})
    config = make_hospital(splits=PATIENTS)
    played(config, study, make_order)
    found = asked(config.state.parent, "--study", file_of_study(tmp_path, study), "--alone")
    benefit = found["benefit"]["ct"]
    assert found["model"] == "personal"
    assert set(benefit["metrics"]) == {"personal", "global", "alone"}
    assert set(benefit["differences"]) == {
        "global - alone", "personal - alone", "personal - global",
    }  # fmt: skip
    values = {name: of["accuracy"]["value"] for name, of in benefit["metrics"].items()}
    for pair, difference in benefit["differences"].items():
        one, other = pair.split(" - ")
        assert difference["accuracy"]["value"] == pytest.approx(values[one] - values[other])
    own = found["tasks"]["ct"]["of_patients"]["metrics"]["accuracy"]["value"]
    assert values["personal"] == own


def test_personal_heads_leave_one_network_to_compare(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """What the sites share has no heads of use, so that the site's own stands beside alone."""
    study = make_study(federation={"personal": "head"})
    config = make_hospital(splits=PATIENTS)
    played(config, study, make_order)
    found = asked(config.state.parent, "--study", file_of_study(tmp_path, study), "--alone")
    assert found["model"] == "personal"
    assert set(found["benefit"]["ct"]["differences"]) == {"personal - alone"}


def test_adapted_figures_are_of_whole_splits(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """The figures are those of the exchange, and say so; single images are not judged by them."""
    study = make_study(evaluation={"normalisation": "adapted"})
    config = make_hospital(splits=PATIENTS)
    site, file = played(config, study, make_order), file_of_study(tmp_path, study)
    found = asked(config.state.parent, "--study", file)
    images = site.prepare(study).tasks["ct"].splits["test"]
    model = final_model(config, study, device=CPU).model
    logits = logits_of(model, images, "ct", device=CPU, adapted=True)
    right = logits.argmax(axis=1) == images.labels.numpy()
    assert found["tasks"]["ct"]["of_images"]["metrics"]["accuracy"]["value"] == right.mean()
    assert any("those beside it" in note for note in found["tasks"]["ct"]["notes"])
    scan = config.data["ct"].manifest.parent / "images" / "scan_21_0.png"
    words = ["predict", str(config.state.parent), file, str(scan)]
    said = json.loads(RUN.invoke(app, [*words, "--json"]).stdout)
    assert (said["temperature"], said["rule"]) == (None, "")
    assert "stored statistics" in " ".join(RUN.invoke(app, words).stdout.split())


def exported(folder: Path, study: Study, model: FederatedModel) -> str:
    folder.mkdir()
    save_round(folder, take(model, model.state_dict()), {}, study, 3)
    file_of_study(folder, study)
    return str(folder)


def test_an_export_can_be_measured_instead(
    make_study: MakeStudy, make_hospital: MakeHospital, tmp_path: Path
) -> None:
    """A site that keeps nothing of the study measures the coordinator's model."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    model = build_model(study)
    folder = exported(tmp_path / "export", study, model)
    found = asked(
        config.state.parent, "--study", str(tmp_path / "export/study.toml"), "--model", folder
    )
    assert found["model_round"] == 3
    assert found["sha256"] == digest(take(model, model.state_dict()))


def test_what_cannot_be_measured_is_refused(
    make_study: MakeStudy, make_hospital: MakeHospital, tmp_path: Path
) -> None:
    """No kept model, no beginning, another study's model, no folder and no task are coded."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    folder, file = str(config.state.parent), file_of_study(tmp_path, study)

    def refused(*options: str) -> type[BaseException | None]:
        return type(RUN.invoke(app, ["evaluate", folder, "--study", *options]).exception)

    assert refused(file) is FederationError
    both = make_study(("ct", "mr"))
    other = exported(tmp_path / "other", both, build_model(both))
    assert refused(file, "--model", other) is StudyMismatchError
    assert refused(file, "--model", str(tmp_path / "nothing")) is MissingFolderError
    export = exported(tmp_path / "export", study, build_model(study))
    assert refused(file, "--model", export, "--alone") is FederationError
    (tmp_path / "mr").mkdir()
    assert refused(file_of_study(tmp_path / "mr", make_study(("mr",)))) is TaskWithoutSiteError
