"""Laws of hospital folders: of phantoms, and of real data dealt out."""

import csv
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.config import SiteConfig
from client.manifest import manifest_of
from common.errors import (
    DataError,
    EmptyManifestError,
    ImageError,
    ManifestError,
    MissingFolderError,
    OutputError,
)
from simulations.drawing import Scanner
from simulations.hospitals import deal, make
from simulations.phantoms import TASKS


def table(hospital: Path, task: str) -> list[dict[str, str]]:
    with (hospital / task / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    make(out, sites=3, patients=5, images=2, seed=3)
    return out


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """36 patients of 1 to 3 images, three classes, every third row with a group, some masks."""
    folder = tmp_path / "dataset"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    Image.new("L", (4, 4), 255).save(folder / "masks" / "p0.png")
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(36):
        for number in range(1 + patient % 3):
            path = f"images/p{patient}-{number}.png"
            Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / path)
            group = f"g{patient // 2}" if patient < 12 else ""
            mask = "masks/p0.png" if patient == 0 else ""
            rows.append(
                [path, "abc"[patient % 3], "" if patient < 6 else f"p{patient}", group, mask]
            )
    write(folder, ["path", "label", "patient_id", "group", "mask"], rows)
    return folder


def write(folder: Path, columns: list[str], rows: list[list[str]]) -> None:
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_a_site_has_the_scanner_it_is_given(tmp_path: Path) -> None:
    """The same patients look otherwise on another device; usual ones are drawn by chance."""
    warm = Scanner("Warm", noise=1.0, blur=0.5, gain=1.0, bias=0.0, tint=(1.5, 1.0, 0.5))
    (folder,) = make(
        tmp_path, sites=1, patients=5, images=2, seed=3, tasks=("ocular-melanoma",),
        scanner_of=lambda number, _: warm if number == 0 else pytest.fail("another site"),
    )  # fmt: skip
    (plain,) = make(
        tmp_path / "plain", sites=1, patients=5, images=2, seed=3, tasks=("ocular-melanoma",)
    )
    image = table(folder, "ocular-melanoma")[0]["path"]
    means = []
    for made in (folder, plain):
        pixels = np.asarray(Image.open(made / "ocular-melanoma" / image), float)
        means.append(pixels[..., 0].mean() / pixels[..., 2].mean())
    assert means[0] > 2 * means[1]


def test_same_seed_gives_the_same_hospitals(phantoms: Path, tmp_path: Path) -> None:
    """A second making with the same seed writes the same files, to the byte; another seed none."""
    make(tmp_path / "again", sites=3, patients=5, images=2, seed=3)
    assert files(tmp_path / "again") == files(phantoms)
    make(tmp_path / "other", sites=1, patients=4, images=1, seed=4)
    first, other = files(phantoms / "hospital-1"), files(tmp_path / "other" / "hospital-1")
    same = [name for name in first.keys() & other.keys() if first[name] == other[name]]
    assert same == ["site.toml"]


def test_client_accepts_the_hospitals(phantoms: Path) -> None:
    """The client's own readers take the configuration, the key and the table of each hospital."""
    for number, (task, phantom) in enumerate(TASKS.items(), start=1):
        config = SiteConfig.load(phantoms / f"hospital-{number}")
        assert config.name == f"hospital-{number}"
        rows = manifest_of(config, task, phantom.classes).rows
        ill = {row.patient for row in rows if row.label == 1}
        assert len(ill) >= 2
        assert len({row.patient for row in rows} - ill) >= 2
        assert all((row.mask is not None) == (row.label == 1) for row in rows)
        assert all(row.path.is_file() for row in rows)


def test_masks_are_black_and_white_of_the_images_size(phantoms: Path) -> None:
    """A mask is an 8-bit PNG of 0 and 255."""
    for row in table(phantoms / "hospital-3", "ocular-melanoma"):
        if row["mask"]:
            with Image.open(phantoms / "hospital-3" / "ocular-melanoma" / row["mask"]) as mask:
                assert mask.size == (384, 384)
                assert set(np.unique(np.asarray(mask)).tolist()) == {0, 255}


