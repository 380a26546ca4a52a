"""Laws of reading DICOM files; pydicom and arithmetic by hand are the reference."""

import contextlib
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from client.dicom import read_dicom
from client.images import read_image, read_images
from client.pictures import Facts, Reading, Stack
from common.errors import ImageError, SetAsideError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

WriteDicom = Callable[..., Path]

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 40


def read(path: Path, modality: str = "other", slices: str = "one") -> tuple[Stack, Facts]:
    """Read a file for a task of a modality."""
    return read_dicom(path, Reading(modality, None, slices))


def shown(path: Path) -> NDArray[np.float32]:
    """Return the only slice of a file as it asks to be shown."""
    stack, _ = read(path)
    assert stack.unit == "shown"
    values: NDArray[np.float32] = stack.values[0]
    return values


class Values(NamedTuple):
    """The fate of a file that is read: its slices, and their least and greatest value."""

    modality: str
    unit: str
    shape: tuple[int, ...]
    low: float
    high: float


class Refused(NamedTuple):
    """The fate of a file that is not read: how, and words of the reason."""

    error: type[ImageError]
    words: str


GE = Values("CT", "hounsfield", (1, 512, 512), -1024, 1254)  # its padding left out
TOSHIBA = Values("MR", "signal", (1, 64, 64), 127, 2145)
EMRI = Values("MR", "signal", (10, 64, 64), 0, 467)
FATES = {
    "ct_ge_uncompressed.dcm": GE,
    "ct_ge_jpll.dcm": GE,
    "ct_ge_jlsl.dcm": GE,
    "ct_ge_j2kr.dcm": GE,
    "ct_ge_rle.dcm": GE,
    # Lossy: where -2000 is padding, neighbours of -2000 are not
    "ct_ge_jlsn.dcm": GE._replace(low=-3028),
    "ct_ge_j2ki.dcm": GE._replace(low=-3339, high=1385),
    "ct_small_128.dcm": Values("CT", "hounsfield", (1, 128, 128), -896, 1167),
    "ct_enhanced_multiframe.dcm": Values("CT", "hounsfield", (2, 512, 512), -1024, 172),
    "ct_693_j2kr_bits_mismatch.dcm": Values("CT", "hounsfield", (1, 512, 512), -1024, 1468),
    "ct_ge_hispeed_tilt_a.dcm": Values("CT", "hounsfield", (1, 512, 512), -1023, 1712),
    "ct_ge_hispeed_tilt_b.dcm": Values("CT", "hounsfield", (1, 512, 512), -1023, 1735),
    "ct_philips_ingenuity_noext": Values("CT", "hounsfield", (1, 512, 512), -1024, 783),
    "ct_dcmqi_slice1.dcm": Values("CT", "hounsfield", (1, 512, 512), -1024, 1381),
    "bad_un_sequence.dcm": Values("CT", "hounsfield", (1, 512, 512), -1011, 1243),
    "explicit_vr_un.dcm": Values("CT", "hounsfield", (1, 512, 512), -1024, 1186),
    "mr_small.dcm": TOSHIBA,
    "mr_small_bigendian.dcm": TOSHIBA,
    "mr_small_implicit.dcm": TOSHIBA,
    "mr_small_rle.dcm": TOSHIBA,
    "mr_small_jpeg_ls_lossless.dcm": TOSHIBA,
    "mr_small_padded.dcm": TOSHIBA,
    "mr1_jlsl.dcm": Values("MR", "signal", (1, 512, 512), 0, 4000),
    "mr_siemens_overlays.dcm": Values("MR", "signal", (1, 484, 484), 0, 1123),
    "mr_jpeg_extended_12bit.dcm": Values("MR", "signal", (1, 512, 512), -19595, 961.8046),
    "mr_canon_galan_dti.dcm": Values("MR", "signal", (1, 64, 64), 0, 11637),
    "mr_philips_classic.dcm": Values("MR", "signal", (1, 256, 256), 0, 1331.9766),
    "emri_small.dcm": EMRI,
    "emri_small_jpeg_2k_lossless.dcm": EMRI,
    "emri_small_jpeg_ls_lossless.dcm": EMRI,
    "mr_siemens_xa30_enhanced.dcm": Values("MR", "signal", (33, 64, 64), 0, 2265),
    "mr_philips_enhanced.dcm": Values("MR", "signal", (40, 96, 96), 0, 403.1),
    "mr_agfa_pacs.img": Values("MR", "signal", (25, 64, 64), 0, 2633),
    "cr_mono1_j2ki.dcm": Values("other", "shown", (1, 1760, 1760), 0, 1023),
    "cr_fuji_jlsn.dcm": Values("other", "shown", (1, 2140, 1760), 0, 897),
    "xa_rle.dcm": Values("other", "shown", (1, 1024, 1024), 0, 504),
    "palette_color_rle.dcm": Values("other", "shown", (1, 600, 800, 3), 0, 0.99611),
    "bad_ot_no_meta.dcm": Values("other", "shown", (1, 480, 640, 3), 0, 0.99611),
    "sc_ybr_full_422.dcm": Values("other", "shown", (1, 100, 100, 3), 0, 1),
    "vl_rgb_j2ki.dcm": Values("fundus", "shown", (1, 486, 756, 3), 0, 1),
    "htj2k_lossless_rgb.dcm": Values("other", "shown", (1, 480, 640, 3), 0, 1),
    "voi_lut_sequence.dcm": Values("other", "shown", (1, 512, 512), 0, 255),
    "modality_lut_sequence.dcm": Values("other", "shown", (1, 512, 512), 0, 65535),
    "deflated_explicit.dcm": Values("other", "shown", (1, 512, 512), 0, 255),
    "parametric_map_float.dcm": Values("other", "shown", (1, 128, 128), 0, 0.941579),
    "ct_philips_private_noext": Refused(SetAsideError, "Media Storage Directory"),
    "seg_liver_dcmqi.dcm": Refused(SetAsideError, "Segmentation Storage"),
    "mr_siemens_phoenix_report.dcm": Refused(SetAsideError, "Enhanced SR Storage"),
    "mr_philips_rawdata.dcm": Refused(SetAsideError, "Raw Data Storage"),
    "sr_structured_report.dcm": Refused(SetAsideError, "Comprehensive SR Storage"),
    "bad_vr_values.dcm": Refused(SetAsideError, "RT Dose Storage"),
    "bad_rtplan_truncated.dcm": Refused(SetAsideError, "RT Plan Storage"),
    "emri_small_jpeg_2k_lossless_too_short.dcm": Refused(ImageError, "cut short"),
    "synthetic_ct_j2kr_cut_half.dcm": Refused(ImageError, "cut short"),
    "mr_truncated.dcm": Refused(ImageError, "less than expected"),
    "bad_meta_missing_tsyntax.dcm": Refused(ImageError, "holds no image"),
    "bad_no_file_meta.dcm": Refused(ImageError, "no known kind"),
    "j2k_embedded_delimiter.dcm": Refused(ImageError, "its pixels are 3722445056 x 1024"),
    "synthetic_empty.dcm": Refused(ImageError, "file is empty"),
    "synthetic_png_named.dcm": None,  # a PNG: the bytes decide, not the name
}


