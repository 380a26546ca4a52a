"""Laws of a lab that is run: it goes on where it was, and its table is that of its predictions."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn import metrics

from common.errors import FederationError, MissingFolderError, ServiceError
from common.file_lock import locked
from common.study import Study
from server.history import HISTORY
from simulations import lab_hospitals, lab_reading
from simulations.dealing import read_rows
from simulations.federation import find_hospitals
from simulations.lab_results import compare

Program = Callable[..., tuple[int, str, str]]
StudyOf = Callable[..., Study]

LAB = """
name = "small"
seeds = [1, 2]
hospitals = { folder = "hospitals" }

[study]
rounds = 2
backbone = { name = "test_resnet", weights = "none", image_size = 32 }
tasks = { spots = { modality = "other", classes = ["without", "with"], positive = "with" } }
training = { batch_size = 8, head_lr = 1e-2, backbone_lr = 3e-3 }
split = { validation = 0.2, test = 0.4 }

[rows.alone]
kind = "alone"

[rows.home]
kind = "alone_at_home"

[rows.ensemble]
kind = "ensemble"

[rows.pooled]
kind = "pooled"

[rows.FedAvg]

[rows.FedBN]
study = { "backbone.normalisation" = "local" }

[rows.diverged]
study = { "training.head_lr" = 1e30, "training.backbone_lr" = 1e30, "training.optimizer" = "sgd" }

[rows.frozen]
study = { "training.train" = "head" }

[rows.tuned]
kind = "tuned"
rounds_after = 1

[rows.vote]
kind = "vote"
of = ["Fed*"]
weights = "validation"

[rows.seeds]
kind = "vote"
of = ["FedAvg"]
across_seeds = true
"""
HEAD = LAB.split("[rows.alone]", maxsplit=1)[0]
FEDERATED = LAB[LAB.index("[rows.FedAvg]") : LAB.index("[rows.diverged]")]
FOLDER = 'hospitals = { folder = "hospitals" }'
FAILED = ("diverged", "frozen")


@pytest.fixture(scope="module")
def done(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lab that was run, with its file and hospitals; only to be read."""
    folder = tmp_path_factory.mktemp("lab")
    for number in (1, 2):
        name = f"hospital-{number}"
        shutil.copytree(template / name, folder / "hospitals" / name)
    (folder / "lab.toml").write_text(LAB, encoding="utf-8")
    compare(lab_reading.load(folder / "lab.toml"), folder / "out", threads=1)
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may spoil; what was done is known to be done in it."""
    return Path(shutil.copytree(done, tmp_path / "lab"))


def table_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "table.json").read_text())
    return content


def rows_of(folder: Path) -> dict[str, Any]:
    return {row["row"]: row for row in table_of(folder)["tasks"]["spots"]["rows"]}


def results(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of each training's result, by its folder."""
    found = (folder / "out" / "trainings").glob("*/result.json")
    return {f.parent.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in found}


def predictions(folder: Path, row: str, seed: int) -> list[dict[str, str]]:
    (found,) = (folder / "out" / "trainings").glob(f"{row}-seed{seed}-*/predictions-spots.csv")
    with found.open(encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line["split"] == "test"]


def by_patient(lines: list[dict[str, str]]) -> tuple[list[int], list[float]]:
    """Return the truth and the mean probability of each patient."""
    truth = {line["patient"]: int(line["label"] == "with") for line in lines}
    shares: dict[str, list[float]] = {patient: [] for patient in truth}
    for line in lines:
        shares[line["patient"]].append(np.exp(float(line["with"])))
    return list(truth.values()), [float(np.mean(of)) for of in shares.values()]


@pytest.mark.parametrize("row", ["FedAvg", "FedBN", "pooled", "tuned"])
def test_the_table_is_scikit_learns_of_the_predictions(done: Path, row: str) -> None:
    """Every figure of a seed follows from the table that is kept, each patient counting once."""
    for place, seed in enumerate((1, 2)):
        truth, share = by_patient(predictions(done, row.lower(), seed))
        said = [int(value > 0.5) for value in share]
        found = {n: of["values"][place] for n, of in rows_of(done)[row]["metrics"].items()}
        assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, share))
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
        recall = metrics.recall_score(truth, said)
        assert found["sensitivity"] == pytest.approx(recall)
        healthy = metrics.recall_score(truth, said, pos_label=0)
        assert found["specificity"] == pytest.approx(healthy)


