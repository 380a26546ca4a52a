"""Laws of reading images; pydicom, Pillow and arithmetic by hand are the reference."""

import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid

from client.images import read_image, read_images, read_mask
from client.pictures import Reading
from common.errors import ImageError, SetAsideError

WriteDicom = Callable[..., Path]
WriteSeries = Callable[[Path, NDArray[np.uint16]], Path]

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 40


def test_ct_becomes_hounsfield_units_and_then_a_window(
    tmp_path: Path, write_dicom: WriteDicom
) -> None:
    """A CT value is (stored * slope + intercept - centre + width / 2) / width, cut to [0, 1]."""
    file = write_dicom(
        tmp_path / "a", RAMP, Modality="CT", RescaleSlope="2", RescaleIntercept="-1024"
    )
    by_hand = np.clip((RAMP * 2.0 - 1024 - 100 + 500) / 1000, 0, 1)
    pixels = read_image(file, modality="CT", window=(100.0, 1000.0))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, by_hand, atol=1e-6)


def test_ct_without_a_window_is_seen_as_soft_tissue(
    tmp_path: Path, write_dicom: WriteDicom
) -> None:
    """No window means centre 40 and width 400: -160 HU is 0 and 240 HU is 1."""
    stored = np.array([[-160, 40], [240, 1000]], dtype=np.int16)
    file = write_dicom(
        tmp_path / "a",
        stored,
        Modality="CT",
        RescaleSlope="1",
        RescaleIntercept="0",
        PhotometricInterpretation="MONOCHROME1",
    )
    by_hand = np.array([[0, 0.5], [1, 1]])
    np.testing.assert_allclose(read_image(file, modality="CT"), by_hand, atol=1e-6)


