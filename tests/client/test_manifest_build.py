"""Laws of drafting a manifest from a folder of images."""

import csv
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    OphthalmicPhotography8BitImageStorage,
)

from client import manifest_build
from client.draft_row import cells_of, look
from client.images import read_images
from client.manifest import read_manifest
from client.manifest_build import (
    COLUMNS,
    Draft,
    check_place,
    draft_of,
    files_in,
    look_at,
    summary_of,
    write_draft,
)
from client.pictures import Reading
from common.errors import EmptyManifestError, MissingFolderError, OutputError

PATIENT = "DOE-17"


def header(**elements: Any) -> Dataset:
    """Return the header of a CT slice, changed as told; None takes an element out."""
    made = Dataset()
    usual = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "CT",
        "PatientID": PATIENT,
        "SeriesInstanceUID": "1.2.3",
        "ImagePositionPatient": [0, 0, 1],
        "Rows": 4,
        "Columns": 4,
        "StudyDate": "20240131",
        "Manufacturer": "ACME",
        "ManufacturerModelName": "Scan 1",
    }
    for name, value in (usual | elements).items():
        if value is not None:
            setattr(made, name, value)
    return made


def write(path: Path, **elements: Any) -> Path:
    made = header(**elements)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write_png(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(path, format="PNG")


def draft(folder: Path) -> Draft:
    files, passed = files_in(folder)
    made = draft_of(look_at(files, 1), folder)
    made.set_aside += passed
    return made


def paths(made: Draft) -> list[str]:
    return [row["path"] for row in made.rows]


def test_a_folder_of_slices_is_one_row(tmp_path: Path) -> None:
    """Slices of one series are a row with what they share; a report among them is set aside."""
    for number in range(3):
        write(
            tmp_path / f"ct/a/{number}", PatientAge=f"04{number}Y", StudyDate=f"2024010{number + 1}"
        )
    write(tmp_path / "ct/a/sr", SOPClassUID=ComprehensiveSRStorage, Modality="SR")
    made = draft(tmp_path)
    expected = {
        "path": "ct/a", "patient_id": PATIENT, "scanner": "ACME Scan 1", "age": "40-49",
        "modality": "CT", "series": "1.2.3",
    }  # fmt: skip
    assert made.rows == [dict.fromkeys(COLUMNS, "") | expected]
    assert made.kinds == {"DICOM series": 1}
    assert list(made.set_aside.values()) == [1]
    assert "Comprehensive SR" in next(iter(made.set_aside))


@pytest.mark.parametrize(
    "second",
    [
        {"SeriesInstanceUID": "1.2.4"},
        {"PatientID": "DOE-18"},
        {"NumberOfFrames": 2},
        {"ImagePositionPatient": None, "SOPClassUID": OphthalmicPhotography8BitImageStorage},
    ],
    ids=["another series", "another patient", "several frames", "no place in the patient"],
)
def test_other_folders_give_a_row_for_each_image(tmp_path: Path, second: dict[str, Any]) -> None:
    """Images that are not all slices of one series and patient have a row each."""
    write(tmp_path / "all/1")
    write(tmp_path / "all/2", **second)
    assert paths(draft(tmp_path)) == ["all/1", "all/2"]


def test_a_picture_among_slices_or_a_single_slice_is_no_series(tmp_path: Path) -> None:
    """A folder with a PNG beside slices, and one of a single slice, give rows of single images."""
    for name in ("one/1", "mixed/1", "mixed/2"):
        write(tmp_path / name)
    write_png(tmp_path / "mixed/3")
    made = draft(tmp_path)
    assert paths(made) == ["mixed/1", "mixed/2", "mixed/3", "one/1"]
    assert made.kinds == {"DICOM": 3, "PNG": 1}
    assert made.rows[2] == dict.fromkeys(COLUMNS, "") | {"path": "mixed/3"}


def test_what_is_no_image_is_set_aside_and_counted(tmp_path: Path) -> None:
    """Text, empty files, cut headers and damaged ones have no row and do not end the draft."""
    whole = write(tmp_path / "good").read_bytes()
    for name, content in (("text", b"hello"), ("empty", b""), ("cut", whole[:300])):
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "none", Rows=None)
    os.mkfifo(tmp_path / "pipe")
    made = draft(tmp_path)
    assert paths(made) == ["good"]
    assert made.set_aside.total() == 5


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Links to files and folders, within or without, are passed over; the folder may be one."""
    write(tmp_path / "out/1")
    write(tmp_path / "data/in/1")
    (tmp_path / "data/folder").symlink_to(tmp_path / "out")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/file").symlink_to(tmp_path / "out/1")
    (tmp_path / "data/broken").symlink_to(tmp_path / "nowhere")
    made = draft(tmp_path / "data")
    assert paths(made) == ["in/1"]
    assert made.set_aside == {"it is a symbolic link": 4}
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert files_in(tmp_path / "link") == files_in(tmp_path / "data")


def test_names_that_no_manifest_can_hold_are_set_aside(tmp_path: Path) -> None:
    """A name that would be read as another, or not at all, has no row."""
    for number, name in enumerate((b"a\\b", b" a", b"a\nb", b"c:d", b"M\xfcller")):
        file = write(tmp_path / "x", SeriesInstanceUID=f"1.{number}")
        file.rename(tmp_path / os.fsdecode(name))
    write(tmp_path / "Müller, Übung (1).dcm")
    made = draft(tmp_path)
    assert paths(made) == ["Müller, Übung (1).dcm"]
    assert list(made.set_aside.values()) == [5]


@pytest.mark.parametrize(
    ("elements", "column", "expected"),
    [
        ({"ImageLaterality": "L", "Laterality": "R"}, "laterality", "L"),
        ({"Laterality": "R"}, "laterality", "R"),
        ({"ImageLaterality": "B"}, "laterality", ""),
        ({"PatientAge": "045Y"}, "age", "40-49"),
        ({"PatientAge": "023M"}, "age", "0-9"),
        ({"PatientAge": "3650D"}, "age", ""),
        ({"PatientBirthDate": "19840201"}, "age", "30-39"),
        ({"PatientBirthDate": "19840131"}, "age", "40-49"),
        ({"PatientBirthDate": "20250101"}, "age", ""),
        ({"PatientBirthDate": "18000101"}, "age", ""),
        ({"StudyDate": "20240231"}, "date", ""),
        ({"StudyDate": ""}, "date", ""),
        ({"StudyDate": None}, "date", ""),
        ({"PatientSex": "F"}, "sex", "F"),
        ({"PatientSex": "MF"}, "sex", ""),
        ({"PatientSex": None}, "sex", ""),
        ({"Manufacturer": "A" * 60}, "scanner", "A" * 60 + " Sca"),
        ({"Manufacturer": None}, "scanner", "Scan 1"),
        ({"PatientID": "DOE \r\n=17 "}, "patient_id", "DOE =17"),
        ({"PatientID": None}, "patient_id", ""),
        ({"Modality": ["CT", "MR"]}, "modality", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_header_fills_its_cells(elements: dict[str, Any], column: str, expected: str) -> None:
    """What a header says becomes the cell; what it does not say clearly leaves it empty."""
    assert cells_of(header(**elements))[column] == expected


def test_no_free_text_is_taken_over(tmp_path: Path) -> None:
    """Names and descriptions, which anybody may have typed, are in no cell."""
    elements = ("PatientName", "SeriesDescription", "StudyDescription", "PatientComments")
    write(tmp_path / "a/1", **dict.fromkeys(elements, "SECRET"))
    assert "SECRET" not in str(draft(tmp_path).rows)


def test_a_draft_with_labels_is_a_manifest(tmp_path: Path) -> None:
    """Once the labels are filled in, the client reads each row as what the headers said."""
    write(tmp_path / "ct/1", SeriesInstanceUID="1.1", PatientSex="M", PatientAge="101Y")
    for number in range(2):
        write(tmp_path / f"ct/series, 2/{number}", Laterality="L")
    out = tmp_path / "labels.csv"
    made = draft(tmp_path)
    write_draft(made, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with out.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == made.rows
    assert not any(line["label"] or line["group"] for line in lines)
    for row in made.rows:
        row["label"] = "normal"
    write_draft(made, out)
    found = read_manifest(out, task="t", classes=("normal", "ill"), key=bytes(32))
    assert found.notes == ()
    assert [row.path for row in found.rows] == [tmp_path / "ct/1", tmp_path / "ct/series, 2"]
    one, two = found.rows
    assert one.patient == two.patient
    assert (one.sex, one.age, one.date, one.scanner) == (
        "M",
        "100-109",
        "2024-01-31",
        "ACME Scan 1",
    )
    assert two.laterality == "L"


def test_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes give the same as this one, in the same order."""
    files = [write(tmp_path / f"{number}/1", PatientID=f"P{number}") for number in range(5)]
    monkeypatch.setattr(manifest_build, "FILES_A_PROCESS", 2)
    assert list(look_at(files, 2)) == [look(file) for file in files]


