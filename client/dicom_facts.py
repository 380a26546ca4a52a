"""What a DICOM header says of patient and scanner that subgroup reports and the gate need.

Clauses are those of PS3.3. Free text, names and keys of the patient are not among it.
"""

import re
from collections.abc import Sequence
from datetime import date

from pydicom import Dataset

from client.dicom_geometry import orientation_of
from client.manifest_columns import MAX_TEXT, age_band
from client.pictures import Facts

OLDEST = 120
"""An age in years beyond which a date of birth is a placeholder."""

_AGE = re.compile(r"(\d{3})([DWMY])", re.ASCII)
_A_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
_HOUNSFIELD = "[hnsf'U]"  # in the Unified Code for Units of Measure, as C.7.6.16.2.11 asks for


def facts_of(
    header: Dataset, view: Dataset, *, kind: str, slices: int, notes: Sequence[str] = ()
) -> Facts:
    """Return what a header says beside its pixels.

    Args:
        header: Of the file, or of the first slice that is read.
        view: Of the first frame that is read; the header itself where there is one frame.
        kind: DICOM or DICOM series.
        slices: How many slices or frames there are.
        notes: Codes of what is odd already; those of this view are added.
    """
    return Facts(
        kind=kind,
        rows=int(header.Rows),
        columns=int(header.Columns),
        slices=slices,
        scanner=_scanner(header),
        sex=_one_of(header.get("PatientSex"), "MFO"),  # C.7.1.1
        age=_age(header),
        laterality=_laterality(header, view),
        burned_in=_burned_in(header),
        orientation=orientation_of(view),
        notes=(*notes, *_notes(header, view)),
    )


def _scanner(header: Dataset) -> str:
    # C.7.5.1: Manufacturer, Manufacturer's Model Name
    names = (str(header.get(name) or "") for name in ("Manufacturer", "ManufacturerModelName"))
    return " ".join(" ".join(names).split())[:MAX_TEXT].strip()


def _age(header: Dataset) -> str:
    # C.7.2.2 and PS3.5 6.2: three digits and a unit
    if found := _AGE.fullmatch(str(header.get("PatientAge") or "")):
        return _band(int(int(found[1]) / _A_YEAR[found[2]]))
    born, seen = _date(header, "PatientBirthDate"), _date(header, "StudyDate")
    if born is None or seen is None:
        return ""
    return _band(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def _band(years: int) -> str:
    return age_band(years) if 0 <= years <= OLDEST else ""


def _date(header: Dataset, name: str) -> date | None:
    text = str(header.get(name) or "").replace(".", "")  # PS3.5 6.2: ACR-NEMA wrote 1996.10.29
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None


def _laterality(header: Dataset, view: Dataset) -> str:
    # C.8.11.7 Image Laterality; C.7.6.16.2.8 Frame Laterality; C.7.3.1 Laterality, of a series
    for found in (
        header.get("ImageLaterality"),
        view.get("FrameLaterality"),
        header.get("Laterality"),
    ):
        if side := _one_of(found, "LR"):
            return side
    return ""


def _burned_in(header: Dataset) -> str:
    found = str(header.get("BurnedInAnnotation") or "")  # C.7.6.1
    return found if found in ("YES", "NO") else ""


def _one_of(found: object, letters: str) -> str:
    text = str(found or "").upper()
    return text if len(text) == 1 and text in letters else ""


def _notes(header: Dataset, view: Dataset) -> list[str]:
    notes = []
    if "WindowCenter" in view and view["WindowCenter"].VM > 1:
        notes.append("several_windows")  # C.11.2.1.2: alternatives, of which the first is taken
    units = view.get("MeasurementUnitsCodeSequence")
    if units and header.get("Modality") == "CT" and units[0].get("CodeValue") != _HOUNSFIELD:
        notes.append("other_unit")  # a map of flow, say, in the values of a CT
    return notes
