"""Laws of telling DICOM from other files, and images of the patient from other objects."""

import contextlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from client.dicom_header import check_image, header_of, looks_like_dicom, read_file
from client.images import read_image
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


def explicit(tag: int, representation: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return an element of explicit VR (PS3.5 7.1.2), of a length that may lie."""
    claimed = len(value) if length is None else length
    wide = representation in (b"OB", b"OW", b"SQ", b"UN")
    form = "<HH2sxxI" if wide else "<HH2sH"
    return struct.pack(form, tag >> 16, tag & 0xFFFF, representation, claimed) + value


def implicit(tag: int, value: bytes, length: int) -> bytes:
    """Return an element of implicit VR (PS3.5 7.1.3), or an item, of a length that may lie."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + value


def meta(syntax: UID, group_length: int | None = None, more: bytes = b"") -> bytes:
    """Return preamble and file meta information (PS3.10 7.1)."""
    content = explicit(0x00020010, b"UI", syntax.encode() + b"\0" * (len(syntax) % 2)) + more
    length = struct.pack("<I", len(content) if group_length is None else group_length)
    return bytes(128) + b"DICM" + explicit(0x00020000, b"UL", length) + content


def deflated(content: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(content) + deflate.flush()


def liars(claim: int) -> dict[str, bytes]:
    """Return files of less than 1 KB in which one length is ``claim``."""
    plain, some, undefined = meta(ExplicitVRLittleEndian), bytes(300), 0xFFFFFFFF
    size = b"".join(explicit(tag, b"US", b"\x08\0") for tag in (0x00280010, 0x00280011))
    unknown, private = explicit(0x00081150, b"UN", some, claim), b"\x99" * 300
    return {
        "explicit": plain + explicit(0x00091001, b"OB", private, claim),
        "wanted": plain + explicit(0x00280010, b"UN", some, claim),
        "implicit": meta(ImplicitVRLittleEndian) + implicit(0x00080016, some, claim),
        "bare": implicit(0x00080016, b"1.2\0", 4) + implicit(0x00080060, some, claim),
        "characters": meta(ImplicitVRLittleEndian) + implicit(0x00080005, some, claim),
        "sequence": plain + explicit(0x00081140, b"SQ", some, claim),
        "item": plain
        + explicit(0x00081140, b"SQ", implicit(0xFFFEE000, unknown, claim), undefined),
        "open item": plain
        + explicit(0x00081140, b"SQ", implicit(0xFFFEE000, unknown, undefined), undefined),
        "group": meta(ExplicitVRLittleEndian, claim) + size,
        "meta": meta(ExplicitVRLittleEndian, more=explicit(0x00020102, b"OB", some, claim)),
        "command": plain + implicit(0x00000002, some, claim),
        "pixels": plain + size + explicit(0x7FE00010, b"OW", some, claim),
        "JPEG": meta(JPEGBaseline8Bit) + size + explicit(0x7FE00010, b"OB", some, claim),
        "deflated": meta(DeflatedExplicitVRLittleEndian)
        + deflated(size + explicit(0x7FE00010, b"OW", some, claim)),
        "deflated group": meta(DeflatedExplicitVRLittleEndian, claim) + deflated(size),
        "deflated meta": meta(
            DeflatedExplicitVRLittleEndian, more=explicit(0x00020102, b"OB", some, claim)
        ),
    }


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
@pytest.mark.parametrize("claim", [2**31, 2**32 - 2])
@pytest.mark.parametrize("what", liars(0))
def test_a_claimed_length_costs_no_memory(tmp_path: Path, what: str, claim: int) -> None:
    """Of an element that claims gigabytes, no more is asked for than the file has."""
    file = tmp_path / "a"
    file.write_bytes(liars(claim)[what])
    assert file.stat().st_size < 1024
    tracemalloc.start()
    with contextlib.suppress(ImageError):
        read_image(file, modality="other")
    for elements in ((), ("Rows", "Columns")):
        with contextlib.suppress(Exception):  # images.py names whatever pydicom raises
            header_of(file, elements)
    with contextlib.suppress(Exception):
        list(read_file(file).iterall())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("claim", [None, 2**31])
def test_an_inflation_is_bounded_whatever_the_group_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: int | None
) -> None:
    """A deflated file that unfolds to too much is refused, also where its group length lies."""
    monkeypatch.setattr("client.dicom_header.MAX_INFLATED", 2**20)
    content = explicit(0x7FE00010, b"OW", bytes(2**21))
    (tmp_path / "a").write_bytes(meta(DeflatedExplicitVRLittleEndian, claim) + deflated(content))
    with pytest.raises(ImageError, match="unfolds to more"):
        read_file(tmp_path / "a")
