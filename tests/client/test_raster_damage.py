"""Laws of damaged PNG, JPEG and TIFF: an image or an ImageError, and little memory."""

import struct
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from client.images import read_image
from client.pictures import Reading
from client.pixels import MAX_BYTES
from common.errors import ImageError

ALL = Reading("other", None, slices="all")
DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
RAMP = (DEEP // 257).astype(np.uint8)
MOST = 2**28
"""Bytes of memory that a small damaged picture may take."""

Survives = Callable[[Path, Reading, int], None]


def png(width: int, height: int, depth: int, colour: int, data: bytes, interlace: int = 0) -> bytes:
    """Return a PNG of right checksums (PNG, section 5.3), whatever its header claims."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [60_000, 9_000])
def test_a_huge_picture_costs_no_memory(tmp_path: Path, size: int) -> None:
    """A header of 60,000 x 60,000, or just beyond the bound, is refused before it is decoded."""
    (tmp_path / "a.png").write_bytes(png(size, size, 16, 2, b""))
    buffer = BytesIO()
    Image.fromarray(RAMP).save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    for entry in range(2):  # ImageWidth and ImageLength come first (TIFF 6.0, section 2)
        place = struct.unpack_from("<I", content, 4)[0] + 2 + 12 * entry
        struct.pack_into("<HHII", content, place, 256 + entry, 4, 1, size)
    (tmp_path / "a.tif").write_bytes(content)
    for file in (tmp_path / "a.png", tmp_path / "a.tif"):
        tracemalloc.start()
        with pytest.raises(ImageError, match="more"):
            read_image(file, modality="other")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20


def test_a_huge_file_costs_no_memory(tmp_path: Path) -> None:
    """A file beyond the bound is refused by its size, before it is read."""
    with (tmp_path / "a.tif").open("wb") as file:
        file.write(b"II*\0")
        file.truncate(MAX_BYTES + 1)  # a hole: it takes no place on the disk
    tracemalloc.start()
    with pytest.raises(ImageError, match="1,073,741,825 bytes, more than") as refusal:
        read_image(tmp_path / "a.tif", modality="other")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refusal.value.remedy
    assert peak < 2**20


def seeds() -> list[bytes]:
    """Return small pictures of several kinds."""
    ramp = Image.fromarray(RAMP)
    found = [png(8, 8, 8, 0, bytes(9 * 8))]
    for kind, image, options in (
        ("PNG", ramp.convert("RGBA"), {}),
        ("PNG", ramp.convert("P"), {}),
        ("JPEG", ramp, {}),
        ("TIFF", Image.fromarray(DEEP), {}),
        ("TIFF", ramp, {"compression": "tiff_lzw"}),
        ("TIFF", ramp, {"save_all": True, "append_images": [ramp]}),
    ):
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


EDITS = st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=6)), max_size=6)
FUZZ = settings(
    max_examples=150, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.filterwarnings("ignore")
def test_a_chunk_that_claims_more_than_the_file_costs_no_memory(
    tmp_path: Path, survives: Survives
) -> None:
    """A chunk's claimed length is no reason to ask for so much memory."""
    content = bytearray(seeds()[0])
    content[33] = 0x11  # the length of the second chunk: 285 MB
    (tmp_path / "a").write_bytes(content)
    survives(tmp_path / "a", ALL, MOST)


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(seed=st.sampled_from(seeds()), edits=EDITS, cut=st.integers(0, 400))
def test_damaged_bytes_are_a_picture_or_an_image_error(
    tmp_path: Path, survives: Survives, seed: bytes, edits: list[tuple[int, bytes]], cut: int
) -> None:
    """Mutated PNG, JPEG and TIFF raise ImageError or are read."""
    content = bytearray(seed)
    for place, new in edits:
        content[place % len(content) : place % len(content) + len(new)] = new
    (tmp_path / "a").write_bytes(content[: len(content) - cut] if cut > 300 else content)
    survives(tmp_path / "a", ALL, MOST)


@FUZZ
@given(
    width=st.integers(0, 2**31),
    height=st.integers(0, 40),
    depth=st.sampled_from([1, 2, 4, 8, 16, 3]),
    colour=st.sampled_from([0, 2, 3, 4, 6, 5]),
    data=st.binary(max_size=400),
    interlace=st.integers(0, 2),
)
def test_any_png_header_is_survived(
    tmp_path: Path,
    survives: Survives,
    width: int,
    height: int,
    depth: int,
    colour: int,
    data: bytes,
    interlace: int,
) -> None:
    """A PNG whose checksums are right, but whose header may lie, raises ImageError or is read."""
    (tmp_path / "a").write_bytes(png(width, height, depth, colour, data, interlace))
    survives(tmp_path / "a", ALL, MOST)
