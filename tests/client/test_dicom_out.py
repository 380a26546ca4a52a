"""Laws of the DICOM that predictions become: valid, of the right patient, study and instance."""

import shutil
import stat
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from client.dicom_out import NOTICE, Statement, write_overlay, write_report
from client.dicom_source import source_of
from common.errors import ImageError, OutputError

SAID = Statement(
    task="lung",
    label="Größe \\ <ill>",
    probabilities={"normal": 0.2, "Größe \\ <ill>": 0.8},
    model="rarefed lung, round 3",
    sha256="ab" * 32,
    likeness="WARNING: unlike the site's training images (p = 0.013).",
    threshold=0.41,
    notes=("No temperature was fitted.",),
)
OVERLAY = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
REAL = (
    "ct_ge_uncompressed.dcm",
    "ct_enhanced_multiframe.dcm",
    "ct_693_j2kr_bits_mismatch.dcm",
    "mr_small.dcm",
    "mr_philips_enhanced.dcm",
    "cr_mono1_j2ki.dcm",
    "vl_rgb_j2ki.dcm",
    "bad_ot_no_meta.dcm",
)
OPHTHALMIC = pydicom.uid.OphthalmicPhotography8BitImageStorage


def faults_of(file: Path) -> list[str]:
    """Return what dciodvfy calls an error."""
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy; it is in Debian's dicom3tools")
    found = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return [line for line in found.stderr.splitlines() if line.startswith("Error")]


@pytest.fixture
def photograph(tmp_path: Path, write_dicom: Callable[..., Path]) -> Path:
    """A fundus photograph of a left eye, whose header is in Latin-1."""
    return write_dicom(
        tmp_path / "eye.dcm",
        np.zeros((8, 9, 3), np.uint8),
        SOPClassUID=OPHTHALMIC,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        SpecificCharacterSet="ISO_IR 100",
        Modality="OP",
        PatientName="Müller^Zoë",
        PatientID="17",
        PatientBirthDate="19500101",
        PatientSex="F",
        StudyInstanceUID=generate_uid(prefix=None),
        SeriesInstanceUID=generate_uid(prefix=None),
        StudyDate="1996.10.29",
        StudyTime="15:18:59",
        AccessionNumber="A1",
        ImageLaterality="L",
    )


def test_a_report_says_what_was_predicted(tmp_path: Path, photograph: Path) -> None:
    """Read back, it has class, probabilities, threshold, model, likeness, notes and the notice."""
    report: Any = hd.sr.srread(write_report(tmp_path / "out", source_of(photograph), SAID))
    (group,) = report.content.get_image_measurement_groups()
    values = {m.name.meaning: float(m.value) for m in group.get_measurements()}
    assert values == {
        "Probability of normal": 0.2,
        "Probability of Größe / <ill>": 0.8,
        "Probability at the operating point": 0.41,
    }
    (told,) = group.get_qualitative_evaluations()
    assert (told.name.meaning, told.value.meaning) == ("Predicted class", "Größe / <ill>")
    told = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    for part in (NOTICE, SAID.likeness, *SAID.notes, SAID.model, f"SHA-256 {SAID.sha256}"):
        assert part in told
    assert report.CompletionFlag == "COMPLETE"
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_both_are_of_the_sources_patient_and_study(tmp_path: Path, photograph: Path) -> None:
    """Patient and study are the source's, series and instance new, and the source is named."""
    before = pydicom.dcmread(photograph)
    source = source_of(photograph)
    files = [
        write_report(tmp_path / "out", source, SAID),
        write_overlay(tmp_path / "out", source, OVERLAY, SAID),
    ]
    found = [pydicom.dcmread(file) for file in files]
    for one, file in zip(found, files, strict=True):
        for name in ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
            assert one[name].value == before[name].value
        assert str(one.PatientName) == "Müller^Zoë"
        assert one.AccessionNumber == "A1"
        # What the source's date means can be written; its time cannot.
        assert (one.StudyDate, one.StudyTime or "") == ("19961029", "")
        assert one.SOPInstanceUID.startswith("2.25.")
        assert file.name == f"{one.SOPInstanceUID}.dcm"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    uids = {one[n].value for one in (before, *found) for n in ("SOPInstanceUID",)}
    series = {one.SeriesInstanceUID for one in (before, *found)}
    assert len(uids) == len(series) == 3
    evidence = found[0].CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == before.StudyInstanceUID
    (of_series,) = evidence.ReferencedSeriesSequence
    assert of_series.SeriesInstanceUID == before.SeriesInstanceUID
    assert of_series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert found[1].SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID


