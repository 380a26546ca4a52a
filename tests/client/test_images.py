"""Laws of reading images; pydicom, Pillow and arithmetic by hand are the reference."""

import struct
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from client.images import read_image, read_mask
from common.errors import ImageError

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 40


def write_dicom(path: Path, stored: NDArray[np.generic], **elements: object) -> Path:
    """Write a plain DICOM of 12 bits; ``elements`` are added, or taken out where None."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality = "OT"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = stored.shape[2] if stored.ndim == 3 else 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = 12 if stored.dtype.itemsize == 2 else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    dataset.add_new("PixelData", "OW", stored.tobytes())
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_ct_becomes_hounsfield_units_and_then_a_window(tmp_path: Path) -> None:
    """A CT value is (stored * slope + intercept - centre + width / 2) / width, cut to [0, 1]."""
    file = write_dicom(
        tmp_path / "a", RAMP, Modality="CT", RescaleSlope="2", RescaleIntercept="-1024"
    )
    by_hand = np.clip((RAMP * 2.0 - 1024 - 100 + 500) / 1000, 0, 1)
    pixels = read_image(file, modality="CT", window=(100.0, 1000.0))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, by_hand, atol=1e-6)


def test_ct_without_a_window_is_seen_as_soft_tissue(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({}, "no rescale"),
        ({"RescaleSlope": "1", "RescaleIntercept": "0", "RescaleType": "Z_EFF"}, "Z_EFF"),
    ],
)
def test_ct_without_hounsfield_units_is_refused(
    tmp_path: Path, elements: dict[str, str], reason: str
) -> None:
    """A CT whose values are in no or another unit is refused with that reason."""
    file = write_dicom(tmp_path / "a", RAMP, Modality="CT", **elements)
    with pytest.raises(ImageError, match=reason):
        read_image(file, modality="CT")


def test_ct_and_mr_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    """An MR image in a CT task is refused, and so is a CT image in an MR task."""
    for own, task in (("MR", "CT"), ("CT", "MR")):
        file = write_dicom(tmp_path / own, RAMP, Modality=own)
        with pytest.raises(ImageError, match=f"modality is {own}, the task's is {task}"):
            read_image(file, modality=task)


def test_mr_runs_between_its_percentiles(tmp_path: Path) -> None:
    """On MR, percentile 0.5 is 0 and percentile 99.5 is 1, whatever the scanner's scale."""
    low, high = np.percentile(RAMP, (0.5, 99.5))
    by_hand = np.clip((RAMP - low) / (high - low), 0, 1)
    plain = read_image(write_dicom(tmp_path / "a", RAMP, Modality="MR"), modality="MR")
    scaled = write_dicom(
        tmp_path / "b", RAMP, Modality="MR", RescaleSlope="2.5", RescaleIntercept="-7"
    )
    np.testing.assert_allclose(plain, by_hand, atol=1e-6)
    np.testing.assert_allclose(read_image(scaled, modality="MR"), by_hand, atol=1e-6)


def test_a_small_bright_spot_on_mr_is_kept(tmp_path: Path) -> None:
    """Where the percentiles meet, least and greatest value take their place."""
    stored = np.zeros((32, 32), dtype=np.uint16)
    stored[3, 4] = 900
    pixels = read_image(write_dicom(tmp_path / "a", stored, Modality="MR"), modality="MR")
    assert pixels[3, 4] == 1
    assert pixels.sum() == 1


@pytest.mark.parametrize("modality", ["MR", "other"])
def test_monochrome1_is_the_inverse_of_monochrome2(tmp_path: Path, modality: str) -> None:
    """The same stored values as MONOCHROME1 and MONOCHROME2 add up to 1 everywhere."""
    one, two = (
        write_dicom(tmp_path / name, RAMP, PhotometricInterpretation=name)
        for name in ("MONOCHROME1", "MONOCHROME2")
    )
    total = read_image(one, modality=modality) + read_image(two, modality=modality)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_files_own_window_is_pydicoms(tmp_path: Path, function: str) -> None:
    """The first window of a file shows what pydicom's windowing shows, over its output range."""
    file = write_dicom(
        tmp_path / "a",
        RAMP,
        WindowCenter=["1200", "5"],
        WindowWidth=["800", "9"],
        VOILUTFunction=function,
    )
    expected = apply_windowing(RAMP, dcmread(file)) / 4095
    np.testing.assert_allclose(read_image(file, modality="other"), expected, atol=1e-6)