def test_every_real_file_has_a_fate(shared: Path) -> None:
    """The table below names every file of the folder, and no other."""
    found = {path.name for path in (shared / "dicom").iterdir()} - {"README.md"}
    assert found == set(FATES)


@pytest.mark.parametrize("name", [n for n, fate in FATES.items() if isinstance(fate, Values)])
def test_real_files_are_read(shared: Path, name: str) -> None:
    """A real file gives the slices, unit, least and greatest value that the table says."""
    fate = FATES[name]
    assert isinstance(fate, Values)
    stack, facts = read(shared / "dicom" / name, fate.modality, "all")
    assert (stack.unit, stack.values.shape, stack.values.dtype) == (fate.unit, fate.shape, "f4")
    assert (facts.low, facts.high) == pytest.approx((fate.low, fate.high), rel=1e-5)
    assert facts.kind == "DICOM"
    assert (facts.slices, facts.rows, facts.columns) == fate.shape[:3]
    assert len(stack.parts) == fate.shape[0]
    if stack.unit == "shown":
        assert 0 <= stack.values.min() < stack.values.max() <= 1


@pytest.mark.parametrize("name", [n for n, fate in FATES.items() if isinstance(fate, Refused)])
def test_real_bad_files_are_refused(shared: Path, name: str) -> None:
    """A bad real file is refused with its name, the table's reason, its class and a remedy."""
    fate = FATES[name]
    assert isinstance(fate, Refused)
    with pytest.raises(ImageError, match=fate.words) as refusal:
        read_images(shared / "dicom" / name, Reading("other", None, "all"))
    assert type(refusal.value) is fate.error
    assert name in refusal.value.message
    assert refusal.value.remedy


