"""Laws of reading PNG, JPEG and TIFF; Pillow as a writer and bytes by hand are the reference."""

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client import raster
from client.images import read_image, read_images
from client.pictures import Reading
from common.errors import ImageError

OTHER = Reading("other", None)
ALL = Reading("other", None, slices="all")
DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
RAMP = (DEEP // 257).astype(np.uint8)
SHORT, LONG = 3, 4  # TIFF 6.0, section 2: types of an entry


def tiff(values: NDArray[np.generic], *, bits: int, **tags: int) -> bytes:
    """Return a grey TIFF of one strip (TIFF 6.0, section 3); ``tags`` are tN, for its number."""
    rows, columns = values.shape
    data = values.tobytes()
    entries = {
        256: (SHORT, columns), 257: (SHORT, rows), 258: (SHORT, bits),
        259: (SHORT, 1), 262: (SHORT, 1), 273: (LONG, 0),
        277: (SHORT, 1), 278: (SHORT, rows), 279: (LONG, len(data)),
    }  # fmt: skip
    entries |= {int(name[1:]): (SHORT, value) for name, value in tags.items()}
    entries[273] = (LONG, 8 + 2 + 12 * len(entries) + 4)
    directory = b"".join(
        struct.pack(
            "<HHIHH" if kind == SHORT else "<HHII", tag, kind, 1, value, *[0] * (kind == SHORT)
        )
        for tag, (kind, value) in sorted(entries.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


def pages(path: Path, images: list[Image.Image], **options: object) -> Path:
    images[0].save(path, "TIFF", save_all=True, append_images=images[1:], **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("white", [0, 1])
def test_tiff_keeps_its_depth(tmp_path: Path, compression: str | None, white: int) -> None:
    """Grey pages of 8 and 16 bits are their values over the range, turned over if white is 0."""
    for values, top in ((DEEP, 65535), (RAMP, 255)):
        file = tmp_path / "a.tif"
        # Pillow writes 8 bits as white is 0 by turning them over, and 16 bits as they are
        Image.fromarray(values).save(file, compression=compression, tiffinfo={262: white})
        stored = values if top == 65535 or white else 255 - values
        shown = stored / top if white else 1 - stored / top
        np.testing.assert_allclose(read_image(file, modality="OCT"), shown, atol=1e-6)


def test_twelve_bits_have_their_own_range(tmp_path: Path) -> None:
    """Packed 12 bits, and 16 that say they use 12 (MaxSampleValue), are divided by 4095."""
    packed = np.frombuffer(bytes([0xAB, 0xCD, 0xEF]), dtype=np.uint8)[None]
    content = tiff(packed, bits=12, t256=2)
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_allclose(
        read_image(tmp_path / "a.tif", modality="OCT"), [[0xABC / 4095, 0xDEF / 4095]], rtol=1e-6
    )
    values = np.array([[0, 2048, 4095]], dtype=np.uint16)
    (tmp_path / "b.tif").write_bytes(tiff(values, bits=16, t281=4095))
    np.testing.assert_allclose(
        read_image(tmp_path / "b.tif", modality="OCT"), values / 4095, rtol=1e-6
    )


def test_a_narrow_range_is_noted(tmp_path: Path) -> None:
    """12 bits in a file of 16 that does not say so stay dark, and the facts say it."""
    values = np.array([[0, 2048, 4095]], dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=16, t281=3999))  # its brightest pixel
    source = read_images(tmp_path / "a.tif", OTHER)
    np.testing.assert_allclose(source.pictures[0].values, values / 65535, rtol=1e-6)
    assert source.facts.notes == ("narrow_range",)
    Image.fromarray(DEEP).save(tmp_path / "b.png")
    assert read_images(tmp_path / "b.png", OTHER).facts.notes == ()


def test_numbers_between_0_and_1_are_intensities(tmp_path: Path) -> None:
    """A TIFF of floating point is read where it runs from 0 to 1, and is else refused."""
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", modality="other"), values)
    for wrong in (values * 2, values - 1, np.where(values == 1, np.nan, values)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(ImageError, match="known range"):
            read_image(tmp_path / "b.tif", modality="other")


@pytest.mark.parametrize(
    ("bits", "form"), [(16, 2), (32, 1), (32, 2)], ids=["int16", "uint32", "int32"]
)
def test_values_without_a_range_are_refused(tmp_path: Path, bits: int, form: int) -> None:
    """Signed and 32-bit pages could mean anything, and are refused with a remedy."""
    values = np.array([[0, 7]], dtype=f"u{bits // 8}")
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=bits, t339=form))
    with pytest.raises(ImageError, match="signed or of 32 bits") as refusal:
        read_image(tmp_path / "a.tif", modality="other")
    assert refusal.value.remedy


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "YCbCr"])
def test_tiff_modes_mean_their_colours(tmp_path: Path, mode: str) -> None:
    """Each mode of 8 bits gives the grey or RGB values that Pillow shows; alpha is dropped."""
    picture = Image.fromarray(RAMP).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as saved:
        shown = np.asarray(saved.convert("L" if mode in ("1", "L", "LA") else "RGB")) / 255
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", modality="other"), shown, atol=1e-6)


