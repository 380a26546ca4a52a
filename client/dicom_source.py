"""Whose image a DICOM source is, and which one: what an object that refers to it needs to know."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from pydicom import Dataset
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from client.dicom_header import header_of
from client.images import kind_of
from common.errors import ImageError

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate")
_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
OPTIONAL = (
    "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription",
)  # fmt: skip
"""Elements of patient and study that are copied where the source has them."""


def source_of(path: Path) -> tuple[Dataset, ...]:
    """Return what a report needs to know of a source: patient, study and instance, no pixels.

    Args:
        path: A DICOM file, or a folder with the files of one series.

    Returns:
        A data set for each instance, in the order of the files' names.

    Raises:
        ImageError: It is no DICOM, or does not say which study and patient it is of.
    """
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # its text would show the elements' values
        found = [_referable(f) for f in files if not path.is_dir() or kind_of(f) == "DICOM"]
    if not found:
        raise _no_source(path, "holds no DICOM")
    if len({(one.StudyInstanceUID, one.PatientID) for one in found}) > 1:
        raise _no_source(path, "holds several studies")
    return tuple(found)


def _referable(file: Path) -> Dataset:
    """Return a file's patient, study and identity; other elements may be wrong, and stay away."""
    try:
        kind = kind_of(file)
        header = header_of(file) if kind == "DICOM" else Dataset()
        header.decode()
    except ImageError as error:
        raise type(error)(f"{file}: {error.message}.", remedy=error.remedy) from error
    if kind != "DICOM":
        raise _no_source(file, "is no DICOM")
    if wrong := [name for name in _REQUIRED if not UID(str(header.get(name) or "")).is_valid]:
        raise _no_source(file, f"has no valid {', '.join(wrong)}")
    found = Dataset()
    for name in (*_REQUIRED, "Modality", "ImageOrientationPatient", "PatientOrientation"):
        if header.get(name):
            setattr(found, name, header.get(name))
    for name in (*_PATIENT, *_STUDY):  # required, and may be empty (PS3.3 C.7.1.1, C.7.2.1)
        setattr(found, name, _valid(name, header.get(name)))
    for name in OPTIONAL:
        if header.get(name):
            setattr(found, name, header.get(name))
    if found.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in found:
        found.DeidentificationMethod = "not stated by the source"  # C.7.1.1: 1C, so required then
    sex = str(header.get("PatientSex") or "")
    found.PatientSex = sex if sex in ("M", "F", "O") else ""
    side = str(header.get("ImageLaterality") or header.get("Laterality") or "")
    found.Laterality = side if side in ("L", "R") else ""
    found.SpecificCharacterSet = "ISO_IR 192"
    return found


def _valid(name: str, value: Any) -> Any:
    """Return a value, or nothing of a date or time that is none: these may be empty, not wrong."""
    if value and name.endswith(("Date", "Time")):
        with suppress(ValueError, TypeError):
            return f"{DA(str(value)):%Y%m%d}" if name.endswith("Date") else str(TM(str(value)))
        return ""
    return value or ""


def _no_source(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{path} {what}: a report would not know which study it belongs to.",
        remedy="Give the DICOM file that the image comes from, or predict without --dicom.",
    )
