"""Laws of reading a manifest."""

import csv
import hashlib
import hmac
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from client.manifest import Row, read_manifest
from common.errors import EmptyManifestError, LabelError, ManifestError, MissingFolderError

KEY = bytes(range(32))
CLASSES = ("normal", "diseased")


def read(folder: Path, text: str, *, key: bytes = KEY) -> list[Row]:
    file = folder / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return read_manifest(file, task="gaucher", classes=CLASSES, key=key).rows


def by_hand(identifier: str) -> str:
    return hmac.new(KEY, b"patient\0" + identifier.encode(), hashlib.sha256).hexdigest()[:32]


def test_a_row_is_what_its_line_says(tmp_path: Path) -> None:
    """Every column arrives in its field: absolute paths, the class's index, keyed hashes."""
    rows = read(
        tmp_path,
        "site,path,label,patient_id,group,mask,split,age,laterality,date,scanner,sex,box,slices\n"
        "A,images/1.png,diseased,P1,g1,masks/1.png,test,71,OD,20240131,ACME 1,f,1 2 3 4,7 3\n"
        ",images/2.png,normal,P2\n",
    )
    first = Row(
        2, tmp_path / "images/1.png", 1, by_hand("P1"), by_hand("g1"),
        tmp_path / "masks/1.png", "test", laterality="R", date="2024-01-31", scanner="ACME 1",
        box=(1, 2, 3, 4), age="70-79", sex="F", slices=(7, 3), site="A",
    )  # fmt: skip
    assert rows == [first, Row(3, tmp_path / "images/2.png", 0, by_hand("P2"), by_hand("P2"))]


def test_a_group_stands_in_for_an_unknown_patient(tmp_path: Path) -> None:
    """Without a patient the group is both patient and unit."""
    (row,) = read(tmp_path, "path,label,patient_id,group\n1.png,normal,,g1\n")
    assert row.patient == row.unit == by_hand("g1")


def test_hashes_need_the_key(tmp_path: Path) -> None:
    """Another key gives other hashes, and neither shows the patient."""
    text = "path,label,patient_id\n1.png,normal,Jane Doe\n"
    ((one,), (two,)) = (read(tmp_path, text, key=key) for key in (KEY, bytes(32)))
    assert one.patient != two.patient
    assert "Jane" not in repr(one)


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    """A byte order mark, blank lines, CRLF and quoted line breaks do not shift line numbers."""
    rows = read(
        tmp_path,
        "\ufeffpath,label,patient_id,note\r\n\r\n1.png,normal,P1,\r\n"
        '2.png,normal,P2,"two\r\nlines"\r\n,,,\r\n 3.png , normal , P3\r\n',
    )
    assert [(row.line, row.path.name) for row in rows] == [(3, "1.png"), (4, "2.png"), (7, "3.png")]


def test_every_fault_is_listed_with_its_line(tmp_path: Path) -> None:
    """All faults of all rows come in one error, by line and column, with a remedy."""
    text = (
        "path,label,patient_id,group,split,mask,age,laterality\n"
        "1.png,normal,P1,,,\n"
        ",normal,P1,,,\n"
        "3.png,sick,P1,,,\n"
        "4.png,normal,,,,\n"
        "./1.png,normal,P1,,,\n"
        "6.png,normal,P1,,holdout,\n"
        "7.png,normal,P1,,,../m.png\n"
        "8.png,unsure,P1,,,,x,x,more\n"
    )
    with pytest.raises(ManifestError) as refusal:
        read(tmp_path, text)
    message = refusal.value.message
    assert not isinstance(refusal.value, LabelError)
    assert "has 10 faults" in message
    for fault in (
        "line 3, path: empty", "line 4, label: 'sick'", "line 5, patient_id: empty",
        "line 6, path: the same file as in line 2", "line 7, split: not one of",
        "line 8, mask: outside", "line 9, label: 'unsure'", "line 9, (beyond the header): more",
        "line 9, age: no age", "line 9, laterality: no side",
    ):  # fmt: skip
        assert fault in message
    assert "normal, diseased" in refusal.value.remedy


