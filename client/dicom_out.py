"""Predictions as DICOM that a PACS can show beside the images: a report, and a picture of overlays.

Both are new instances of the source's study, in series of their own, and name the very instances
that they are of. Patient and study are copied from the source. Identifiers are UUIDs under 2.25
(PS3.5 B.2), which need no registered root. Shapes: H rows, W columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sc import SCImage
from highdicom.spatial import get_closest_patient_orientation
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.dicom_source import OPTIONAL
from common.errors import OutputError
from common.files import replacing
from common.versions import software_version

NOTICE = "Not a medical device: for research alone, not for the care of a patient."
SCHEME = "99RAREFED"
"""Coding scheme of what no standard scheme has a code for (PS3.16 8.2: private ones begin 99)."""
MAKER = "rarefed"
_REPORT_SERIES, _OVERLAY_SERIES = 9801, 9802
_LO = 64  # characters of a Long String (PS3.5 6.2)
_PRIVATE = 0o600
_UNIT = codes.UCUM.NoUnits


class Statement(NamedTuple):
    """What is said of one source, in the words of its report."""

    task: str
    label: str
    """Class that the source is said to be of."""
    probabilities: Mapping[str, float]
    """By class."""
    model: str
    """Name of the model, for example its study and round."""
    sha256: str
    """Digest of the model."""
    likeness: str
    """Whether the source is like the site's training images, in a sentence."""
    threshold: float | None = None
    """Probability of the positive class from which on it is said; None where none is known."""
    notes: Sequence[str] = ()
    """What else a reader must know."""


def write_report(folder: Path, source: Sequence[Dataset], said: Statement) -> Path:
    """Write a prediction as a Comprehensive SR in the form of TID 1500 (PS3.16).

    Args:
        folder: Where the file goes, under its own UID; it is readable by its owner alone.
        source: What it is of, as ``dicom_source.source_of`` gives it.
        said: The prediction.

    Raises:
        OutputError: It cannot be written.
    """
    with _building():
        report = _report(source, said)
    return _save(folder, report)


def write_overlay(
    folder: Path, source: Sequence[Dataset], overlay_HW3: NDArray[np.uint8], said: Statement
) -> Path:
    """Write a picture of where the model looked as a Secondary Capture.

    Args:
        folder: Where the file goes, under its own UID; it is readable by its owner alone.
        source: What it is of, as ``dicom_source.source_of`` gives it.
        overlay_HW3: Red, green and blue, shape (H, W, 3).
        said: The prediction that it explains.

    Raises:
        OutputError: It cannot be written.
    """
    with _building():
        image = _overlay(source, overlay_HW3, said)
    return _save(folder, image)


@contextmanager
def _building() -> Iterator[None]:
    """Make a refusal of what highdicom raises, and let its warnings not print a patient's name."""
    try:
        with catch_warnings():
            simplefilter("ignore", UserWarning)
            yield
    except Exception as error:  # it raises whatever it finds wrong in the source's header
        raise OutputError(
            f"DICOM cannot be written of this source ({type(error).__name__}: {error}).",
            remedy="Export the image from the PACS again, or predict without --dicom.",
        ) from error


def _report(source: Sequence[Dataset], said: Statement) -> ComprehensiveSR:
    return ComprehensiveSR(
        evidence=list(source),
        content=_content(source, said),
        series_instance_uid=generate_uid(prefix=None),
        series_number=_REPORT_SERIES,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MAKER,
        is_complete=True,
        is_final=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=_long(f"{said.task}: prediction (not a medical device)"),
        manufacturer_model_name=_long(said.model),
        software_versions=software_version(),
        device_serial_number=said.sha256,
        specific_character_set="ISO_IR 192",
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=MAKER)],
    )


def _overlay(source: Sequence[Dataset], overlay_HW3: NDArray[np.uint8], said: Statement) -> SCImage:
    first = source[0]
    image = SCImage.from_ref_dataset(
        first,
        pixel_array=np.ascontiguousarray(overlay_HW3),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=generate_uid(prefix=None),
        series_number=_OVERLAY_SERIES,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MAKER,
        patient_orientation=("L", "P"),  # overwritten below by the source's own
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=_long(f"{said.task}: attention (not a medical device)"),
        manufacturer_model_name=_long(said.model),
        software_versions=software_version(),
        device_serial_number=said.sha256,
        specific_character_set="ISO_IR 192",
    )
    image.PatientOrientation = _orientation(first)
    image.Laterality = first.Laterality
    for name in OPTIONAL:
        if name in first:
            setattr(image, name, first.get(name))
    image.BurnedInAnnotation = "YES"
    image.DerivationDescription = f"{said.model}, {said.task}. {NOTICE}"
    image.SourceImageSequence = [_reference(one) for one in source]
    return image


def _content(source: Sequence[Dataset], said: Statement) -> MeasurementReport:
    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(prefix=None, entropy_srcs=[said.sha256]),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=said.model,
        serial_number=said.sha256,
    )
    observer = ObserverContext(codes.DCM.Device, device)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(generate_uid(prefix=None), said.task),
        algorithm_id=AlgorithmIdentification(
            name=said.model, version=f"SHA-256 {said.sha256}", parameters=[f"task {said.task}"]
        ),
        measurements=_measurements(said),
        qualitative_evaluations=[
            QualitativeEvaluation(
                _concept("predicted-class", "Predicted class"),
                _concept(f"class-{list(said.probabilities).index(said.label)}", said.label),
            )
        ],
        source_images=[
            SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID) for one in source
        ],
    )
    # TID 1501 may be extended: what no measurement can say stands in words.
    group[0].ContentSequence.extend(
        TextContentItem(codes.DCM.Comment, text, RelationshipTypeValues.CONTAINS)
        for text in (NOTICE, said.likeness, *said.notes)
    )
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
    )


def _measurements(said: Statement) -> list[Measurement]:
    found = [
        Measurement(_concept(f"probability-{i}", f"Probability of {name}"), round(value, 6), _UNIT)
        for i, (name, value) in enumerate(said.probabilities.items())
    ]
    if said.threshold is not None:
        name = _concept("threshold", "Probability at the operating point")
        found.append(Measurement(name, round(said.threshold, 6), _UNIT))
    return found


def _concept(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, _long(meaning))


def _orientation(source: Dataset) -> list[str]:
    """Return where rows and columns point to (PS3.3 C.7.6.1.1.1); nothing where it is unknown."""
    if axes := source.get("ImageOrientationPatient"):
        affine = np.eye(4)
        along_row, along_column = np.array(axes[:3], float), np.array(axes[3:], float)
        affine[:3, :3] = np.stack(
            [along_row, along_column, np.cross(along_row, along_column)], axis=1
        )
        return [end.value for end in get_closest_patient_orientation(affine)][:2]
    return list(source.get("PatientOrientation") or [])


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return item


def _save(folder: Path, dataset: Dataset) -> Path:
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, mode=_PRIVATE) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror}.", remedy="Give a folder that can be written."
        ) from error
    return path


def _long(text: str) -> str:
    """Return as much of a text as a Long String holds, without what it may not hold."""
    return text.replace("\\", "/")[:_LO].strip()
