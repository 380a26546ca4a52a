"""What one file brings to the draft of a manifest; runs in processes of its own."""

import re
import warnings
from datetime import date
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset

from client.dicom_facts import facts_of
from client.dicom_header import frame_count, header_of
from client.images import kind_of
from client.series import ELEMENTS
from common.errors import ImageError

UNREADABLE = "it cannot be read"


class Found(NamedTuple):
    """What is in one file."""

    path: Path
    kind: str
    """What the image is, as ``Facts.kind`` has it; or why it is set aside."""
    cells: dict[str, str] | None
    """Cells of its row; None if it is set aside."""
    is_slice: bool = False
    """Whether it is one slice of a volume: an image of one frame with a place in the patient."""


def look(path: Path) -> Found:
    """Look into a file, as far as its header; whatever it is, nothing is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values of no known form say nothing, and no more
            kind = kind_of(path)
            if kind != "DICOM":
                return Found(path, kind, {})
            header = header_of(path, ELEMENTS)
            return Found(path, kind, cells_of(header), _is_slice(header))
    except ImageError as error:
        return Found(path, error.message, None)
    except Exception:  # noqa: BLE001 - a damaged header can raise anything
        return Found(path, UNREADABLE, None)


def cells_of(header: Dataset) -> dict[str, str]:
    """Return what a header says of an image, by the manifest's columns."""
    facts = facts_of(header, header, kind="DICOM", slices=1)
    return {
        "patient_id": _text(header, "PatientID"),  # PS3.3 C.7.1.1
        "laterality": facts.laterality,
        "date": _date(header),
        "scanner": facts.scanner,
        "age": facts.age,
        "sex": facts.sex,
        "modality": _text(header, "Modality"),  # PS3.3 C.7.3.1.1.1
        "series": _text(header, "SeriesInstanceUID"),  # PS3.3 C.7.3.1
    }


def _is_slice(header: Dataset) -> bool:
    # PS3.3 C.7.6.2.1.1: the modules of planes alone have a position; a photograph has none
    has_place = bool(header.get("ImagePositionPatient")) and "SeriesInstanceUID" in header
    return has_place and frame_count(header) == 1


def _text(header: Dataset, keyword: str) -> str:
    """Return an element's text on one line, as it would be read again; several values are none."""
    value = header.get(keyword)
    if value is None or not isinstance(value, str):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _date(header: Dataset) -> str:
    """Return the day of the study as ISO 8601 has it."""
    text = _text(header, "StudyDate")  # PS3.3 C.7.2.1
    if not re.fullmatch(r"\d{8}", text, re.ASCII):  # PS3.5, 6.2, DA
        return ""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        return ""
