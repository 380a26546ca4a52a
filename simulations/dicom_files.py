"""Writes phantoms as DICOM files: CT Image Storage and MR Image Storage, one frame each.

Attributes follow PS3.3 A.3 (CT) and A.4 (MR) and the modules named beside them. All UIDs come from
the names of things, so the same study written twice is the same to the byte.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from simulations import anatomy_ct, anatomy_mr
from simulations.drawing import Phantom, Pixels

_AIR = -1024  # HU of the stored value 0
_SLICE_DISTANCE = 8.0  # millimetres


@dataclass(frozen=True)
class Origin:
    """Whose image it is, and of which study; all of it invented.

    Attributes:
        institution: Name of the hospital.
        scanner: The device's model.
        patient_id: The patient's identifier within the hospital.
        view: Number of the image within its series, from 0.
        seed: Tells the UIDs of two makings of the same hospital apart.
    """

    institution: str
    scanner: str
    patient_id: str
    view: int
    seed: int = 0

    def uid(self, *what: str | int) -> str:
        """Return the UID of a thing of this patient."""
        names = (self.seed, self.institution, self.patient_id, *what)
        return generate_uid(entropy_srcs=["rarefed phantom", *map(str, names)])


def write_dicom(
    path: Path, phantom: Phantom, *, modality: Literal["CT", "MR"], origin: Origin
) -> None:
    """Write a CT or MR phantom as a DICOM file in explicit VR little endian.

    Args:
        path: The file; its folder must exist.
        phantom: With int16 Hounsfield units (CT) or uint16 (MR), (H, W).
        modality: Which of both it is.
        origin: Patient, study and device.
    """
    dataset = Dataset()
    _add_patient_and_study(dataset, modality, origin)
    _add_plane(dataset, modality, origin)
    if modality == "CT":
        _add_ct(dataset)
        # PS3.3 C.11.1: HU = slope * stored + intercept.
        _add_pixels(dataset, (phantom.pixels.astype(np.int32) - _AIR).astype(np.uint16))
    else:
        _add_mr(dataset, phantom.pixels)
        _add_pixels(dataset, phantom.pixels.astype(np.uint16))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, dataset, enforce_file_format=True)


def _add_patient_and_study(dataset: Dataset, modality: str, origin: Origin) -> None:
    storage = CTImageStorage if modality == "CT" else MRImageStorage
    # PS3.3 C.12.1 SOP Common
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = storage
    dataset.SOPInstanceUID = origin.uid(modality, "image", origin.view)
    dataset.SyntheticData = "YES"  # (0008,001C), in the standard since 2023
    # PS3.3 C.7.1.1 Patient
    dataset.PatientName = f"Phantom^{origin.patient_id}"
    dataset.PatientID = origin.patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    # PS3.3 C.7.2.1 General Study
    dataset.StudyInstanceUID = origin.uid("study")
    dataset.StudyDate = "20250101"
    dataset.StudyTime = "120000"
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = "1"
    dataset.AccessionNumber = ""
    # PS3.3 C.7.3.1 General Series
    dataset.Modality = modality
    dataset.SeriesInstanceUID = origin.uid(modality, "series")
    dataset.SeriesNumber = 1
    dataset.PatientPosition = "HFS"
    dataset.BodyPartExamined = "ABDOMEN" if modality == "CT" else "BRAIN"
    # PS3.3 C.7.5.1 General Equipment
    dataset.Manufacturer = "rarefed"
    dataset.InstitutionName = origin.institution
    dataset.ManufacturerModelName = origin.scanner


def _add_plane(dataset: Dataset, modality: str, origin: Origin) -> None:
    anatomy = anatomy_ct if modality == "CT" else anatomy_mr
    spacing = anatomy.PIXEL_SPACING
    # PS3.3 C.7.4.1 Frame of Reference
    dataset.FrameOfReferenceUID = origin.uid("frame of reference")
    dataset.PositionReferenceIndicator = ""
    # PS3.3 C.7.6.1 General Image
    dataset.InstanceNumber = origin.view + 1
    dataset.BurnedInAnnotation = "NO"
    # PS3.3 C.7.6.2 Image Plane: axial, the first pixel at the patient's right front corner
    corner = -spacing * (anatomy.SIZE - 1) / 2
    dataset.PixelSpacing = [spacing, spacing]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [corner, corner, _SLICE_DISTANCE * origin.view]
    dataset.SliceThickness = 5


def _add_ct(dataset: Dataset) -> None:
    # PS3.3 C.8.2.1 CT Image
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.AcquisitionNumber = 1
    dataset.KVP = 120
    dataset.RescaleIntercept = _AIR
    dataset.RescaleSlope = 1
    dataset.RescaleType = "HU"
    # PS3.3 C.11.2 VOI LUT: soft tissue
    dataset.WindowCenter = 40
    dataset.WindowWidth = 400


def _add_mr(dataset: Dataset, pixels: Pixels) -> None:
    # PS3.3 C.8.3.1 MR Image: a T2-weighted fast spin echo, fat suppressed
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ScanningSequence = "SE"
    dataset.SequenceVariant = "SK"
    dataset.ScanOptions = "FS"
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime = 4500
    dataset.EchoTime = 95
    dataset.EchoTrainLength = 15
    # PS3.3 C.11.2 VOI LUT: from nothing to the brightest fluid
    brightest = max(2, int(np.percentile(pixels, 99.5)))
    dataset.WindowCenter = brightest / 2
    dataset.WindowWidth = brightest


def _add_pixels(dataset: Dataset, stored: NDArray[np.uint16]) -> None:
    # PS3.3 C.7.6.3 Image Pixel
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