def test_a_place_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    """An existing manifest, a folder beside the images and a missing folder are each refused."""
    (tmp_path / "data").mkdir()
    (tmp_path / "old.csv").write_text("path,label\n")
    (tmp_path / "link.csv").symlink_to("nowhere")
    for name in ("old.csv", "link.csv"):
        with pytest.raises(OutputError, match="there already"):
            check_place(tmp_path / "data", tmp_path / name)
    with pytest.raises(OutputError, match="cannot name images"):
        check_place(tmp_path / "data", tmp_path / "other/labels.csv")
    with pytest.raises(MissingFolderError):
        check_place(tmp_path / "none", tmp_path / "labels.csv")
    check_place(tmp_path / "data", tmp_path / "labels.csv")
    check_place(tmp_path / "data", tmp_path / "data/labels.csv")


def test_a_draft_without_rows_is_not_written(tmp_path: Path) -> None:
    """A folder without images is refused with what was set aside, and nothing is written."""
    (tmp_path / "text").write_text("hello")
    with pytest.raises(EmptyManifestError, match="1 it is of no known kind"):
        write_draft(draft(tmp_path), tmp_path / "labels.csv")
    assert not (tmp_path / "labels.csv").exists()


def test_a_summary_names_nobody(tmp_path: Path) -> None:
    """The summary counts rows, patients and kinds; no patient, path or series is in it."""
    write(tmp_path / "doe/1")
    write(tmp_path / "doe/2", PatientID=None, SeriesInstanceUID="1.2.4")
    found = summary_of(draft(tmp_path))
    assert (found["rows"], found["patients"], found["without_patient"]) == (2, 1, 1)
    assert (found["kinds"], found["modalities"]) == ({"DICOM": 2}, {"CT": 2})
    assert not any(word in str(found).lower() for word in ("doe", "1.2.3"))


