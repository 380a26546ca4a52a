"""Laws of tables that serve several tasks, and of those that know no patients."""

import hashlib
import hmac
from pathlib import Path

import pytest

from client.config import SiteConfig
from client.manifest import manifest_of, read_manifest
from common.errors import EmptyManifestError, LabelError, ManifestError

KEY = bytes(range(32))
CLASSES = ("normal", "diseased")


def by_hand(identifier: str) -> str:
    return hmac.new(KEY, b"patient\0" + identifier.encode(), hashlib.sha256).hexdigest()[:32]


def test_one_table_serves_several_tasks(tmp_path: Path) -> None:
    """Each task has its own column of labels; rows without one of its labels are left out."""
    table = "path,dr,dme,patient_id\n1,normal,,P1\n2,,diseased,P2\n3,diseased,normal,P3\n"
    (tmp_path / "labels.csv").write_text(table)
    text = 'name = "a"\n[data.t]\nmanifest = "labels.csv"\nlabel = "dr"\n'
    text += '[data.u]\nmanifest = "./labels.csv"\nlabel = "dme"\n'
    (tmp_path / "site.toml").write_text(text)
    config = SiteConfig.load(tmp_path)
    for task, expected in (("t", [(2, 0), (4, 1)]), ("u", [(3, 1), (4, 0)])):
        found = manifest_of(config, task, CLASSES)
        assert [(row.line, row.label) for row in found.rows] == expected
        assert found.unlabelled == 1
    with pytest.raises(LabelError, match="line 2, dr: 'normal'"):
        manifest_of(config, "t", ("none", "diseased"))


@pytest.mark.parametrize("shared_by_two", [False, True])
def test_an_empty_label_is_a_fault_of_a_table_of_one_task(
    tmp_path: Path, *, shared_by_two: bool
) -> None:
    """The column ``label`` must be filled, unless two tasks of the site use the table."""
    (tmp_path / "labels.csv").write_text("path,label,patient_id\n1,normal,P1\n2,,P2\n")
    text = 'name = "a"\n[data.t]\nmanifest = "labels.csv"\n'
    text += '[data.u]\nmanifest = "labels.csv"\n' if shared_by_two else ""
    (tmp_path / "site.toml").write_text(text)
    config = SiteConfig.load(tmp_path)
    if shared_by_two:
        assert manifest_of(config, "t", CLASSES).unlabelled == 1
    else:
        with pytest.raises(LabelError, match="line 3, label: ''"):
            manifest_of(config, "t", CLASSES)


def test_a_table_without_a_label_of_the_task_is_empty(tmp_path: Path) -> None:
    """Where every row is left out, that is said of the column."""
    (tmp_path / "labels.csv").write_text("path,dr,patient_id\n1,,P1\n")
    with pytest.raises(EmptyManifestError, match="no row with a 'dr'"):
        read_manifest(
            tmp_path / "labels.csv", task="t", classes=CLASSES, key=KEY, label="dr", sparse=True
        )


def test_each_image_may_be_its_own_patient(tmp_path: Path) -> None:
    """Without patients each path is one, wherever the folder lies; a group still holds."""
    table = "path,label,group\na/1.png,normal,\n./a/2.png,normal,g\nb.png,diseased,g\n"
    found = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "labels.csv").write_text(table)
        found.append(
            read_manifest(
                folder / "labels.csv", task="t", classes=CLASSES, key=KEY, each_image=True
            ).rows
        )
    first, second, third = found[0]
    assert first.patient == first.unit == by_hand("image\0a/1.png")
    assert (second.patient, second.unit) == (by_hand("image\0a/2.png"), by_hand("g"))
    assert third.unit == second.unit != third.patient
    assert [row.patient for row in found[1]] == [row.patient for row in found[0]]


def test_patients_contradict_that_each_image_is_one(tmp_path: Path) -> None:
    """A patient that is named is a fault, an empty column is none; without the word it is one."""
    (tmp_path / "labels.csv").write_text("path,label,patient_id\n1,normal,\n2,normal,P1\n")
    with pytest.raises(ManifestError, match="has 1 fault:\n  - line 3, patient_id: filled"):
        read_manifest(tmp_path / "labels.csv", task="t", classes=CLASSES, key=KEY, each_image=True)
    (tmp_path / "labels.csv").write_text("path,label\n1,normal\n")
    with pytest.raises(ManifestError, match="no column 'patient_id'"):
        read_manifest(tmp_path / "labels.csv", task="t", classes=CLASSES, key=KEY)