def lut_item(values: list[int], *, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", values)
    return item


def test_the_files_own_table_is_looked_up(tmp_path: Path) -> None:
    """A VOI LUT wins over a window; stored values outside the table take its ends."""
    table = [0, 1023, 2048, 4095]
    stored = np.array([[9, 10, 11], [12, 13, 99]], dtype=np.uint16)
    file = write_dicom(
        tmp_path / "a",
        stored,
        VOILUTSequence=[lut_item(table, first=10, bits=12)],
        WindowCenter="1",
        WindowWidth="1",
    )
    by_hand = np.array([[0, 0, 1023], [2048, 4095, 4095]]) / 4095
    np.testing.assert_allclose(read_image(file, modality="other"), by_hand, atol=1e-6)


def test_a_table_that_pydicom_would_misread_is_refused(tmp_path: Path) -> None:
    """A VOI LUT of more entries than its 8 bits can index is refused, not wrapped around."""
    table = [index // 2 for index in range(512)]
    file = write_dicom(tmp_path / "a", RAMP, VOILUTSequence=[lut_item(table, first=0, bits=8)])
    with pytest.raises(ImageError, match="512 8-bit entries"):
        read_image(file, modality="other")


def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path) -> None:
    """With no window or table, 0 and 1 are the ends of the stored bits, signed or not."""
    unsigned = write_dicom(tmp_path / "a", RAMP)
    np.testing.assert_allclose(read_image(unsigned, modality="OCT"), RAMP / 4095, atol=1e-6)
    stored = RAMP.astype(np.int16) - 1000
    signed = write_dicom(tmp_path / "b", stored, RescaleSlope="-1", RescaleIntercept="0")
    np.testing.assert_allclose(
        read_image(signed, modality="OCT"), (2047.0 - stored) / 4095, atol=1e-6
    )


def test_colour_keeps_its_channels(tmp_path: Path) -> None:
    """RGB is divided by 255; YBR_FULL becomes the RGB that it was made from."""
    rgb = np.zeros((2, 2, 3), dtype=np.uint8)
    rgb[0, 0], rgb[1, 1] = (255, 0, 51), (10, 200, 30)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))  # PS3.3 C.7.6.3.1.2 is JFIF's matrix
    as_rgb, as_ybr = (
        write_dicom(tmp_path / name, pixels, PhotometricInterpretation=name, PlanarConfiguration=0)
        for name, pixels in (("RGB", rgb), ("YBR_FULL", ybr))
    )
    np.testing.assert_allclose(read_image(as_rgb, modality="fundus"), rgb / 255, atol=1e-6)
    np.testing.assert_allclose(read_image(as_ybr, modality="fundus"), rgb / 255, atol=2 / 255)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
def test_lossless_compression_changes_nothing(shared: Path) -> None:
    """One CT slice uncompressed, as RLE and as lossless JPEG 2000 gives one array."""
    folder = shared / "dicom"
    plain = read_image(folder / "ct_ge_uncompressed.dcm", modality="CT")
    for name in ("ct_ge_rle.dcm", "ct_ge_j2kr.dcm"):
        np.testing.assert_array_equal(read_image(folder / name, modality="CT"), plain)
    mr = read_image(folder / "mr_small.dcm", modality="MR")
    for kind in ("bigendian", "implicit", "padded", "rle"):
        other = read_image(folder / f"mr_small_{kind}.dcm", modality="MR")
        np.testing.assert_array_equal(other, mr)


