"""Laws of the network that a site trains further by itself, and of the command that does it."""

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

from client.alone import train_alone
from client.cli import app
from client.config import SiteConfig
from client.dataset import TaskData
from client.evaluate import logits_of
from client.final_model import final_model, tuned_model
from client.local_figures import patient_cases
from client.personal import choice_score
from client.predict import joined
from client.site import Site
from client.store import FINAL, PERSONAL, SiteStore
from common.arrays import digest
from common.errors import FederationError
from common.messages import Kind, Order
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import take
from server.studies import toml_text

RUN = CliRunner()
CPU = torch.device("cpu")
PATIENTS = (*("train",) * 12, *("validation",) * 6, *("test",) * 10)
MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]


def finished(config: SiteConfig, study: Study, make_order: MakeOrder) -> Site:
    """Let a study end at a site with the network that it began with."""
    site = Site(config)
    kinds: tuple[tuple[Kind, int], ...] = (("train", 1), ("evaluate", 2))
    for kind, number in kinds:
        assert site.answer(make_order(study, kind, number=number)).reply.refusal == ""
    return site


def file_of_study(folder: Path, study: Study) -> str:
    path = folder / "study.toml"
    path.write_text(toml_text(study))
    return str(path)


def ran(command: str, folder: Path, *options: str) -> dict[str, Any]:
    result = RUN.invoke(app, [command, str(folder), *options, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def kept_file(config: SiteConfig, study: Study, name: str) -> Path:
    return config.state / "studies" / study.digest()[:16] / name


def turned(config: SiteConfig, split: str) -> None:
    """Exchange the two classes of a split's patients, so that training misleads about them."""
    table = config.data["ct"].manifest
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    other = {"normal": "gaucher", "gaucher": "normal"}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            mirrored = {"label": other[row["label"]]} if row["split"] == split else {}
            writer.writerow(row | mirrored)


def scores(model: FederatedModel, data: TaskData, study: Study) -> tuple[float, float]:
    """Return AUROC and loss on validation patients, by scikit-learn."""
    images = data.splits["validation"]
    cases = patient_cases(logits_of(model, images, "ct", device=CPU), images, study.tasks["ct"])
    p = np.exp(cases.logits - np.logaddexp.reduce(cases.logits, axis=1, keepdims=True))
    return float(roc_auc_score(cases.labels, p[:, 1])), float(log_loss(cases.labels, p))


@pytest.mark.parametrize("score", ["auroc", "loss"])
def test_the_better_one_is_kept(
    score: str,
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
    tmp_path: Path,
) -> None:
    """It is the final network trained alone for so many rounds; both scores are scikit-learn's."""
    study, config = make_study(federation={"score": score}), make_hospital(splits=PATIENTS)
    site = finished(config, study, make_order)
    before = kept_file(config, study, FINAL).read_bytes()
    found = ran(
        "personalise", config.state.parent, "--study", file_of_study(tmp_path, study),
        "--rounds", "4",
    )  # fmt: skip
    assert kept_file(config, study, FINAL).read_bytes() == before
    choice = found["tasks"]["ct"]
    assert choice["kept"]
    assert any("6 validation patients" in note for note in found["notes"])

    data = site.prepare(study).tasks["ct"]
    final = final_model(config, study, device=CPU).model
    place = ("auroc", "loss").index(score)
    assert choice["score"]["final"] == pytest.approx(scores(final, data, study)[place])
    longer = study.model_copy(update={"rounds": 4})
    images = {"ct": data.splits["train"]}
    by_hand = train_alone(final, images, longer, site="site-a", device=CPU)
    assert choice["score"]["tuned"] == pytest.approx(scores(by_hand, data, study)[place])

    own = tuned_model(config, study, device=CPU)
    assert own.sha256 == found["sha256"] == digest(take(by_hand, by_hand.state_dict()))
    assert (own.model_round, own.tasks) == (1 + 4, ("ct",))
    assert stat.S_IMODE(kept_file(config, study, PERSONAL).stat().st_mode) == 0o600


def test_the_study_says_how_many_rounds(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """As many as its key, unless the hospital says another number; without a key they are five."""
    config = make_hospital(splits=("train", "train", "validation", "train", "test", "test"))
    for key, options, rounds in (
        ({"tuned_rounds": 2}, (), 2),
        ({"tuned_rounds": 2}, ("--rounds", "1"), 1),
        ({}, (), 5),
    ):
        study = make_study(evaluation=key)
        finished(config, study, make_order)
        words = ("--study", file_of_study(tmp_path, study), *options)
        assert ran("personalise", config.state.parent, *words)["rounds"] == rounds


def test_the_worse_one_is_not_kept(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """Where it loses on validation patients, one that was kept before goes too."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    turned(config, "validation")
    finished(config, study, make_order)
    model = build_model(study)
    arrays = take(model, model.state_dict())
    SiteStore(config.state, study.digest()).save_network(
        PERSONAL, arrays, model_round=9, tasks=["ct"]
    )
    options = ("--study", file_of_study(tmp_path, study))
    found = ran("personalise", config.state.parent, *options, "--rounds", "4")
    choice = found["tasks"]["ct"]
    assert choice["score"]["tuned"] < choice["score"]["final"]
    assert (choice["kept"], found["sha256"]) == (False, None)
    assert not kept_file(config, study, PERSONAL).exists()
    with pytest.raises(FederationError, match="no network of its own") as refusal:
        tuned_model(config, study, device=CPU)
    assert "personalise" in refusal.value.remedy
    for words in (["evaluate", str(config.state.parent), *options],
                  ["predict", str(config.state.parent), options[1], "scan.png"]):  # fmt: skip
        result = RUN.invoke(app, [*words, "--personal"])
        assert isinstance(result.exception, FederationError)


def test_without_validation_patients_nothing_is_kept(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """There is nothing to choose by, and the command says so to people too."""
    study = make_study()
    config = make_hospital(splits=(*("train",) * 4, *("test",) * 4))
    finished(config, study, make_order)
    words = ["personalise", str(config.state.parent), "--study", file_of_study(tmp_path, study)]
    result = RUN.invoke(app, [*words, "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert "not kept, as there are no validation patients" in result.stdout
    assert "Not a medical device" in result.stdout


def test_one_class_is_compared_by_the_loss(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Validation patients of one class leave AUROC undefined; a tie is no gain."""
    study = make_study()
    config = make_hospital(splits=("train", "train", "validation", "train", "test", "test"))
    site = finished(config, study, make_order)
    model = final_model(config, study, device=CPU).model
    data = site.prepare(study).tasks["ct"]
    score = choice_score(study, (model, model), "ct", data, device=CPU)
    assert (score.metric, score.patients, score.better) == ("loss", 1, False)
    assert score._replace(tuned=0.1, final=0.2).better
    assert not score._replace(metric="auroc", tuned=0.1, final=0.2).better


def test_it_is_measured_and_asked_on_demand(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """With --personal figures and predictions are its own, and leave the final network's alone."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    site = finished(config, study, make_order)
    folder, options = config.state.parent, ("--study", file_of_study(tmp_path, study))
    made = ran("personalise", folder, *options, "--rounds", "4")
    plain, own = ran("evaluate", folder, *options), ran("evaluate", folder, *options, "--personal")
    assert (plain["model"], own["model"]) == ("global", "fine-tuned")
    assert plain["file"] != own["file"]
    assert own["sha256"] == made["sha256"] != plain["sha256"]
    assert own["benefit"]["ct"] == made["tasks"]["ct"]["test"]
    assert set(own["benefit"]["ct"]["differences"]) == {"fine-tuned - global"}

    scan = config.data["ct"].manifest.parent / "images" / "scan_25_0.png"
    images = site.prepare(study).tasks["ct"].splits["test"]
    (place,) = [i for i, origin in enumerate(images.origins) if origin.row.path == scan]
    for flags, final in (
        ((), final_model(config, study, device=CPU)),
        (("--personal",), tuned_model(config, study, device=CPU)),
    ):
        result = RUN.invoke(app, ["predict", str(folder), options[1], str(scan), *flags, "--json"])
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert said["model_sha256"] == final.sha256
        assert said["rule"] == "youden"
        logits = logits_of(final.model, images, "ct", device=CPU)[place : place + 1]
        chance = joined(logits, study.tasks["ct"], said["temperature"])[1]
        assert said["predictions"][0]["probabilities"]["gaucher"] == pytest.approx(chance, abs=1e-4)


def test_an_export_is_not_the_sites_own(make_hospital: MakeHospital, tmp_path: Path) -> None:
    """--personal with an exported folder is refused before anything is read."""
    config = make_hospital()
    for words in (["evaluate", str(config.state.parent), "--study", "s.toml", "--model", "out"],
                  ["predict", str(config.state.parent), str(tmp_path), "scan.png"]):  # fmt: skip
        result = RUN.invoke(app, [*words, "--personal"])
        assert result.exit_code == 2
        assert "export" in result.output


def test_phases_are_over(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """A study that began with its head alone is tuned as it ended: the backbone moves too."""
    study = make_study(training={"phases": [{"rounds": 2, "train": "head"}]})
    config = make_hospital(splits=PATIENTS)
    finished(config, study, make_order)
    before = final_model(config, study, device=CPU).model.state_dict()
    study_file = file_of_study(tmp_path, study)
    found = ran("personalise", config.state.parent, "--study", study_file, "--rounds", "4")
    assert found["tasks"]["ct"]["kept"]
    tuned = tuned_model(config, study, device=CPU).model
    moved = [name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("backbone.") for name in moved)


@pytest.mark.parametrize(
    "federation",
    [{"average_last": 2}, {"keep": "best", "score": "loss", "early_stopping": {"patience": 1}}],
    ids=["average", "best"],
)
def test_what_ends_a_study_ends_no_tuning(
    federation: dict[str, Any],
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
    tmp_path: Path,
) -> None:
    """All rounds that are asked for are made, and the last one's network is compared."""
    study, config = make_study(rounds=8, federation=federation), make_hospital(splits=PATIENTS)
    site = finished(config, study, make_order)
    options = ("--study", file_of_study(tmp_path, study), "--rounds", "3")
    found = ran("personalise", config.state.parent, *options)
    data = site.prepare(study).tasks["ct"]
    plain = make_study().model_copy(update={"rounds": 3})
    final = final_model(config, study, device=CPU).model
    by_hand = train_alone(final, {"ct": data.splits["train"]}, plain, site="site-a", device=CPU)
    place = ("auroc", "loss").index(study.federation.score)
    expected = scores(by_hand, data, study)[place]
    assert found["tasks"]["ct"]["score"]["tuned"] == pytest.approx(expected, abs=1e-9)


def test_it_does_not_outlive_the_final_network(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """Once the site keeps another final network it is refused, until it is made anew."""
    study, config = make_study(), make_hospital(splits=PATIENTS)
    site = finished(config, study, make_order)
    options = ("--study", file_of_study(tmp_path, study), "--rounds", "4")
    made = ran("personalise", config.state.parent, *options)
    again = make_order(study, "evaluate", number=3)
    assert site.answer(again).reply.refusal == ""  # the same arrays: nothing was told anew
    assert tuned_model(config, study, device=CPU).sha256 == made["sha256"]
    moved = {group: {n: v + 1 for n, v in of.items()} for group, of in again.groups.items()}
    assert site.answer(again._replace(groups=moved, round=4)).reply.refusal == ""
    with pytest.raises(FederationError, match="another final network") as refusal:
        tuned_model(config, study, device=CPU)
    assert "rarefed-client personalise" in refusal.value.remedy
    for words in (["evaluate", str(config.state.parent), *options[:2]],
                  ["predict", str(config.state.parent), options[1], "scan.png"]):  # fmt: skip
        result = RUN.invoke(app, [*words, "--personal"])
        assert isinstance(result.exception, FederationError)
    kept_file(config, study, FINAL).unlink()
    with pytest.raises(FederationError, match="another final network"):
        tuned_model(config, study, device=CPU)