def test_only_labels_at_fault_is_a_label_error(tmp_path: Path) -> None:
    """When labels alone are wrong, the error is a LabelError that names the task's classes."""
    with pytest.raises(LabelError, match="line 2, label: 'Normal'") as refusal:
        read(tmp_path, "path,label,patient_id\n1.png,Normal,P1\n2.png,,P2\n")
    assert "line 3, label: ''" in refusal.value.message
    assert "normal, diseased" in refusal.value.remedy


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../etc/passwd", "../secret.png", "a/../../b.png", "..", "link/x.png",
        "link", "file.png", "C:/x.png", "loop/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["path", "mask"])
def test_no_path_leaves_the_folder(tmp_path: Path, path: str, column: str) -> None:
    """Absolute paths, '..', links that lead out and links that lead nowhere are refused."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "file.png").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to("loop")
    image, mask = (path, "") if column == "path" else ("1.png", path)
    with pytest.raises(ManifestError, match=f"line 2, {column}: (outside|a path that leads)"):
        read(folder, f"path,label,patient_id,mask\n{image},normal,P1,{mask}\n")


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    """A link to another place in the folder is fine, and is the same file as its target."""
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    (row,) = read(tmp_path, "path,label,patient_id\nlink/1.png,normal,P1\n")
    assert row.path == tmp_path / "images/1.png"
    with pytest.raises(ManifestError, match="line 3, path: the same file as in line 2"):
        read(
            tmp_path,
            "path,label,patient_id\nlink/1.png,normal,P1\nimages/1.png,normal,P1\n",
        )


def test_paths_of_another_system_are_explained(tmp_path: Path) -> None:
    """A path with backslashes is a fault with its remedy, not a missing image."""
    for path in ("images\\1.png", "\\\\server\\1.png", "1\0.png"):
        with pytest.raises(ManifestError, match="write it with '/'"):
            read(tmp_path, f"path,label,patient_id\n{path},normal,P1\n")


def test_a_refusal_names_no_patient(tmp_path: Path) -> None:
    """Whatever is wrong, the message prints no patient, no group and no path."""
    text = (
        "path,label,patient_id,group,split\n"
        "../DOE^JANE.png,sick,DOE^JANE,DOE^FAMILY,x\nDOE.png,normal,DOE,,\nDOE.png,normal,DOE,,\n"
    )
    with pytest.raises(ManifestError) as refusal:
        read(tmp_path, text)
    assert "DOE" not in str(refusal.value)


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    """Of more than 50 faults the first 50 are listed and the rest are counted."""
    lines = "".join(f"{index}.png,sick,P\n" for index in range(60))
    with pytest.raises(LabelError, match="has 60 faults") as refusal:
        read(tmp_path, "path,label,patient_id\n" + lines)
    assert refusal.value.message.count("- line") == 50
    assert refusal.value.message.endswith("and 10 more")


def test_missing_columns_are_listed_together(tmp_path: Path) -> None:
    """Every missing or doubled column is named in one error; a semicolon table has none."""
    with pytest.raises(ManifestError) as refusal:
        read(tmp_path, "path,path,labels\n")
    for fault in ("no column 'label'", "no column 'patient_id'", "'path' is there twice"):
        assert fault in refusal.value.message
    with pytest.raises(ManifestError, match="is it 'lable'") as refusal:
        read(tmp_path, "path,lable,Patient_ID\n")
    assert "is it 'Patient_ID'" in refusal.value.message
    with pytest.raises(ManifestError, match="no column 'path'") as refusal:
        read(tmp_path, "path;label;patient_id\n1.png;normal;P1\n")
    assert "commas" in refusal.value.remedy


def test_other_columns_are_ignored(tmp_path: Path) -> None:
    """Columns of no known name, even without one, mean nothing and do no harm."""
    (row,) = read(tmp_path, ",path,label,patient_id,dr,dr\n0,1.png,normal,P1,2,3\n")
    assert row.path == tmp_path / "1.png"


def test_missing_empty_and_broken_files_differ(tmp_path: Path) -> None:
    """No file, no folder, no rows and no text each have the error that says so."""
    for file, what in (("none.csv", "file"), ("none/labels.csv", "folder")):
        with pytest.raises(MissingFolderError, match=f"the {what} is missing"):
            read_manifest(tmp_path / file, task="t", classes=CLASSES, key=KEY)
    with pytest.raises(EmptyManifestError):
        read(tmp_path, "path,label,patient_id\n\n,,\n")
    with pytest.raises(ManifestError, match="no column 'path'"):
        read(tmp_path, "")
    (tmp_path / "latin.csv").write_bytes(b"path,label,patient_id\n1.png,normal,M\xfcller\n")
    with pytest.raises(ManifestError, match="no readable CSV") as refusal:
        read_manifest(tmp_path / "latin.csv", task="t", classes=CLASSES, key=KEY)
    assert "UTF-8" in refusal.value.remedy
    with pytest.raises(ManifestError, match="no readable CSV"):
        read(tmp_path, 'path,label,patient_id\n"1.png,normal,P1\n')


def test_a_series_is_a_folder(tmp_path: Path) -> None:
    """A path may be a folder within the manifest's; with a slash at its end it is the same."""
    (tmp_path / "series").mkdir()
    (row,) = read(tmp_path, "path,label,patient_id\nseries/,normal,P1\n")
    assert row.path == tmp_path / "series"


