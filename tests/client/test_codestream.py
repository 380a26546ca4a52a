"""Laws of what a compressed frame says of itself; headers written by hand are the reference."""

import struct
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import (
    JPEG2000,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
)

from client.codestream import Frame, frame_of, mended
from common.errors import ImageError

SOI = b"\xff\xd8"


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def start_of_frame(marker: int, samples: int = 1, bits: int = 8) -> bytes:
    header = struct.pack(">BHHB", bits, 300, 200, samples)
    return segment(marker, header + b"\x01\x11\0" * samples)


def scan(first: int, last: int) -> bytes:
    return segment(0xDA, bytes([1, 1, 0, first, last, 0])) + b"\x12\x34\xff\xd9"


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC3, 0xF7])
def test_every_process_names_its_size(marker: int) -> None:
    """Size, samples and depth are found behind other segments and fill bytes."""
    other = segment(0xE0, b"JFIF\0") + segment(0xC4, b"\0" * 20) + b"\xff\xff"
    frame = SOI + other + start_of_frame(marker, samples=3, bits=12) + scan(0, 63)
    syntax = JPEGLSLossless if marker == 0xF7 else JPEGBaseline8Bit
    assert frame_of(frame, syntax) == Frame(300, 200, 3, 12)


@pytest.mark.parametrize("syntax", [JPEG2000, HTJ2KLossless])
def test_jpeg_2000_names_its_size(syntax: str) -> None:
    """The size is that of the grid less its offset, also within a JP2 file."""
    grid = struct.pack(">HIIIIIIII", 0, 210, 320, 10, 20, 210, 320, 0, 0)
    siz = (
        b"\xff\x4f\xff\x51"
        + struct.pack(">H", 47)
        + grid
        + struct.pack(">HBBBBBBB", 3, 0x8B, *[1] * 6)
    )
    for wrapper in (b"", b"\0\0\0\x0cjP  \r\n\x87\n"):
        assert frame_of(wrapper + siz, syntax) == Frame(300, 200, 3, 12)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        SOI,
        SOI + b"\0\0",
        SOI + segment(0xE0, b"JFIF\0"),
        SOI + scan(0, 63),
        SOI + start_of_frame(0xC0)[:7],
        b"\xff" * 50,
    ],
)
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000])
def test_what_names_no_size_is_refused(frame: bytes, syntax: str) -> None:
    """A frame that is cut before its size, or is none, is an ImageError."""
    with pytest.raises(ImageError, match="no header that can be read"):
        frame_of(frame, syntax)


def test_real_frames_agree_with_their_headers(shared: Path) -> None:
    """All real compressed files name the size that their headers name, but for the broken one."""
    found = {}
    for path in sorted((shared / "dicom").glob("*_*")):
        dataset = dcmread(path, force=True)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if "PixelData" not in dataset or not syntax or ".1.2.4." not in syntax:
            continue
        count = int(dataset.get("NumberOfFrames") or 1)
        frame = frame_of(next(generate_frames(dataset.PixelData, number_of_frames=count)), syntax)
        found[path.name] = frame[:2] == (dataset.Rows, dataset.Columns)
    assert [name for name, agrees in found.items() if not agrees] == ["j2k_embedded_delimiter.dcm"]
    assert len(found) == 18


def test_the_last_coefficient_of_a_sequential_scan_is_mended() -> None:
    """Only a scan of the sequential DCT that claims 0 to 0 is changed, and only in that byte."""
    broken = SOI + start_of_frame(0xC1, bits=12) + scan(0, 0)
    whole = SOI + start_of_frame(0xC1, bits=12) + scan(0, 63)
    assert mended(broken) == whole
    assert mended(whole) == whole
    progressive = SOI + start_of_frame(0xC2, bits=12) + scan(0, 0)
    assert mended(progressive) == progressive
    assert frame_of(broken, JPEGExtended12Bit) == Frame(300, 200, 1, 12)