def test_key_is_the_owners_alone(phantoms: Path) -> None:
    """The key's file has mode 0600, its folder 0700, and each hospital has its own."""
    keys = [phantoms / f"hospital-{number}" / "state" / "site.key" for number in (1, 2, 3)]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert {stat.S_IMODE(key.parent.stat().st_mode) for key in keys} == {0o700}
    assert len({key.read_text() for key in keys}) == 3


def test_unknown_phantoms_are_refused(tmp_path: Path) -> None:
    """A task without phantoms is refused before a folder is made."""
    with pytest.raises(DataError, match="fabry"):
        make(tmp_path / "out", tasks=("fabry",))
    assert not (tmp_path / "out").exists()


def test_hospitals_are_never_overwritten(phantoms: Path, dataset: Path) -> None:
    """A hospital that is there already is refused, by making and by dealing."""
    with pytest.raises(OutputError, match="hospital-1"):
        make(phantoms, sites=1)
    with pytest.raises(OutputError, match="hospital-3"):
        deal(dataset, phantoms, sites=2, task="t", first=3)
    assert not (phantoms / "hospital-4").exists()


@pytest.mark.parametrize("skew", ["iid", "dirichlet:0.1", "dirichlet:0.5,size:1.5"])
def test_deal_keeps_every_row_once_and_splits_no_unit(
    dataset: Path, tmp_path: Path, skew: str
) -> None:
    """Each row is at one hospital, and no patient or group at two."""
    hospitals = deal(dataset, tmp_path / "out", sites=4, task="t", skew=skew, seed=1)
    dealt = [(hospital.name, row) for hospital in hospitals for row in table(hospital, "t")]
    original = table_of(dataset)
    assert sorted(row["path"] for _, row in dealt) == sorted(row["path"] for row in original)
    for tie in ("patient_id", "group"):
        homes = {(row[tie], name) for name, row in dealt if row[tie]}
        assert len(homes) == len({value for value, _ in homes})
    for name, row in dealt:
        image = tmp_path / "out" / name / "t" / row["path"]
        assert image.samefile(dataset / row["path"])
        assert row["site"] == name
        assert row["patient_id"]


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_patients_tied_by_groups_stay_together(tmp_path: Path) -> None:
    """Rows that share a patient or a group through other rows are one unit."""
    folder = tmp_path / "tied"
    folder.mkdir()
    rows = []
    for number in range(24):
        (folder / f"{number}.png").touch()
        tie = ("p1", "g1") if number == 0 else ("p1", "g2") if number == 1 else ("p2", "g2")
        patient, group = tie if number < 3 else (f"x{number}", "")
        rows.append([f"{number}.png", "ab"[number % 2], patient, group])
    write(folder, ["path", "label", "patient_id", "group"], rows)
    for seed in range(3):
        out = tmp_path / f"out{seed}"
        hospitals = deal(folder, out, sites=3, task="t", skew="iid", seed=seed)
        homes = {
            hospital.name
            for hospital in hospitals
            for row in table(hospital, "t")
            if row["path"] in {"0.png", "1.png", "2.png"}
        }
        assert len(homes) == 1


def test_same_seed_gives_the_same_deal(dataset: Path, tmp_path: Path) -> None:
    """The same seed deals alike, another one differently."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        deal(dataset, tmp_path / name, sites=3, task="t", seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a").keys() != files(tmp_path / "c").keys()


@pytest.mark.parametrize(
    "skew",
    [
        "zipf:1",
        "dirichlet",
        "dirichlet:0",
        "dirichlet:-1",
        "size:x",
        "iid,dirichlet:1",
        "iid,iid",
        "",
    ],
)
def test_unknown_skew_is_refused(dataset: Path, tmp_path: Path, skew: str) -> None:
    """A skew that cannot be dealt is refused with the ones that can."""
    with pytest.raises(DataError, match="Remedy: Give iid, dirichlet:ALPHA"):
        deal(dataset, tmp_path / "out", sites=2, task="t", skew=skew)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["../t", "Lung CT", ""])
def test_task_names_are_checked(dataset: Path, tmp_path: Path, task: str) -> None:
    """A task's name that no study could use, or that leads out of the folder, is refused."""
    with pytest.raises(DataError, match="name of a task"):
        deal(dataset, tmp_path / "out", sites=2, task=task)


