"""Laws of what ``rarefed-sim run`` says when something is wrong, each with its exit code."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from simulations.run import read_summary

Program = Callable[..., tuple[int, str, str]]


class Case:
    """Hospitals and a study that a test may spoil, and a way to run them."""

    def __init__(self, program: Program, hospitals: Path, study: str, folder: Path) -> None:
        self.program, self.hospitals, self.study, self.folder = program, hospitals, study, folder
        self.manifest = hospitals / "hospital-1" / "spots" / "labels.csv"
        self.images = sorted((hospitals / "hospital-1" / "spots" / "images").iterdir())
        self.out = folder / "run"

    def replace(self, old: str, new: str) -> None:
        """Put other words into the study file."""
        assert old in self.study
        self.study = self.study.replace(old, new)

    def run(self) -> tuple[int, str]:
        """Run the study; return the exit code and what stands on stderr, as one line."""
        file = self.folder / "study.toml"
        file.write_text(self.study)
        words = ("--hospitals", self.hospitals, "--out", self.out, "--threads", "1", "--json")
        code, out, err = self.program("run", file, *words)
        assert (out == "") == (code != 0)
        return code, " ".join(err.split())

    def fails(self, code: int, *words: str) -> None:
        """Hold the run to an exit code, to words on stderr, and to leaving no result behind."""
        found, err = self.run()
        assert found == code, err
        assert "Remedy:" in err
        assert "Traceback" not in err
        assert [word for word in words if word.replace(" ", "") not in err.replace(" ", "")] == []
        assert not (self.out / "summary.json").exists()
        assert not (self.out / "history.jsonl").exists()


@pytest.fixture
def case(rarefed_sim: Program, small: Path, study_text: str, tmp_path: Path) -> Case:
    """The small hospitals and their study, as yet unspoilt."""
    return Case(rarefed_sim, small, study_text, tmp_path)


def test_no_folder_of_hospitals(case: Case) -> None:
    """A missing folder is 21, and the message names it."""
    case.hospitals = case.folder / "nowhere"
    case.fails(21, str(case.folder / "nowhere"), "rarefed-sim make")


def test_no_manifest(case: Case) -> None:
    """A missing manifest is 21, and the message names it."""
    case.manifest.unlink()
    case.fails(21, str(case.manifest), "site.toml")


def test_an_empty_manifest(case: Case) -> None:
    """A manifest with a header alone is 22."""
    case.manifest.write_text("path,label,patient_id\n")
    case.fails(22, "no rows", "spots")


def test_a_manifest_without_its_columns(case: Case) -> None:
    """A manifest whose columns are missing is 23, and all of them are listed."""
    case.manifest.write_text("image,label\na.png,with\n")
    case.fails(23, "no column 'path'", "no column 'patient_id'")


def test_a_label_outside_the_task(case: Case) -> None:
    """Labels that the task does not know are 24; every line is listed, and the classes."""
    lines = case.manifest.read_text().splitlines()
    for number in (3, 5):
        lines[number] = lines[number].replace("with", "perhaps")
    case.manifest.write_text("\n".join(lines))
    case.fails(24, "line 4, label", "line 6, label", "perhaps", "without, with")


def test_a_patient_in_two_splits(case: Case) -> None:
    """A split column that divides a patient is 25, and names both lines."""
    names = [path.name for path in case.images[:2]]
    rows = [f"images/{name},with,one,{s}" for name, s in zip(names, ("train", "test"), strict=True)]
    case.manifest.write_text("\n".join(["path,label,patient_id,split", *rows]))
    case.fails(25, "train in line 2", "test in line 3")


def test_files_that_are_no_images(case: Case) -> None:
    """More unreadable files than the site tolerates are 26, and all of them are listed."""
    count = len(case.images) // 2
    for path in case.images[:count]:
        path.unlink()  # a link to the data set: writing would spoil the others' images
        path.write_text("this is text")
    case.fails(26, f"{count} of", *(path.name for path in case.images[:count]))


def test_a_missing_file_is_an_unreadable_image(case: Case) -> None:
    """Files that the manifest names and the folder lacks are 26 too."""
    for path in case.images:
        path.unlink()
    case.fails(26, "no such file")


def test_a_few_unreadable_images_are_counted_and_named_at_home_alone(case: Case) -> None:
    """The site goes on with the rest; only its own log says which files were left out."""
    spoilt = case.images[:2]
    spoilt[0].unlink()
    spoilt[1].unlink()
    spoilt[1].write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    file = case.hospitals / "hospital-1" / "site.toml"
    file.write_text(file.read_text() + "max_unreadable = 0.5\n")
    code, err = case.run()
    assert code == 0
    summary = read_summary(case.out)
    assert summary["unreadable"]["hospital-1"] == {"spots": 2}
    assert sum(sum(found.values()) for found in summary["unreadable"].values()) == 2
    log = (case.hospitals / "hospital-1" / "state" / "site.log").read_text()
    told = json.dumps(summary) + (case.out / "history.jsonl").read_text() + err
    for path in spoilt:
        assert path.name in log
        assert path.stem not in told
    assert (case.hospitals / "hospital-2" / "state" / "site.log").read_text() == ""


def test_an_unknown_backbone(case: Case) -> None:
    """A backbone that timm does not know is 11, and near names are offered."""
    case.replace("test_resnet", "test_resnett")
    case.fails(11, "test_resnett", "Did you mean", "test_resnet")


def test_no_weights_file(case: Case) -> None:
    """A missing weights file is 21; a relative path counts from the study file."""
    case.replace('weights = "none"', 'weights = "nothing.safetensors"')
    case.fails(21, str(case.folder / "nothing.safetensors"))


def test_wrong_weights(case: Case) -> None:
    """Weights of another network are 12, and what is missing or misshapen is listed."""
    save_file({"conv1.weight": np.zeros((2, 2), np.float32)}, case.folder / "w.safetensors")
    case.replace('weights = "none"', 'weights = "w.safetensors"')
    case.fails(12, "is missing", "does not fit")


def test_a_weights_file_that_is_none(case: Case) -> None:
    """A file that safetensors cannot read is 12."""
    (case.folder / "w.safetensors").write_bytes(b"PK an archive")
    case.replace('weights = "none"', 'weights = "w.safetensors"')
    case.fails(12, "no safetensors file")


def test_another_digest_than_the_study_gives(case: Case, weights: Path) -> None:
    """A weights file with another SHA-256 than the study's is 10."""
    case.replace('weights = "none"', f'weights = "{weights}"\nsha256 = "{"0" * 64}"')
    case.fails(10, "backbone.sha256")


