"""Laws of telling DICOM from other files, and images of the patient from other objects."""

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.dicom_header import check_image, header_of, looks_like_dicom, read_file
from common.errors import ImageError, SetAsideError

IMAGES = (
    uid.CTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.OphthalmicPhotography8BitImageStorage,
    uid.OphthalmicTomographyImageStorage,
    uid.EnhancedUSVolumeStorage,
    uid.ParametricMapStorage,
    uid.BreastTomosynthesisImageStorage,
    uid.RTImageStorage,
)
OTHERS = (
    uid.SegmentationStorage,
    uid.SurfaceSegmentationStorage,
    uid.BasicTextSRStorage,
    uid.XRayRadiationDoseSRStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.RTStructureSetStorage,
    uid.RTPlanStorage,
    uid.RTDoseStorage,
    uid.RawDataStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.SpatialRegistrationStorage,
    uid.EncapsulatedPDFStorage,
    uid.MRSpectroscopyStorage,
    uid.TwelveLeadECGWaveformStorage,
    uid.RealWorldValueMappingStorage,
    uid.MediaStorageDirectoryStorage,
)


def header(sop_class: str, **elements: object) -> Dataset:
    """Return the header of an image of 8 x 8 pixels."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = sop_class
    found.Rows = found.Columns = 8
    for name, value in elements.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("sop_class", IMAGES, ids=lambda sop_class: sop_class.name)
def test_images_are_images(sop_class: UID) -> None:
    """Acquired, derived and captured images of every modality pass."""
    check_image(header(sop_class))


@pytest.mark.parametrize("sop_class", OTHERS, ids=lambda sop_class: sop_class.name)
def test_other_objects_are_set_aside_by_their_class(sop_class: UID) -> None:
    """An object that is no image is set aside by name, even where it has rows and columns."""
    with pytest.raises(SetAsideError, match=sop_class.name) as refusal:
        check_image(header(sop_class))
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("kinds", "aside"),
    [
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], True),
        (["ORIGINAL", "PRIMARY", "AXIAL"], False),
        (["LOCALIZER", "PRIMARY"], False),
        ("ORIGINAL", False),
        (None, False),
    ],
)
def test_localizers_are_set_aside(kinds: list[str] | str | None, aside: bool) -> None:  # noqa: FBT001 - the expected answer
    """What names itself LOCALIZER in the third value of its image type is set aside."""
    scout = header(uid.CTImageStorage, ImageType=kinds)
    if not aside:
        check_image(scout)
        return
    with pytest.raises(SetAsideError, match="localizer"):
        check_image(scout)


def test_a_private_object_is_an_image_if_it_has_rows() -> None:
    """A private SOP class is judged by what it holds."""
    private = header("1.3.46.670589.2.99")
    check_image(private)
    del private.Rows
    with pytest.raises(SetAsideError, match=r"private SOP class 1\.3\.46"):
        check_image(private)


def test_an_image_without_its_size_is_cut_short() -> None:
    """An image class without rows is a damaged image, not another object."""
    cut = header(uid.CTImageStorage)
    del cut.Rows
    with pytest.raises(ImageError, match="cut short") as refusal:
        check_image(cut)
    assert not isinstance(refusal.value, SetAsideError)


@pytest.mark.parametrize(
    ("start", "is_dicom"),
    [
        (b"\0" * 128 + b"DICM", True),
        (b"\x89PNG\r\n\x1a\n".ljust(128, b"\0") + b"DICM", True),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", True),
        (b"\x08\0\0\0\x04\0\0\0\x80\0\0\0", True),
        (b"\x02\0\0\0UL\x04\0", True),
        (b"\0\x08\0\x05CS\0\x0aISO_IR 100", True),
        (b"\x89PNG\r\n\x1a\n", False),
        (b"\xff\xd8\xff\xe0", False),
        (b"II*\0\x08\0\0\0", False),
        (b"path,label\n", False),
        (b"", False),
        (b"\x20\x08\0\x05\0CS\x0a", False),
        (b"\0\x08\0\x05\0\0\0\0", False),
    ],
)
def test_dicom_is_told_by_its_first_bytes(start: bytes, is_dicom: bool) -> None:  # noqa: FBT001 - the expected answer
    """A preamble, or a first element that a data set may begin with, is DICOM; nothing else is."""
    assert looks_like_dicom(start) is is_dicom


def test_a_header_can_be_read_in_part(shared: Path) -> None:
    """Only the elements that are asked for are kept, and never the pixels."""
    file = shared / "dicom/ct_small_128.dcm"
    assert "PixelData" not in header_of(file)
    part = header_of(file, ("SOPClassUID", "Rows", "Columns"))
    assert {element.keyword for element in part} <= {
        "SOPClassUID",
        "Rows",
        "Columns",
        "SpecificCharacterSet",
    }


def test_only_the_header_of_an_image_is_given(shared: Path) -> None:
    """What is set aside has no header to give, what is no DICOM neither."""
    assert read_file(shared / "dicom/sr_structured_report.dcm").Modality == "SR"
    with pytest.raises(SetAsideError):
        header_of(shared / "dicom/sr_structured_report.dcm")
    with pytest.raises(ImageError, match="no DICOM"):
        header_of(shared / "dicom/README.md")


def test_a_bare_data_set_is_named_by_how_it_is_written(shared: Path, tmp_path: Path) -> None:
    """A file without meta information gets the transfer syntax that it was found to have."""
    bare = dcmread(shared / "dicom/mr_small_implicit.dcm")
    del bare.file_meta
    bare.save_as(tmp_path / "a", implicit_vr=True, little_endian=True)
    assert header_of(tmp_path / "a").file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