def test_a_png_with_a_dicoms_name_is_a_png(shared: Path) -> None:
    """The bytes of a file decide what it is, not its name."""
    assert read_image(shared / "dicom/synthetic_png_named.dcm", modality="CT").shape == (213, 315)


def test_lossless_compression_changes_nothing(shared: Path) -> None:
    """One image in all lossless encodings gives one array, bit for bit, as pydicom has it."""
    folder = shared / "dicom"
    plain = dcmread(folder / "ct_ge_uncompressed.dcm")
    expected = apply_modality_lut(plain.pixel_array, plain)
    padding = plain.pixel_array == plain.PixelPaddingValue
    for kind in ("uncompressed", "jpll", "jlsl", "j2kr", "rle"):
        values = read(folder / f"ct_ge_{kind}.dcm", "CT")[0].values[0]
        np.testing.assert_array_equal(values[~padding], expected[~padding])
        assert (values[padding] == -1000).all()
    mr = read(folder / "mr_small.dcm", "MR")[0].values
    for kind in ("bigendian", "implicit", "padded", "rle", "jpeg_ls_lossless"):
        np.testing.assert_array_equal(read(folder / f"mr_small_{kind}.dcm", "MR")[0].values, mr)
    frames = read(folder / "emri_small.dcm", "MR", "all")[0].values
    for kind in ("2k", "ls"):
        file = folder / f"emri_small_jpeg_{kind}_lossless.dcm"
        np.testing.assert_array_equal(read(file, "MR", "all")[0].values, frames)


def test_an_extended_jpeg_with_a_wrong_scan_header_is_decoded(shared: Path) -> None:
    """The 12 bits of an image whose scan claims to end at coefficient 0 are all there."""
    dataset = dcmread(shared / "dicom/mr_jpeg_extended_12bit.dcm")
    values = read(shared / "dicom/mr_jpeg_extended_12bit.dcm", "MR")[0].values[0]
    stored = (values - float(dataset.RescaleIntercept)) / float(dataset.RescaleSlope)
    # gdcm 3.2 decodes it too, with a complaint and a broken heap; these are its values
    np.testing.assert_allclose(
        stored[256, 200:208], [1990, 1993, 1997, 2001, 2003, 2003, 2001, 1999], atol=0.1
    )


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_the_syntax_of_the_header_changes_nothing(
    tmp_path: Path, syntax: UID, write_dicom: WriteDicom
) -> None:
    """Implicit, big endian and deflated files give the values of an explicit little endian one."""
    file = write_dicom(tmp_path / "a", RAMP, syntax=syntax)
    np.testing.assert_array_equal(shown(file), shown(write_dicom(tmp_path / "b", RAMP)))