def test_the_table_is_that_of_the_federation(done: Path) -> None:
    """The federation's own figures on the same test patients are those of the row."""
    for place, row in ((0, "FedAvg"), (0, "FedBN")):
        (history,) = (done / "out" / "trainings").glob(f"{row.lower()}-seed1-*/{HISTORY}")
        last = json.loads(history.read_text().splitlines()[-1])["tasks"]["spots"]["test"]
        found = {n: of["values"][place] for n, of in rows_of(done)[row]["metrics"].items()}
        pooled = last["patients"]["pooled"]
        assert found["accuracy"] == pytest.approx(pooled["accuracy"])
        assert found["auroc"] == pytest.approx(pooled["auroc"], abs=pooled["auroc_bound"] + 1e-9)
        assert table_of(done)["tasks"]["spots"]["patients"] == pooled["n_patients"]


def test_rows_of_one_training_share_it(done: Path) -> None:
    """Alone, at home and the ensemble are made of the same models; the vote trains nothing."""
    names = sorted(name.rsplit("-", 1)[0] for name in results(done))
    rows = ("alone", "fedavg", "fedbn", "pooled", "tuned")
    assert names == sorted(f"{row}-seed{seed}" for row in rows for seed in (1, 2))
    lines = predictions(done, "alone", 1)
    home = [line for line in lines if line["site"] == line["model"]]
    truth, share = by_patient(home)
    values = {row: of["metrics"]["auroc"]["values"][0] for row, of in rows_of(done).items()}
    assert values["home"] == pytest.approx(metrics.roc_auc_score(truth, share))
    assert values["ensemble"] == pytest.approx(metrics.roc_auc_score(*by_patient(lines)))
    alone = [by_patient([one for one in lines if one["model"] == m]) for m in
             ("hospital-1", "hospital-2")]  # fmt: skip
    assert values["alone"] == pytest.approx(np.mean([metrics.roc_auc_score(*m) for m in alone]))


def test_votes_average_their_members(done: Path) -> None:
    """All seeds of one row vote as one; their row has one result and no interval."""
    lines = [predictions(done, "fedavg", seed) for seed in (1, 2)]
    truth, share = by_patient([*lines[0], *lines[1]])
    row = rows_of(done)["seeds"]
    assert row["metrics"]["auroc"]["values"] == pytest.approx([metrics.roc_auc_score(truth, share)])
    assert row["metrics"]["auroc"]["low"] is None
    assert row["costs"]["trainable"] == 2 * rows_of(done)["FedAvg"]["costs"]["trainable"]
    assert len(rows_of(done)["vote"]["metrics"]["auroc"]["values"]) == 2


def test_a_row_that_fails_is_a_row_with_its_reason(done: Path) -> None:
    """It has no figures, the others have theirs, and no file of it passes for a result."""
    rows = rows_of(done)
    for name in FAILED:
        assert rows[name]["trained"] == 0
        assert rows[name]["metrics"]["auroc"]["mean"] is None
    assert "QuorumError" in rows["diverged"]["reasons"][0]
    assert "random backbone" in rows["frozen"]["reasons"][0]
    assert all(rows[name]["metrics"]["auroc"]["mean"] for name in rows.keys() - set(FAILED))
    assert not list((done / "out" / "trainings").glob("diverged-*/result.json"))


def test_every_row_but_the_best_is_tested_against_it(done: Path) -> None:
    """On all test patients; corrected values are not below the others."""
    found = table_of(done)["tasks"]["spots"]
    for row in found["rows"]:
        test = row["against_best"]
        if row["row"] == found["best"] or row["row"] in FAILED:
            assert test is None
            continue
        assert (test["method"], test["patients"]) == ("DeLong", found["patients"])
        assert test["difference"] >= 0
        assert test["p_holm"] >= test["p"]


def test_nothing_of_the_models_is_left(done: Path) -> None:
    """Neither the coordinator's model nor what the sites kept of a study fills the disk."""
    assert not list((done / "out").rglob("*.safetensors"))
    assert not list((done / "hospitals").glob("*/state/studies/*"))