@pytest.mark.parametrize(
    ("name", "modality", "shape"),
    [
        ("ct_small_128.dcm", "CT", (128, 128)),
        ("ct_ge_uncompressed.dcm", "CT", (512, 512)),
        ("ct_693_j2kr_bits_mismatch.dcm", "CT", (512, 512)),
        ("ct_philips_ingenuity_noext", "CT", (512, 512)),
        ("mr_small.dcm", "MR", (64, 64)),
        ("mr_siemens_overlays.dcm", "MR", (484, 484)),
        ("cr_mono1_j2ki.dcm", "other", (1760, 1760)),
        ("deflated_explicit.dcm", "other", (512, 512)),
        ("modality_lut_sequence.dcm", "other", (512, 512)),
        ("voi_lut_sequence.dcm", "other", (512, 512)),
        ("palette_color_rle.dcm", "other", (600, 800, 3)),
        ("sc_ybr_full_422.dcm", "other", (100, 100, 3)),
        ("vl_rgb_j2ki.dcm", "fundus", (486, 756, 3)),
        ("synthetic_png_named.dcm", "CT", (213, 315)),  # a PNG: the bytes decide, not the name
    ],
)
def test_real_files_are_read(
    shared: Path, name: str, modality: str, shape: tuple[int, ...]
) -> None:
    """Every supported real file gives float32 of its own shape within [0, 1], not all equal."""
    pixels = read_image(shared / "dicom" / name, modality=modality)
    assert pixels.shape == shape
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert pixels.std() > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mr_truncated.dcm", "less than expected"),
        ("synthetic_empty.dcm", "the file is empty"),
        ("synthetic_ct_j2kr_cut_half.dcm", "cut short"),
        ("sr_structured_report.dcm", r"holds no image \(modality SR\)"),
        ("mr_philips_rawdata.dcm", "holds no image"),
        ("seg_liver_dcmqi.dcm", "3 frames"),
        ("mr_philips_enhanced.dcm", "40 frames"),
        ("parametric_map_float.dcm", "no pixel data"),
        ("bad_no_file_meta.dcm", "no known kind"),
        ("bad_meta_missing_tsyntax.dcm", "holds no image"),
        ("bad_vr_values.dcm", "cannot be decoded"),
        ("bad_rtplan_truncated.dcm", "modality RTPLAN"),
        ("j2k_embedded_delimiter.dcm", "cannot be decoded"),
        ("ct_ge_jpll.dcm", "cannot decode the transfer syntax JPEG Lossless"),
        ("ct_ge_jlsl.dcm", "cannot decode the transfer syntax JPEG-LS"),
        ("htj2k_lossless_rgb.dcm", "cannot decode the transfer syntax High-Throughput"),
        ("mr_jpeg_extended_12bit.dcm", "cannot decode the transfer syntax JPEG Extended"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
def test_real_bad_files_are_refused(shared: Path, name: str, reason: str) -> None:
    """Each bad real file is refused with its name, the reason and a remedy."""
    with pytest.raises(ImageError, match=reason) as refusal:
        read_image(shared / "dicom" / name, modality="other")
    assert name in refusal.value.message
    assert refusal.value.remedy


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
@pytest.mark.parametrize("name", ["ct_small_128.dcm", "ct_ge_j2kr.dcm", "palette_color_rle.dcm"])
def test_a_file_cut_anywhere_is_refused(shared: Path, tmp_path: Path, name: str) -> None:
    """A DICOM cut at any place before its pixels end is an ImageError and nothing else."""
    content = (shared / "dicom" / name).read_bytes()
    for share in (0.0001, 0.002, 0.01, 0.05, 0.2, 0.5, 0.8):
        file = tmp_path / "cut"
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageError):
            read_image(file, modality="other")