def test_a_file_without_meta_information_is_read(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """Without preamble and file meta, implicit, explicit and big endian data sets are read."""
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        whole = dcmread(write_dicom(tmp_path / "a", RAMP, syntax=syntax))
        del whole.file_meta
        implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
        whole.save_as(tmp_path / "b", implicit_vr=implicit, little_endian=little)
        np.testing.assert_allclose(shown(tmp_path / "b"), RAMP / 4095, atol=1e-6)


def test_hounsfield_units_are_stored_values_rescaled(
    tmp_path: Path, write_dicom: WriteDicom
) -> None:
    """A CT value is stored * slope + intercept, whatever its photometric interpretation says."""
    for name in ("MONOCHROME1", "MONOCHROME2"):
        file = write_dicom(
            tmp_path / name,
            RAMP,
            Modality="CT",
            RescaleSlope="2",
            RescaleIntercept="-1024",
            PhotometricInterpretation=name,
        )
        stack, facts = read(file, "CT")
        np.testing.assert_array_equal(stack.values[0], RAMP * 2.0 - 1024)
        assert (stack.unit, stack.inverted) == ("hounsfield", False)
        assert (facts.low, facts.high) == (-1024, 63 * 80 - 1024)


def test_modalities_are_not_mistaken_for_each_other(
    tmp_path: Path, write_dicom: WriteDicom
) -> None:
    """MR and PET are refused in a task of CT, CT in one of MR; a capture (OT) in none."""
    for own, task in (("MR", "CT"), ("PT", "CT"), ("CT", "MR")):
        file = write_dicom(tmp_path / own, RAMP, Modality=own)
        with pytest.raises(ImageError, match=f"modality is {own}, the task's is {task}"):
            read(file, task)
    assert read(write_dicom(tmp_path / "a", RAMP), "MR")[0].unit == "signal"


@pytest.mark.parametrize("name", ["MONOCHROME1", "MONOCHROME2"])
def test_the_signal_of_mr_is_rescaled_and_not_turned_over(
    tmp_path: Path, name: str, write_dicom: WriteDicom
) -> None:
    """MR keeps its sign and scale; that the least value is the brightest is said beside it."""
    elements = {"RescaleSlope": "2.5", "RescaleIntercept": "-7", "PhotometricInterpretation": name}
    stack, _ = read(write_dicom(tmp_path / "a", RAMP, Modality="MR", **elements), "MR")
    np.testing.assert_allclose(stack.values[0], RAMP * 2.5 - 7)
    assert (stack.unit, stack.inverted) == ("signal", name == "MONOCHROME1")


def test_signed_pixels_keep_their_sign(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """Two's complement of 12 bits is read as such, also where the unused bits are 0."""
    stored = np.array([[-2048, -1], [0, 2047]], dtype=np.int16)
    plain = write_dicom(tmp_path / "a", stored)
    bare = write_dicom(tmp_path / "b", stored & 0x0FFF)
    for file in (plain, bare):
        np.testing.assert_array_equal(read(file, "MR")[0].values[0], stored)


def test_overlays_in_unused_bits_are_cleared(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """Bits above or below the stored ones, where overlays once were, do not count."""
    above = write_dicom(tmp_path / "a", RAMP | np.uint16(0xF000))
    np.testing.assert_array_equal(read(above, "MR")[0].values[0], RAMP)
    below = write_dicom(tmp_path / "b", RAMP << 4 | np.uint16(0x000F), HighBit=15)
    np.testing.assert_array_equal(read(below, "MR")[0].values[0], RAMP)


@pytest.mark.parametrize("kind", ["Float", "DoubleFloat"])
def test_pixels_may_be_floats(tmp_path: Path, kind: str, write_dicom: WriteDicom) -> None:
    """Floats of 32 and 64 bits are read as they are; without a window, their own range is shown."""
    values = np.linspace(-0.5, 2.5, 64, dtype="f4" if kind == "Float" else "f8").reshape(8, 8)
    dataset = dcmread(write_dicom(tmp_path / "a", RAMP))
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.BitsAllocated = 8 * values.itemsize
    setattr(dataset, f"{kind}PixelData", values.tobytes())
    dataset.save_as(tmp_path / "a")
    stack, facts = read(tmp_path / "a", "MR")
    np.testing.assert_allclose(stack.values[0], values, rtol=1e-6)
    assert (facts.low, facts.high) == (-0.5, 2.5)
    np.testing.assert_allclose(shown(tmp_path / "a"), (values + 0.5) / 3, atol=1e-6)
    setattr(dataset, f"{kind}PixelPaddingValue", 2.5)
    dataset.WindowCenter, dataset.WindowWidth = "0.5", "1"
    dataset.save_as(tmp_path / "b")
    expected = np.where(values == 2.5, 0, values.clip(0, 1))
    np.testing.assert_allclose(shown(tmp_path / "b"), expected, atol=1e-6)
    setattr(dataset, f"{kind}PixelData", np.full_like(values, np.nan).tobytes())
    dataset.save_as(tmp_path / "c")
    with pytest.raises(ImageError, match="not finite"):
        read(tmp_path / "c", "MR")


def test_colour_keeps_its_channels(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """RGB by pixel or by plane is divided by 255; YBR_FULL becomes the RGB that it was made of."""
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    by_pixel = {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    by_plane = by_pixel | {"PlanarConfiguration": 1, "PixelData": rgb.transpose(2, 0, 1).tobytes()}
    for elements in (by_pixel, by_plane):
        file = write_dicom(tmp_path / "a", rgb, **elements)
        np.testing.assert_allclose(shown(file), rgb / 255, atol=1e-6)
    # PS3.3 C.7.6.3.1.2, by hand
    to_ybr = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    ybr = np.rint(rgb @ to_ybr.T + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    file = write_dicom(
        tmp_path / "b", ybr, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0
    )
    np.testing.assert_allclose(shown(file), rgb / 255, atol=2.5 / 255)


def test_a_colour_image_is_shown_in_every_task(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """A colour capture has neither Hounsfield units nor a signal, whatever the task is."""
    rgb = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    elements = {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    file = write_dicom(tmp_path / "a", rgb, **elements)
    for modality in ("CT", "MR", "fundus"):
        assert read(file, modality)[0].unit == "shown"


@pytest.mark.parametrize("name", ["ct_small_128.dcm", "ct_ge_j2kr.dcm", "palette_color_rle.dcm"])
def test_a_file_cut_anywhere_is_refused(shared: Path, tmp_path: Path, name: str) -> None:
    """A DICOM cut at any place before its pixels end is an ImageError and nothing else."""
    content = (shared / "dicom" / name).read_bytes()
    for share in (0.0001, 0.002, 0.01, 0.05, 0.2, 0.5, 0.8):
        file = tmp_path / "cut"
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageError):
            read_image(file, modality="other")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": "2"}, "2 slices or frames"),
        ({"NumberOfFrames": str(2**31 - 1)}, "claims 2147483647 frames"),
        ({"NumberOfFrames": "-1"}, "claims -1 frames"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": None}, "holds no image"),
        ({"Rows": 0}, "0 rows"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels are more"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "one bit a pixel"),
        ({"PhotometricInterpretation": "CMYK"}, "CMYK"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, "YBR_PARTIAL_422"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "same value"),
        ({"WindowCenter": "5", "WindowWidth": "0"}, "Window Width"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
    ],
)
def test_odd_headers_are_refused(
    tmp_path: Path, elements: dict[str, object], reason: str, write_dicom: WriteDicom
) -> None:
    """A header that describes no image of one frame is refused with that reason."""
    with pytest.raises(ImageError, match=reason):
        read(write_dicom(tmp_path / "a", RAMP, **elements))


def test_an_image_of_one_value_is_refused(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """An image whose pixels are all equal shows nothing, and is refused."""
    for modality in ("MR", "other"):
        with pytest.raises(ImageError, match="same value"):
            read(write_dicom(tmp_path / "a", np.zeros_like(RAMP)), modality)


def test_a_header_that_belies_its_codestream_is_refused(shared: Path, tmp_path: Path) -> None:
    """Compressed pixels of another size or depth than the header's are refused undecoded."""
    for name in ("ct_ge_j2kr.dcm", "ct_ge_jpll.dcm", "ct_ge_jlsl.dcm"):
        dataset = dcmread(shared / "dicom" / name)
        dataset.Rows = 8
        dataset.save_as(tmp_path / "a")
        with pytest.raises(ImageError, match=r"its pixels are 512 x 512 .* header says 512 x 8"):
            read(tmp_path / "a", "CT")
        dataset.Rows, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 512, 8, 8, 7
        dataset.save_as(tmp_path / "a")
        with pytest.raises(ImageError, match="16 bits, its header allocates 8"):
            read(tmp_path / "a", "CT")


def test_compression_that_the_header_denies_is_refused(shared: Path, tmp_path: Path) -> None:
    """Compressed pixels under an uncompressed transfer syntax are refused, never shown as noise."""
    dataset = dcmread(shared / "dicom/ct_ge_j2kr.dcm")
    start = (
        (shared / "dicom/ct_ge_j2kr.dcm")
        .read_bytes()
        .replace(dataset.file_meta.TransferSyntaxUID.encode(), b"1.2.840.10008.1.2.1\0\0\0")
    )
    (tmp_path / "a").write_bytes(start)
    with pytest.raises(ImageError, match="its header denies it"):
        read(tmp_path / "a", "CT")


def test_a_syntax_that_nothing_decodes_is_named(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """A transfer syntax without a decoder is refused by its name, with a remedy."""
    video = UID("1.2.840.10008.1.2.4.102")
    file = write_dicom(tmp_path / "a", RAMP)
    dataset = dcmread(file)
    dataset.PixelData = encapsulate([b"\0\0\0\1"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = video
    dataset.save_as(file)
    with pytest.raises(ImageError, match="transfer syntax MPEG-4") as refusal:
        read(file)
    assert "uncompressed" in refusal.value.remedy


def test_a_deflated_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_dicom: WriteDicom
) -> None:
    """A deflated file that unfolds to more than the bound is refused before pydicom unfolds it."""
    large = np.zeros((1500, 1500), dtype=np.uint16)
    large[0, 0] = 1
    file = write_dicom(tmp_path / "a", large, syntax=DeflatedExplicitVRLittleEndian)
    assert file.stat().st_size < 10**4
    assert shown(file).shape == large.shape
    monkeypatch.setattr("client.dicom_header.MAX_INFLATED", 10**6)
    with pytest.raises(ImageError, match="unfolds to more"):
        read(file)


def test_large_pixels_are_read_from_the_file_frame_by_frame(
    tmp_path: Path, write_dicom: WriteDicom
) -> None:
    """Of a large uncompressed file, the frames that are wanted are the ones that are read."""
    stored = np.arange(20, dtype=np.uint16)[:, None, None] + np.zeros((20, 1024, 1024), np.uint16)
    stored[:, 0, 0] = 4095
    file = write_dicom(
        tmp_path / "a", stored, Rows=1024, Columns=1024, SamplesPerPixel=1, NumberOfFrames="20"
    )
    assert file.stat().st_size > 2**25
    tracemalloc.start()
    stack, facts = read(file, "MR", "middle:2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25
    assert stack.parts == ("10", "11")
    assert [values[5, 5] for values in stack.values] == [9, 10]
    assert facts.slices == 20


@pytest.mark.parametrize("name", ["mr_small.dcm", "mr_small_jpeg_ls_lossless.dcm"])
@settings(
    max_examples=60, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(
    shared: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """Whatever bytes of a file are changed, it is read or an ImageError says why not."""
    content = bytearray((shared / "dicom" / name).read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, byte in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)
    ):
        content[place] = byte
    file = tmp_path / "mutated"
    file.write_bytes(content[: data.draw(places) if data.draw(st.booleans()) else None])
    with contextlib.suppress(ImageError):
        for picture in read_images(file, Reading("MR", None, "all")).pictures:
            assert np.isfinite(picture.values).all()


def test_a_jpeg_of_eight_bits_is_read_as_pillow_does(
    tmp_path: Path, shared: Path, write_dicom: WriteDicom
) -> None:
    """JPEG baseline in colour gives what Pillow makes of the same JPEG."""
    rgb = dcmread(shared / "dicom/vl_rgb_j2ki.dcm").pixel_array[:160, :160]
    jpeg = BytesIO()
    Image.fromarray(rgb).save(jpeg, "JPEG", quality=95, subsampling=0)
    dataset = dcmread(
        write_dicom(
            tmp_path / "a",
            np.ascontiguousarray(rgb),
            PhotometricInterpretation="YBR_FULL",
            PlanarConfiguration=0,
        )
    )
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([jpeg.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a")
    assert get_frame(dataset.PixelData, 0, number_of_frames=1)[:2] == b"\xff\xd8"
    expected = np.asarray(Image.open(jpeg)) / 255
    np.testing.assert_allclose(shown(tmp_path / "a"), expected, atol=2.5 / 255)