def test_a_file_may_give_several_parts_of_one_patient(tmp_path: Path) -> None:
    """Rows of one file differ in slices or box and share the patient, or are a fault."""
    header = "path,label,patient_id,slices,box\n"
    assert (
        len(read(tmp_path, header + "1,normal,P,1 2,\n1,diseased,P,3,\n1,normal,P,,1 2 3 4\n")) == 3
    )
    with pytest.raises(ManifestError, match="line 4, path: the same file as in line 3"):
        read(tmp_path, header + "1,normal,P,1,\n1,normal,P,2,\n1,diseased,P,2,\n")
    with pytest.raises(ManifestError, match="line 3, patient_id: another patient than in line 2"):
        read(tmp_path, header + "1,normal,P,1,\n1,normal,Q,2,\n")


def test_a_slip_in_a_column_is_noted_and_not_refused(tmp_path: Path) -> None:
    """The rows are read, and the note names the column; the label's own column is no slip."""
    (tmp_path / "labels.csv").write_text("path,ages,patient_id,spilt\n1,normal,P1,test\n")
    found = read_manifest(tmp_path / "labels.csv", task="t", classes=CLASSES, key=KEY, label="ages")
    assert found.rows[0].fixed_split is None
    assert found.notes == ("the column 'spilt' is ignored; is it meant to be 'split'?",)


def test_parquet_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    """A table means the same in both files, with numbers and dates in Parquet's own types."""
    expected = read(
        tmp_path,
        "path,label,patient_id,age,date,split\n"
        "1.png,normal,17,45,2024-01-31,\n2.png,diseased,18,,,test\n",
    )
    columns = {
        "path": ["1.png", "2.png"],
        "label": pa.array(["normal", "diseased"]).dictionary_encode(),
        "patient_id": [17, 18],
        "age": [45.0, None],
        "date": [date(2024, 1, 31), None],
        "split": [None, "test"],
    }
    parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
    found = read_manifest(tmp_path / "labels.parquet", task="t", classes=CLASSES, key=KEY)
    assert found.rows == expected


def test_missing_images_are_no_fault_of_the_manifest(tmp_path: Path) -> None:
    """A row whose image does not exist is read: the image is counted as unreadable later."""
    assert len(read(tmp_path, "path,label,patient_id\nnone.png,normal,P1\n")) == 1


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("ct_iqoth", ("benign", "malignant", "normal")),
        ("fundus_mexico", ("no_dme", "dme")),
    ],
)
def test_real_tables_are_read(shared: Path, name: str, classes: tuple[str, ...]) -> None:
    """A real table has as many rows and units as a plain count of it; every image is there."""
    file = shared / "data" / name / "labels.csv"
    with file.open(encoding="utf-8", newline="") as opened:
        counted = list(csv.DictReader(opened))
    rows = read_manifest(file, task=name, classes=classes, key=KEY).rows
    assert [classes[row.label] for row in rows] == [line["label"] for line in counted]
    assert len({row.unit for row in rows}) == len({line["group"] for line in counted})
    assert all(row.path.is_file() for row in rows)