def test_a_row_of_slices_is_one_that_the_client_reads(shared: Path, tmp_path: Path) -> None:
    """Real slices of one series, with the manifest beside them, are one row and one volume."""
    for name in ("ct_ge_hispeed_tilt_a.dcm", "ct_ge_hispeed_tilt_b.dcm"):
        (tmp_path / name).write_bytes((shared / "dicom" / name).read_bytes())
    made = draft(tmp_path)
    assert paths(made) == ["."]
    made.rows[0]["label"] = "normal"
    write_draft(made, tmp_path / "labels.csv")
    (row,) = read_manifest(
        tmp_path / "labels.csv", task="t", classes=("normal", "ill"), key=bytes(32)
    ).rows
    source = read_images(row.path, Reading("CT", None, "all"))
    assert len(source.pictures) == 2
    assert (source.facts.scanner, source.facts.age) == (row.scanner, row.age)


def test_real_files_have_a_row_or_a_reason(shared: Path) -> None:
    """Of the real files each has a row or is set aside; reports, plans and masks are the latter."""
    files, passed = files_in(shared / "dicom")
    found = list(look_at(files, 1))
    made = draft_of(found, shared.resolve())
    assert not passed
    assert len(made.rows) + made.set_aside.total() == len(files)
    listed = {Path(row["path"]).name for row in made.rows}
    assert {"ct_ge_uncompressed.dcm", "mr_siemens_xa30_enhanced.dcm", "vl_rgb_j2ki.dcm"} <= listed
    assert {"ct_philips_ingenuity_noext", "mr_agfa_pacs.img"} <= listed
    for name in (
        "sr_structured_report.dcm", "bad_rtplan_truncated.dcm", "seg_liver_dcmqi.dcm",
        "mr_philips_rawdata.dcm", "synthetic_empty.dcm",
        "ct_philips_private_noext", "README.md",
    ):  # fmt: skip
        assert name not in listed
