"""Laws of the command that drafts a manifest."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from common.errors import OutputError

RUNNER = CliRunner()


@pytest.fixture
def images(shared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("mr_small.dcm", "ct_small_128.dcm", "sr_structured_report.dcm"):
        (folder / name).write_bytes((shared / "dicom" / name).read_bytes())
    return folder


def test_a_draft_is_written_and_summed_up(images: Path) -> None:
    """With --json the result is one value of numbers; the file is there beside the images."""
    out = images / "labels.csv"
    result = RUNNER.invoke(app, ["manifest", "build", str(images), "--out", str(out), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["manifest"], found["rows"], found["kinds"]) == (str(out), 2, {"DICOM": 2})
    assert sum(found["set_aside"].values()) == 1
    assert out.read_text(encoding="utf-8").count("\n") == 3


def test_a_person_is_told_what_to_do_next(images: Path) -> None:
    """The table counts, names no patient, and the line below says which columns to fill."""
    out = images / "labels.csv"
    result = RUNNER.invoke(app, ["manifest", "build", str(images), "--out", str(out)])
    assert result.exit_code == 0
    for words in ("rows", "set aside", "Fill in the column label"):
        assert words in result.stdout
    patients = [line.split(",")[2] for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    assert all(patients)
    assert not any(patient in result.stdout for patient in patients)


def test_a_manifest_is_never_overwritten(images: Path) -> None:
    """A second draft in its place is refused, and the first stays as it was."""
    out = images / "labels.csv"
    out.write_text("path,label,patient_id\n")
    result = RUNNER.invoke(app, ["manifest", "build", str(images), "--out", str(out)])
    assert isinstance(result.exception, OutputError)
    assert out.read_text() == "path,label,patient_id\n"