def test_table_that_is_no_text_is_refused(dataset: Path, tmp_path: Path) -> None:
    """A table that is not UTF-8 is refused as a table, without a traceback of its decoder."""
    (dataset / "labels.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(ManifestError, match="UTF-8"):
        deal(dataset, tmp_path / "out", sites=2, task="t")


def test_scanner_skew_writes_shifted_copies(dataset: Path, tmp_path: Path) -> None:
    """Each site shows its images under a gamma of its own, and the originals stay as they are."""
    before = files(dataset)
    hospitals = deal(dataset, tmp_path / "out", sites=2, task="t", skew="iid,scanner")
    changes = []
    for hospital in hospitals:
        pairs = [
            (np.asarray(Image.open(dataset / row["path"])),
             np.asarray(Image.open(hospital / "t" / row["path"])))
            for row in table(hospital, "t")
        ]  # fmt: skip
        changes.append(float(np.mean([new.mean() - old.mean() for old, new in pairs])))
    assert min(changes) < -5
    assert max(changes) > 5
    assert files(dataset) == before


def test_failed_deal_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    """When an image cannot be shifted, no half hospital stays behind."""
    (dataset / "images" / "p35-2.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="p35-2"):
        deal(dataset, tmp_path / "out", sites=2, task="t", skew="scanner")
    assert list((tmp_path / "out").iterdir()) == []


def test_label_column_can_be_chosen(dataset: Path, tmp_path: Path) -> None:
    """Labels come from the column that is named; masks are carried along."""
    rows = [[r["path"], "xy"[i % 2], r["path"], r["mask"]] for i, r in enumerate(table_of(dataset))]
    write(dataset, ["path", "grade", "patient_id", "mask"], rows)
    (first, second) = deal(dataset, tmp_path / "out", sites=2, task="t", label="grade", first=5)
    assert (first.name, second.name) == ("hospital-5", "hospital-6")
    dealt = table(first, "t") + table(second, "t")
    assert Counter(row["label"] for row in dealt) == Counter(row[1] for row in rows)
    assert [row["mask"] for row in dealt if row["mask"]] == ["masks/p0.png"]


def test_missing_table_is_refused(tmp_path: Path) -> None:
    """A folder without labels.csv is refused."""
    with pytest.raises(MissingFolderError, match=r"labels\.csv"):
        deal(tmp_path, tmp_path / "out", sites=2, task="t")


def test_empty_table_is_refused(dataset: Path, tmp_path: Path) -> None:
    """A table with only its first line is refused."""
    write(dataset, ["path", "label"], [])
    with pytest.raises(EmptyManifestError):
        deal(dataset, tmp_path / "out", sites=2, task="t")


def test_missing_columns_are_all_named(dataset: Path, tmp_path: Path) -> None:
    """Both columns that must be there are named when both are missing."""
    write(dataset, ["file", "class"], [["images/p0-0.png", "a"]])
    with pytest.raises(ManifestError, match=r"(?s)'path'.*'label'"):
        deal(dataset, tmp_path / "out", sites=2, task="t")


def test_faulty_rows_are_all_listed(dataset: Path, tmp_path: Path) -> None:
    """Every fault of every row is in the one message."""
    good = "images/p0-0.png"
    rows = [[good, ""], ["", "a"], ["images/none.png", "a"], ["../up.png", "a"], [good, "a"]]
    write(dataset, ["path", "label"], rows)
    with pytest.raises(ManifestError) as refusal:
        deal(dataset, tmp_path / "out", sites=2, task="t")
    assert "5 faults" in refusal.value.message
    for fault in ("row 2: no label", "row 3: no path", "row 4", "row 5", "row 6"):
        assert fault in refusal.value.message


def test_more_sites_than_patients_are_refused(dataset: Path, tmp_path: Path) -> None:
    """No hospital is left empty: too many sites are refused."""
    with pytest.raises(DataError, match="too many"):
        deal(dataset, tmp_path / "out", sites=60, task="t", skew="iid")
    assert not (tmp_path / "out").exists()