def test_mr_runs_between_its_percentiles(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """On MR, percentile 0.5 is 0 and percentile 99.5 is 1, whatever the scanner's scale."""
    low, high = np.percentile(RAMP, (0.5, 99.5))
    by_hand = np.clip((RAMP - low) / (high - low), 0, 1)
    plain = read_image(write_dicom(tmp_path / "a", RAMP, Modality="MR"), modality="MR")
    scaled = write_dicom(
        tmp_path / "b", RAMP, Modality="MR", RescaleSlope="2.5", RescaleIntercept="-7"
    )
    np.testing.assert_allclose(plain, by_hand, atol=1e-6)
    np.testing.assert_allclose(read_image(scaled, modality="MR"), by_hand, atol=1e-6)


def test_a_small_bright_spot_on_mr_is_kept(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """Where the percentiles meet, least and greatest value take their place."""
    stored = np.zeros((32, 32), dtype=np.uint16)
    stored[3, 4] = 900
    pixels = read_image(write_dicom(tmp_path / "a", stored, Modality="MR"), modality="MR")
    assert pixels[3, 4] == 1
    assert pixels.sum() == 1


@pytest.mark.parametrize("modality", ["MR", "other"])
def test_monochrome1_is_the_inverse_of_monochrome2(
    tmp_path: Path, modality: str, write_dicom: WriteDicom
) -> None:
    """The same stored values as MONOCHROME1 and MONOCHROME2 add up to 1 everywhere."""
    one, two = (
        write_dicom(tmp_path / name, RAMP, PhotometricInterpretation=name)
        for name in ("MONOCHROME1", "MONOCHROME2")
    )
    total = read_image(one, modality=modality) + read_image(two, modality=modality)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("mr_truncated.dcm", ImageError, "less than expected"),
        ("synthetic_empty.dcm", ImageError, "the file is empty"),
        ("synthetic_ct_j2kr_cut_half.dcm", ImageError, "cut short"),
        ("bad_no_file_meta.dcm", ImageError, "no known kind"),
        ("mr_philips_enhanced.dcm", ImageError, "40 slices or frames"),
        ("sr_structured_report.dcm", SetAsideError, "no image of the patient"),
        ("mr_philips_rawdata.dcm", SetAsideError, "no image of the patient"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
def test_real_bad_files_are_refused(
    shared: Path, name: str, kind: type[ImageError], reason: str
) -> None:
    """Each bad real file is refused with its name, the reason, a remedy and the right code."""
    with pytest.raises(ImageError, match=reason) as refusal:
        read_image(shared / "dicom" / name, modality="other")
    assert type(refusal.value) is kind
    assert name in refusal.value.message
    assert refusal.value.remedy


def png_header(width: int, height: int) -> bytes:
    """Return a grey PNG of 8 bits up to its pixels (PNG, section 11.2.1), which are left out."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


def test_a_huge_image_is_refused_from_its_header(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """More than 64 million pixels are refused by the header alone; the limit itself is not."""
    for height, reason in ((8001, "8001 x 8000 pixels are more"), (8000, "cannot be decoded")):
        (tmp_path / "a.png").write_bytes(png_header(8000, height))
        dicom = write_dicom(tmp_path / "b.dcm", RAMP, Rows=height, Columns=8000)
        for file in (tmp_path / "a.png", dicom):
            with pytest.raises(ImageError, match=reason):
                read_image(file, modality="other")


def test_an_image_of_one_value_is_refused(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """An image whose pixels are all equal shows nothing, and is refused; a mask may be empty."""
    blank = np.full((8, 8), 0, dtype=np.uint8)
    Image.fromarray(blank).save(tmp_path / "a.png")
    files = tmp_path / "a.png", write_dicom(tmp_path / "b", blank.astype(np.uint16))
    for file in files:
        with pytest.raises(ImageError, match="same value"):
            read_image(file, modality="other")
    assert not read_mask(files[0]).any()


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"path,label\n", b"II*\0" * 50]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, a bare signature, a text and a TIFF are an ImageError with a remedy."""
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError) as refusal:
        read_image(tmp_path / "a.png", modality="other")
    assert refusal.value.remedy


def test_a_missing_file_is_an_unreadable_image(tmp_path: Path) -> None:
    """A file that is not there, and a folder without slices, are each an ImageError."""
    for path, reason in ((tmp_path / "none.png", "no such file"), (tmp_path, "no DICOM image")):
        with pytest.raises(ImageError, match=reason):
            read_image(path, modality="CT")


SERIES = generate_uid(entropy_srcs=["series"])
CT = Reading("CT", (100.0, 1000.0), slices="all")
VOLUME = np.stack([RAMP[:, ::-1], RAMP, RAMP.T]) + np.arange(3, dtype=np.uint16)[:, None, None]


@pytest.fixture
def write_series(write_dicom: WriteDicom) -> WriteSeries:
    """Return what writes axial CT slices, 2 mm apart and from the head down against their names."""

    def write(folder: Path, slices: NDArray[np.uint16]) -> Path:
        folder.mkdir()
        for number, stored in enumerate(slices):
            dataset = dcmread(write_dicom(folder / f"{len(slices) - number}.dcm", stored))
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[f"slice {number}"])
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.SeriesInstanceUID = SERIES
            dataset.Modality, dataset.PatientID = "CT", "P"
            dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
            dataset.PixelSpacing = [1, 1]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.ImagePositionPatient = [0, 0, 2 * number]
            dataset.save_as(folder / f"{len(slices) - number}.dcm", enforce_file_format=True)
        return folder

    return write


def test_a_folder_is_a_volume(tmp_path: Path, write_series: WriteSeries) -> None:
    """The slices of a folder come from the feet up, each through the window, with its number."""
    source = read_images(write_series(tmp_path / "s", VOLUME), CT)
    assert [picture.part for picture in source.pictures] == ["1", "2", "3"]
    for picture, stored in zip(source.pictures, VOLUME, strict=True):
        by_hand = np.clip((stored - 1024.0 - 100) / 1000 + 0.5, 0, 1)
        np.testing.assert_allclose(picture.values, by_hand, atol=1e-6)
    assert (source.facts.low, source.facts.high) == (-1024, int(VOLUME.max()) - 1024)
    listed = read_images(tmp_path / "s", CT._replace(slices="listed"), (3,))
    np.testing.assert_array_equal(listed.pictures[0].values, source.pictures[2].values)


def test_a_folder_is_cut_into_planes(tmp_path: Path, write_series: WriteSeries) -> None:
    """The axial plane of a series is its middle slice; the others are as high as it is long."""
    source = read_images(write_series(tmp_path / "s", VOLUME), CT._replace(slices="planes"))
    shapes = {picture.part: picture.values.shape for picture in source.pictures}
    assert shapes == {"axial": (8, 8), "coronal": (6, 8), "sagittal": (6, 8)}
    middle = read_images(tmp_path / "s", CT._replace(slices="middle:1"))
    np.testing.assert_allclose(source.pictures[0].values, middle.pictures[0].values, atol=1e-6)
    low = np.clip((VOLUME[0, 4] - 1024.0 - 100) / 1000 + 0.5, 0, 1)
    np.testing.assert_allclose(source.pictures[1].values[-1], low, atol=1e-6)  # feet below


def test_slices_that_show_nothing_are_left_out(tmp_path: Path, write_series: WriteSeries) -> None:
    """A slice of one value through the window is left out and noted; none left is an error."""
    slices = VOLUME.copy()
    slices[1] = 5
    slices[2] //= 20  # air, below the window
    source = read_images(write_series(tmp_path / "s", slices), CT)
    assert [picture.part for picture in source.pictures] == ["1"]
    assert "constant_slices" in source.facts.notes
    write_series(tmp_path / "air", slices[1:])
    with pytest.raises(ImageError, match="same value through the window") as refusal:
        read_images(tmp_path / "air", CT)
    assert refusal.value.remedy


def test_slices_of_mr_share_one_scale(tmp_path: Path, write_series: WriteSeries) -> None:
    """A stored value of MR is the same intensity on every slice of its volume."""
    folder = write_series(tmp_path / "s", np.stack([RAMP // 2, RAMP]))
    for path in folder.iterdir():
        dataset = dcmread(path)
        dataset.Modality = "MR"
        dataset.save_as(path)
    dim, bright = (p.values for p in read_images(folder, Reading("MR", None, "all")).pictures)
    assert dim.max() < 0.6
    np.testing.assert_array_equal(dim[RAMP // 2 == 1000], bright[RAMP == 1000][:1].repeat(2)[:1])


EDITS = st.lists(st.tuples(st.integers(0, 1000), st.binary(min_size=1, max_size=6)), max_size=6)


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=100, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS, cut=st.integers(0, 300))
def test_a_damaged_dicom_is_an_image_or_an_image_error(
    tmp_path: Path, edits: list[tuple[int, bytes]], cut: int, write_dicom: WriteDicom
) -> None:
    """Mutated DICOM raises ImageError or is read."""
    content = bytearray(write_dicom(tmp_path / "a", RAMP, Modality="MR").read_bytes())
    for place, new in edits:
        content[place % len(content) : place % len(content) + len(new)] = new
    (tmp_path / "b").write_bytes(content[: len(content) - cut] if cut > 200 else content)
    try:
        source = read_images(tmp_path / "b", Reading("MR", None, "all"))
    except ImageError:
        return
    assert all(0 <= p.values.min() < p.values.max() <= 1 for p in source.pictures)