def test_a_task_nobody_has(case: Case) -> None:
    """A task without a site is 31, and the message names it."""
    case.replace("[tasks.rings]", "[tasks.moons]")
    case.fails(31, "moons")


def test_fewer_hospitals_than_the_quorum(case: Case) -> None:
    """Too few sites are 32, with both numbers."""
    case.replace("quorum = 1", "quorum = 5")
    case.fails(32, "4 hospitals", "quorum is 5")


def test_a_study_that_is_no_toml(case: Case) -> None:
    """Broken TOML is 10, and the message says where."""
    case.study += "\nrounds = = 3\n"
    case.fails(10, "no TOML file", "line")


def test_no_study_file(case: Case) -> None:
    """A missing study file is 10."""
    words = ("--hospitals", case.hospitals, "--out", case.out)
    code, _, err = case.program("run", case.folder / "nothing.toml", *words)
    assert code == 10
    assert "Remedy:" in err


def test_unknown_keys_are_listed_all_at_once(case: Case) -> None:
    """Every unknown key and wrong value stands in one message, each with its remedy."""
    case.replace("rounds = 2", "rounds = 0\nround = 3")
    case.replace("image_size = 32", "image_sise = 32")
    case.replace("batch_size = 8", 'batch_size = "eight"')
    case.replace("quorum = 1", 'quorum = 1\nstrategy = "fedavgg"')
    case.fails(
        10, "5 faults", "round: no such key", "rounds:", "backbone.image_sise: no such key",
        "did you mean 'image_size'?", "training.batch_size", "did you mean 'fedavg'?",
    )  # fmt: skip


def test_a_broken_site_file(case: Case) -> None:
    """Faults of a site.toml are 20, and the message names the file."""
    file = case.hospitals / "hospital-2" / "site.toml"
    file.write_text(file.read_text() + 'max_unreadible = "all"\n')
    case.fails(20, str(file), "max_unreadible")


def test_two_hospitals_of_one_name(case: Case) -> None:
    """Two sites that bear one name are 30, and the message names it."""
    file = case.hospitals / "hospital-2" / "site.toml"
    file.write_text(file.read_text().replace('"hospital-2"', '"hospital-1"'))
    case.fails(30, "hospital-1")