def test_an_overlay_keeps_every_pixel(tmp_path: Path, photograph: Path) -> None:
    """The picture is the overlay bit for bit; it says its side, and that it has text in it."""
    image = pydicom.dcmread(write_overlay(tmp_path, source_of(photograph), OVERLAY, SAID))
    np.testing.assert_array_equal(image.pixel_array, OVERLAY)
    assert (image.Laterality, image.BurnedInAnnotation) == ("L", "YES")
    assert NOTICE in image.DerivationDescription
    assert image.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage


@pytest.mark.parametrize(
    ("axes", "ends"),
    [
        ([1, 0, 0, 0, 1, 0], ["L", "P"]),
        ([1, 0, 0, 0, 0, -1], ["L", "F"]),
        ([0, 1, 0, 0, 0, -1], ["P", "F"]),
        ([-1, 0, 0, 0, 1, 0], ["R", "P"]),
    ],
)
def test_an_overlay_lies_as_its_slice(
    tmp_path: Path, photograph: Path, axes: list[float], ends: list[str]
) -> None:
    """Rows and columns point to where those of the slice point (PS3.3 C.7.6.1.1.1)."""
    (source,) = source_of(photograph)
    source.ImageOrientationPatient = axes
    image = pydicom.dcmread(write_overlay(tmp_path, [source], OVERLAY, SAID))
    assert list(image.PatientOrientation) == ends


def test_dciodvfy_finds_no_error(tmp_path: Path, photograph: Path) -> None:
    """Debian's validator has nothing against the report or the picture of a photograph."""
    source = source_of(photograph)
    for file in (
        write_report(tmp_path, source, SAID),
        write_overlay(tmp_path, source, OVERLAY, SAID),
    ):
        assert faults_of(file) == []


@pytest.mark.parametrize("name", REAL)
def test_real_sources_give_valid_objects(shared: Path, tmp_path: Path, name: str) -> None:
    """Of real CT, MR, CR and photographs, sound or not, both objects are valid and read back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # their text would show a patient's name
        source = source_of(shared / "dicom" / name)
        report = write_report(tmp_path, source, SAID)
        overlay = write_overlay(tmp_path, source, OVERLAY, SAID)
    assert hd.sr.srread(report).PatientID == source[0].PatientID
    assert pydicom.dcmread(overlay).pixel_array.shape == OVERLAY.shape
    assert [fault for file in (report, overlay) for fault in faults_of(file)] == []


def test_a_folder_is_one_source_of_many_instances(
    tmp_path: Path, write_dicom: Callable[..., Path]
) -> None:
    """A report on a series names each of its instances, and other files are left alone."""
    folder, common = tmp_path / "series", _identity()
    folder.mkdir()
    for number in range(3):
        uid = generate_uid(prefix=None)
        write_dicom(
            folder / f"{number}.dcm", np.eye(8, dtype=np.uint8), SOPInstanceUID=uid, **common
        )
    source = source_of(folder)
    report = pydicom.dcmread(write_report(tmp_path / "out", source, SAID))
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
    assert named == {one.SOPInstanceUID for one in source}
    assert len(named) == 3
    other = common | {"StudyInstanceUID": generate_uid(prefix=None)}
    write_dicom(folder / "9.dcm", np.eye(8, dtype=np.uint8), **other)
    with pytest.raises(ImageError, match="several studies"):
        source_of(folder)


def test_a_source_that_is_no_dicom_is_refused(shared: Path) -> None:
    """Neither a PNG nor a header without identifiers says which study a report belongs to."""
    for name in ("synthetic_png_named.dcm", "htj2k_lossless_rgb.dcm", "bad_un_sequence.dcm"):
        with pytest.raises(ImageError, match="would not know which study") as refused:
            source_of(shared / "dicom" / name)
        assert name in refused.value.message
        assert "--dicom" in refused.value.remedy


def test_what_cannot_be_written_is_told(tmp_path: Path, photograph: Path) -> None:
    """A folder that cannot be made, and an overlay that is no picture, end as an output error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_report(tmp_path / "file" / "out", source_of(photograph), SAID)
    with pytest.raises(OutputError, match="cannot be written of this source"):
        write_overlay(tmp_path, source_of(photograph), OVERLAY[..., :2], SAID)


def _identity() -> dict[str, Any]:
    return {
        "PatientID": "17",
        "PatientName": "A^B",
        "StudyInstanceUID": generate_uid(prefix=None),
        "SeriesInstanceUID": generate_uid(prefix=None),
    }