def test_again_gives_the_same_table_and_trains_nothing(done: Path) -> None:
    """What is there is not done again: results keep inode and time, tables their bytes."""
    before = (
        results(done),
        *((done / "out" / f"table.{end}").read_bytes() for end in ("json", "csv", "tex")),
    )
    compare(lab_reading.load(done / "lab.toml"), done / "out", threads=1)
    after = (
        results(done),
        *((done / "out" / f"table.{end}").read_bytes() for end in ("json", "csv", "tex")),
    )
    assert before == after


def test_a_training_that_was_not_finished_is_done_again(copied: Path) -> None:
    """Without its result a training is as if it had not begun; the others stay, the table too."""
    before, table = results(copied), (copied / "out" / "table.json").read_bytes()
    (name,) = [name for name in before if name.startswith("fedavg-seed2")]
    (copied / "out" / "trainings" / name / "result.json").unlink()
    compare(lab_reading.load(copied / "lab.toml"), copied / "out", threads=1)
    after = results(copied)
    assert {key for key in before if before[key] != after[key]} == {name}
    old, new = json.loads(table), table_of(copied)
    sent = []
    for one in (old, new):  # times are never the same, nor is the length of a reply that tells one
        costs = [row.pop("costs") for row in one["tasks"]["spots"]["rows"]]
        sent.append([of["bytes_per_round"] or 0 for of in costs])
    assert new == old
    assert sent[0] == pytest.approx(sent[1], rel=1e-3)


def test_a_changed_lab_has_trainings_of_its_own(copied: Path) -> None:
    """A row with another study is trained in another folder; the other rows are not."""
    before = results(copied)
    text = f'{HEAD}[rows.renamed]\n[rows.new]\nstudy = {{ "training.loss" = "focal" }}\n'
    (copied / "lab.toml").write_text(text, encoding="utf-8")
    compare(lab_reading.load(copied / "lab.toml"), copied / "out", threads=1)
    after = results(copied)
    assert before.items() <= after.items()
    assert sorted(name[:9] for name in after.keys() - before.keys()) == ["new-seed1", "new-seed2"]
    assert list(rows_of(copied)) == ["renamed", "new"]


def test_what_cannot_be_built_is_told_and_not_trained(copied: Path) -> None:
    """A row whose network has no place for what it asks is no training that failed."""
    before = results(copied)
    ask = 'study = { "evaluation.normalisation" = "adapted", "backbone.name" = "lenet5" }\n'
    (copied / "lab.toml").write_text(f"{HEAD}[rows.FedAvg]\n[rows.none]\n{ask}", encoding="utf-8")
    said = io.StringIO()
    loaded = lab_reading.load(copied / "lab.toml")
    found = compare(loaded, copied / "out", threads=1, console=Console(file=said, width=40))
    (reason,) = found["tasks"]["spots"]["rows"][1]["reasons"]
    assert "batch normalisation" in reason
    assert said.getvalue() == f"none cannot apply: {reason}\n"
    assert results(copied) == before
    assert not list((copied / "out" / "trainings").glob("none-*"))


def test_other_hospitals_have_trainings_of_their_own(copied: Path) -> None:
    """A table of labels that changed means another digest."""
    folders = find_hospitals(copied / "hospitals")
    before = lab_hospitals.digest_of(folders)
    assert lab_hospitals.digest_of(folders) == before
    (folders[0] / "state" / "anything").write_text("x")
    assert lab_hospitals.digest_of(folders) == before
    labels = folders[0] / "spots" / "labels.csv"
    labels.write_text(labels.read_text().replace("without", "with", 1))
    assert lab_hospitals.digest_of(folders) != before


def test_two_processes_do_not_share_a_folder(copied: Path) -> None:
    """The second one is refused while the first is at work."""
    with locked(copied / "out" / ".lock"), pytest.raises(ServiceError):
        compare(lab_reading.load(copied / "lab.toml"), copied / "out", threads=1)


def test_a_lab_without_any_result_is_an_error(copied: Path) -> None:
    """Where every row fails there is no table, and the reasons are told."""
    diverged = LAB[LAB.index("[rows.diverged]") : LAB.index("[rows.frozen]")]
    (copied / "lab.toml").write_text(HEAD + diverged, encoding="utf-8")
    with pytest.raises(FederationError, match="diverged: QuorumError"):
        compare(lab_reading.load(copied / "lab.toml"), copied / "other", threads=1)
    assert not (copied / "other" / "table.json").exists()