def test_sixteen_bit_png_keeps_its_depth(tmp_path: Path) -> None:
    """A grey PNG of 16 bits is its values over 65535, with no step lost."""
    values = np.array([[0, 1, 2], [256, 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_allclose(
        read_image(tmp_path / "a.png", modality="OCT"), values / 65535, rtol=1e-6
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_mean_their_colours(tmp_path: Path, mode: str) -> None:
    """Each mode of an 8-bit PNG gives the grey or RGB values that Pillow shows, over 255."""
    picture = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.png")
    shown = np.asarray(picture.convert("L" if mode in ("1", "L", "LA") else "RGB")) / 255
    np.testing.assert_allclose(read_image(tmp_path / "a.png", modality="CT"), shown, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A photo is read as it was held, for all eight orientations of EXIF."""
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 255  # the bright corner is at the top left
    held = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(held).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "a.jpg", modality="fundus")
    np.testing.assert_allclose(pixels, upright / 255, atol=0.05)


def png_header(width: int, height: int) -> bytes:
    """Return a grey PNG of 8 bits up to its pixels (PNG, section 11.2.1), which are left out."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


def test_a_huge_image_is_refused_from_its_header(tmp_path: Path) -> None:
    """More than 64 million pixels are refused by the header alone; the limit itself is not."""
    for height, reason in ((8001, "8001 x 8000 pixels are more"), (8000, "cannot be decoded")):
        (tmp_path / "a.png").write_bytes(png_header(8000, height))
        dicom = write_dicom(tmp_path / "b.dcm", RAMP, Rows=height, Columns=8000)
        for file in (tmp_path / "a.png", dicom):
            with pytest.raises(ImageError, match=reason):
                read_image(file, modality="other")


def test_a_header_that_belies_its_codestream_is_refused(shared: Path, tmp_path: Path) -> None:
    """Compressed pixels of another size than Rows and Columns are refused before decoding."""
    dataset = dcmread(shared / "dicom" / "ct_ge_j2kr.dcm")
    dataset.Rows = 8
    dataset.save_as(tmp_path / "a")
    with pytest.raises(ImageError, match="its pixels are 512 x 512, its header says 512 x 8"):
        read_image(tmp_path / "a", modality="CT")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": "2"}, "2 frames"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": None}, "holds no image"),
        ({"Rows": 0}, "0 rows"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "one bit a pixel"),
        ({"PhotometricInterpretation": "CMYK"}, "CMYK"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "same value"),
        ({"WindowCenter": "5", "WindowWidth": "0"}, "Window Width"),
    ],
)
def test_odd_headers_are_refused(tmp_path: Path, elements: dict[str, object], reason: str) -> None:
    """A header that describes no image of one frame is refused with that reason."""
    with pytest.raises(ImageError, match=reason):
        read_image(write_dicom(tmp_path / "a", RAMP, **elements), modality="other")


def test_an_image_of_one_value_is_refused(tmp_path: Path) -> None:
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


def test_a_cut_picture_is_refused(tmp_path: Path) -> None:
    """A PNG or JPEG that is cut short is refused, never filled up with grey."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    for kind in ("png", "jpeg"):
        file = tmp_path / f"a.{kind}"
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:-1500])
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_image(file, modality="other")


def test_a_moving_png_is_refused(tmp_path: Path) -> None:
    """A PNG of several frames is refused, as a DICOM of several frames is."""
    frames = [Image.fromarray(RAMP.astype(np.uint8) + step) for step in (0, 1)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="several frames"):
        read_image(tmp_path / "a.png", modality="other")


def test_a_missing_file_is_an_unreadable_image(tmp_path: Path) -> None:
    """A file that is not there, and a folder in its place, are each an ImageError."""
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="no such file"):
            read_image(path, modality="CT")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_mask_is_where_the_picture_is_not_black(tmp_path: Path, mode: str) -> None:
    """Whatever the mode of its PNG, a mask is true exactly where a pixel is not black."""
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:3, 2:5] = True
    grey = expected.astype(np.uint8) * 255
    if mode == "I;16":
        picture = Image.fromarray(expected.astype(np.uint16))
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    picture.save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)


def test_a_mask_must_be_a_png(tmp_path: Path) -> None:
    """A lossy file is no mask: its black is not black."""
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "m.jpg")
    with pytest.raises(ImageError, match="must be a PNG"):
        read_mask(tmp_path / "m.jpg")


def test_real_masks_are_what_pillow_shows(shared: Path) -> None:
    """A real lesion mask is true in as many pixels as its PNG has white ones."""
    for file in sorted((shared / "data/fundus_idrid_lesions/masks").glob("IDRiD_0*.png"))[:8]:
        with Image.open(file) as picture:
            assert read_mask(file).sum() == picture.convert("L").histogram()[255]
