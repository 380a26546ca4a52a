"""What a compressed frame says of itself, read before any decoder sees it.

A decoder asks for memory by the codestream's own header, not by the file's: both must agree.
"""

import struct
from typing import NamedTuple

from pydicom.uid import UID, JPEG2000TransferSyntaxes

from common.errors import ImageError

SOI, SOS = 0xD8, 0xDA
"""Start of image, start of scan (ITU-T T.81 Table B.1)."""
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Start of frame of any process (ITU-T T.81 Table B.1), and of JPEG-LS (ITU-T T.87 C.1.1)."""
SEQUENTIAL = {0xC0, 0xC1}
"""Start of frame of the sequential DCT: baseline and extended."""
LAST_COEFFICIENT = 63


class Frame(NamedTuple):
    """Size and depth of a compressed frame."""

    rows: int
    columns: int
    samples: int
    """Samples per pixel."""
    bits: int
    """Bits per sample."""


def frame_of(codestream: bytes, syntax: UID) -> Frame:
    """Return what a frame of a JPEG syntax claims to hold.

    Args:
        codestream: One frame, from its first byte.
        syntax: Its transfer syntax: JPEG, JPEG-LS, JPEG 2000 or HTJ2K.

    Raises:
        ImageError: It has no such header.
    """
    try:
        if syntax in JPEG2000TransferSyntaxes:
            return _jpeg2000(codestream)
        return _jpeg(codestream)[0]
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(
            "its compressed pixels have no header that can be read", remedy="Export it again."
        ) from error


def mended(codestream: bytes) -> bytes:
    """Return a JPEG frame with the last coefficient of its first scan set to what it must be.

    ITU-T T.81 Table B.3: the sequential DCT has no choice but 0 to 63. Some encoders of 12 bits
    write 0 to 0, over which strict decoders stumble, although the scan is complete.
    """
    frame, marker, scan = _jpeg(codestream)
    if marker not in SEQUENTIAL or frame.samples != 1 or scan is None:
        return codestream
    last = scan + 8  # marker 2, length 2, one component 1 + 2, first coefficient 1
    if codestream[last - 1] != 0 or codestream[last] == LAST_COEFFICIENT:
        return codestream
    return codestream[:last] + bytes([LAST_COEFFICIENT]) + codestream[last + 1 :]


def _jpeg2000(codestream: bytes) -> Frame:
    # ITU-T T.800 A.4.1 and A.5.1: SOC, then SIZ; some writers wrap both into a JP2 file
    start = codestream.index(b"\xff\x4f\xff\x51")
    width, height, left, top = struct.unpack_from(">IIII", codestream, start + 8)
    samples, depth = struct.unpack_from(">HB", codestream, start + 40)
    return Frame(height - top, width - left, samples, (depth & 0x7F) + 1)


def _jpeg(codestream: bytes) -> tuple[Frame, int, int | None]:
    """Return the frame header, its marker and where the first scan begins, if one does."""
    frame, kind, at = None, 0, 0
    while True:
        marker, start = _marker(codestream, at)
        if marker == SOS:
            break
        if marker == SOI:
            at = start + 2
            continue
        length, bits, rows, columns, samples = struct.unpack_from(">HBHHB", codestream, start + 2)
        if marker in FRAMES:  # ITU-T T.81 B.2.2 and T.87 C.2.2
            frame, kind = Frame(rows, columns, samples, bits), marker
        at = start + 2 + length
    if frame is None:
        raise ValueError("a scan before its frame")
    return frame, kind, start


def _marker(codestream: bytes, at: int) -> tuple[int, int]:
    """Return the marker at a place, and where it begins; fill bytes may precede it (B.1.1.2)."""
    if codestream[at] != 0xFF:  # noqa: PLR2004 - the first byte of every marker
        raise ValueError("no marker where one must be")
    while codestream[at + 1] == 0xFF:  # noqa: PLR2004 - a fill byte
        at += 1
    return codestream[at + 1], at