def test_the_pages_show_every_row(done: Path) -> None:
    """CSV, LaTeX and HTML have a line for each; the page refers to nothing outside itself."""
    with (done / "out" / "table.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == list(rows_of(done))
    fedavg = next(line for line in lines if line["row"] == "FedAvg")
    assert float(fedavg["auroc"]) == rows_of(done)["FedAvg"]["metrics"]["auroc"]["mean"]
    tex, html = ((done / "out" / f"table.{end}").read_text() for end in ("tex", "html"))
    assert all(name in tex and name in html for name in rows_of(done))
    assert tex.count("\\\\") == 1 + len(lines)
    assert all(rule in tex for rule in ("\\toprule", "\\midrule", "\\bottomrule"))
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("data:image/png;base64,") == 2
    for name in ("roc-spots.png", "confusion-spots.png"):
        with Image.open(done / "out" / name) as picture:
            picture.verify()


def test_the_command_prints_the_table(rarefed_sim: Program, copied: Path) -> None:
    """For a person as tables of 80 columns with notes, for a script as JSON.

    What cannot apply is told on stderr before.
    """
    rows = FEDERATED + LAB[LAB.index("[rows.frozen]") : LAB.index("[rows.tuned]")]
    (copied / "lab.toml").write_text(HEAD + rows, encoding="utf-8")
    words = ("compare", copied / "lab.toml", "--out", copied / "out", "--threads", "1")
    code, out, err = rarefed_sim(*words)
    assert (code, len(err.splitlines())) == (0, 1)
    assert err.startswith("frozen cannot apply: training.train: ")
    assert "best" in out
    assert "frozen: training.train" in out
    code, out, _ = rarefed_sim(*words, "--json")
    assert code == 0
    assert json.loads(out) == table_of(copied)


def test_the_command_refuses_what_is_wrong(rarefed_sim: Program, tmp_path: Path) -> None:
    """Faults, and a lab that is not there, have exit codes of their own."""
    (tmp_path / "lab.toml").write_text('name = "x"\nstudy = {}\n', encoding="utf-8")
    code, _, err = rarefed_sim("compare", tmp_path / "lab.toml", "--out", tmp_path / "o")
    assert code == 10
    assert "hospitals: this key is missing" in " ".join(err.split())
    assert rarefed_sim("compare", "nothing", "--out", tmp_path / "o")[0] == 10


def test_all_missing_data_sets_are_told_before_anything_is_made(
    rarefed_sim: Program, data_sets: Path, tmp_path: Path
) -> None:
    """Each is named; no network is built, and no folder left; what is there is not named."""
    words = ("compare", "federated", "--out", tmp_path / "o")
    named = ("ct_iqoth", "mri_brain_tumour", "fundus_idrid")
    for given, remedy in (((), "give --data FOLDER"), (("--data", data_sets), "to --data.")):
        code, _, err = rarefed_sim(*words, *given)
        assert code == MissingFolderError.exit_code
        assert all(f"  - {name}: there is no " in err for name in named)
        assert remedy in err
        assert "cannot apply" not in err
    deals = "".join(
        f'[[hospitals.deal]]\ndataset = "{name}"\ntask = "spots"\n' for name in ("spots", "none")
    )
    lab = f"{HEAD.replace(FOLDER, '')}{deals}[rows.one]\n"
    (tmp_path / "lab.toml").write_text(lab, encoding="utf-8")
    err = rarefed_sim("compare", tmp_path / "lab.toml", *words[2:], "--data", data_sets)[2]
    assert err.count("there is no") == 1
    assert f"  - none: there is no {data_sets / 'none' / 'labels.csv'}" in err
    (tmp_path / "lab.toml").write_text(f"{HEAD}[rows.one]\n", encoding="utf-8")
    code, _, err = rarefed_sim("compare", tmp_path / "lab.toml", *words[2:])
    assert code == MissingFolderError.exit_code
    assert f"There is no hospital in {tmp_path / 'hospitals'}" in err
    assert not (tmp_path / "o").exists()


def test_take_deals_so_many_of_each_label(data_sets: Path) -> None:
    """Never more than asked for, patients whole, the same each time; other labels left out."""
    rows = read_rows(data_sets / "spots", label="label")
    found = lab_hospitals.taken(rows, {"with": 9, "without": 5}, 3)
    assert found == lab_hospitals.taken(rows, {"with": 9, "without": 5}, 3)
    counts = {label: sum(row.label == label for row in found) for label in ("with", "without")}
    assert counts["with"] in (8, 9)
    assert counts["without"] in (4, 5)
    taken = {row.patient for row in found}
    assert [row for row in rows if row.patient in taken] == found
    assert not lab_hospitals.taken(rows, {"nothing": 9}, 3)


def test_a_recipe_is_dealt_once(data_sets: Path, tmp_path: Path) -> None:
    """Hospitals of a recipe are made in a folder of their own and found again."""
    file = tmp_path / "lab.toml"
    deal = 'dataset = "spots"\ntask = "spots"\nsites = 2\nskew = "iid"\n'
    head = HEAD.replace(FOLDER, "")
    text = f"{head}[[hospitals.deal]]\n{deal}take = {{ with = 16, without = 16 }}\n[rows.one]\n"
    file.write_text(text, encoding="utf-8")
    loaded = lab_reading.load(file, data=data_sets)
    out = tmp_path / "out"
    out.mkdir()
    folders = lab_hospitals.hospitals_of(loaded, out)
    stamps = [folder.stat().st_mtime_ns for folder in folders]
    assert [folder.name for folder in folders] == ["hospital-1", "hospital-2"]
    assert lab_hospitals.hospitals_of(loaded, out) == folders
    assert [folder.stat().st_mtime_ns for folder in folders] == stamps
    rows = [row for f in folders for row in read_rows(f / "spots", label="label")]
    assert 28 <= len(rows) <= 32
    assert [path.name for path in out.iterdir()] == [folders[0].parent.name]


def words_of(lab: str, hospitals: Path, folder: Path) -> list[str | Path]:
    """Return the words that run a lab in a folder, at copies of two hospitals."""
    for number in (1, 2):
        name = f"hospital-{number}"
        shutil.copytree(hospitals / name, folder / "hospitals" / name)
    (folder / "lab.toml").write_text(lab, encoding="utf-8")
    return ["compare", folder / "lab.toml", "--out", folder / "out", "--threads", "1"]


def test_a_lab_that_is_interrupted_says_that_it_goes_on(
    rarefed_sim: Program, template: Path, tmp_path: Path
) -> None:
    """Ctrl-C ends with the code of an interruption, and a sentence on stderr."""
    head = HEAD.replace("rounds = 2", "rounds = 1000").replace("seeds = [1, 2]", "seeds = [1]")
    words = words_of(f"{head}[rows.FedAvg]\n", template, tmp_path)
    main, over = threading.get_ident(), threading.Event()

    def press() -> None:
        while not over.wait(0.02):
            if list(tmp_path.glob("out/trainings/*")):
                signal.pthread_kill(main, signal.SIGINT)
                return

    presser = threading.Thread(target=press)
    # Where the tests run in the background SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presser.start()
    try:
        code, _, err = rarefed_sim(*words)
    finally:
        over.set()
        presser.join()
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert err.splitlines()[-1] == "Stopped; the same command goes on from here."
    assert not results(tmp_path)


@pytest.mark.slow
def test_a_lab_that_is_killed_goes_on(rarefed_sim: Program, done: Path, tmp_path: Path) -> None:
    """Killed in the middle, started again: finished trainings stay, and the table is the same."""
    words = words_of(HEAD + FEDERATED, done / "hospitals", tmp_path)
    script = Path(sys.executable).with_name("rarefed-sim")
    process = subprocess.Popen([script, *words], start_new_session=True)
    while not results(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = results(tmp_path)
    assert len(before) < 4
    assert rarefed_sim(*words)[0] == 0
    assert len(results(tmp_path)) == 4
    assert before.items() <= results(tmp_path).items()
    wanted, found = rows_of(done), rows_of(tmp_path)
    assert list(found) == ["FedAvg", "FedBN"]
    assert all(row["metrics"] == wanted[name]["metrics"] for name, row in found.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["federated", "rare-disease", "small-sample", "strategies", "transfer-gain"]
)
def test_named_labs_have_a_quick_form_that_ends(
    rarefed_sim: Program, name: str, tmp_path: Path
) -> None:
    """Each row of it comes to figures."""
    code, out, _ = rarefed_sim("compare", name, "--quick", "--out", tmp_path / "o", "--json")
    assert code == 0
    for found in json.loads(out)["tasks"].values():
        assert [row["row"] for row in found["rows"] if row["reasons"]] == []