def turned(orientation: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture upright, and as it is held (EXIF 2.32, tag 0x0112)."""
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 255  # the bright corner is at the top left
    held: dict[int, NDArray[np.uint8]] = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    return upright, held[orientation]


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
    picture = Image.fromarray(RAMP).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.png")
    shown = np.asarray(picture.convert("L" if mode in ("1", "L", "LA") else "RGB")) / 255
    np.testing.assert_allclose(read_image(tmp_path / "a.png", modality="CT"), shown, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A photo is read as it was held, for all eight orientations of EXIF."""
    upright, held = turned(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(held).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "a.jpg", modality="fundus")
    np.testing.assert_allclose(pixels, upright / 255, atol=0.05)


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
    frames = [Image.fromarray(RAMP + step) for step in (0, 1)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="several frames"):
        read_image(tmp_path / "a.png", modality="other")


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_ink_is_refused(tmp_path: Path, kind: str) -> None:
    """CMYK, which only a printer's profile makes into colours, is refused."""
    file = tmp_path / f"a.{kind}"
    Image.fromarray(RAMP).convert("CMYK").save(file)
    with pytest.raises(ImageError, match="colour mode CMYK"):
        read_image(file, modality="other")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_page_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """The pages of a TIFF are read as they were held, for all eight orientations."""
    upright, held = turned(orientation)
    for name, compression in (("a.tif", None), ("b.tif", "tiff_lzw")):
        images = [Image.fromarray(held)] * 2
        file = pages(tmp_path / name, images, tiffinfo={274: orientation}, compression=compression)
        read = read_images(file, ALL)
        assert [picture.part for picture in read.pictures] == ["1", "2"]
        for picture in read.pictures:
            np.testing.assert_array_equal(picture.values, upright / 255)


def test_pages_are_slices(tmp_path: Path) -> None:
    """The pages of a TIFF are chosen as slices are, and are refused as one image."""
    file = pages(tmp_path / "a.tif", [Image.fromarray(RAMP // n) for n in (1, 2, 3, 4)])
    source = read_images(file, ALL._replace(slices="listed"), (4, 2))
    assert [picture.part for picture in source.pictures] == ["2", "4"]
    np.testing.assert_allclose(source.pictures[1].values, (RAMP // 4) / 255, rtol=1e-6)
    assert (source.facts.kind, source.facts.slices) == ("TIFF", 4)
    with pytest.raises(ImageError, match="4 slices or frames"):
        read_image(file, modality="other")
    with pytest.raises(ImageError, match="too little of where"):
        read_images(file, ALL._replace(slices="planes"))


def test_pages_of_one_value_are_left_out(tmp_path: Path) -> None:
    """An empty page beside others is left out and noted; when all are empty, it is an error."""
    ramp, empty = Image.fromarray(RAMP), Image.new("L", (8, 8), 9)
    source = read_images(pages(tmp_path / "a.tif", [empty, ramp]), ALL)
    assert [picture.part for picture in source.pictures] == ["2"]
    assert "constant_slices" in source.facts.notes
    with pytest.raises(ImageError, match="same value"):
        read_images(pages(tmp_path / "b.tif", [empty, empty]), ALL)


def test_smaller_copies_are_no_pages(tmp_path: Path) -> None:
    """A thumbnail or a mask beside a page (NewSubfileType) is not read."""
    ramp = Image.fromarray(RAMP)
    for kind in (1, 4):
        small = ramp.resize((4, 4))
        small.encoderinfo = {"tiffinfo": {254: kind}}
        file = pages(tmp_path / "a.tif", [ramp, small])
        assert read_image(file, modality="other").shape == (8, 8)


@pytest.mark.parametrize("other", [Image.new("L", (9, 8)), Image.new("RGB", (8, 8))])
def test_pages_that_differ_are_refused(tmp_path: Path, other: Image.Image) -> None:
    """Pages of several sizes, or grey beside colour, are no slices of one volume."""
    file = pages(tmp_path / "a.tif", [Image.fromarray(RAMP), other])
    with pytest.raises(ImageError, match="differ in size or colour"):
        read_images(file, ALL)


def test_pages_without_end_are_refused(tmp_path: Path) -> None:
    """More than 4096 pages are refused; directories that point at each other end."""
    one = tiff(np.array([[1, 2]], dtype=np.uint8), bits=8)
    size = len(one) + len(one) % 2
    parts = []
    for number in range(raster.MAX_PAGES + 1):
        page = bytearray(one.ljust(size, b"\0"))
        start = struct.unpack_from("<H", page, 8)[0] * 12 + 10
        following = 8 + size * (number + 1) if number < raster.MAX_PAGES else 0
        struct.pack_into("<I", page, start, following)
        parts.append(bytes(page[8:]) + bytes(8))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(parts))
    with pytest.raises(ImageError, match="more than 4096 pages"):
        read_images(tmp_path / "a.tif", ALL)
    start = struct.unpack_from("<H", one, 8)[0] * 12 + 10
    loop = one[:start] + struct.pack("<I", 8) + one[start + 4 :]
    (tmp_path / "b.tif").write_bytes(loop)
    assert len(read_images(tmp_path / "b.tif", ALL).pictures) == 1


def test_the_camera_is_among_the_facts(tmp_path: Path) -> None:
    """Maker and model of EXIF are the scanner, cut to 64 characters."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model " + "x" * 90
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif)
    facts = read_images(tmp_path / "a.jpg", OTHER).facts
    assert (facts.kind, facts.rows, facts.columns, facts.slices) == ("JPEG", 8, 8, 1)
    assert facts.scanner == ("Maker Model " + "x" * 90)[:64]
