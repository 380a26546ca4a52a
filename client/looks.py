"""What the gate keeps of a source that was read once, when its pixels are gone.

It needs no torch, so that the processes that read images start quickly.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.burned_in import signs_of_text
from client.pictures import Facts, Picture, Source

_SMALL = 64  # pixels of each side: what the finer hash looks at


class Look(NamedTuple):
    """What one source looked like. It is small: those of a whole manifest fit into memory."""

    facts: Facts
    parts: tuple[str, ...]
    """Which part of the source each of its images is; see ``Picture.part``."""
    phash: str
    """Perceptual hash of the middle picture, 64 bits as 16 hexadecimal digits."""
    fine: str
    """Finer perceptual hash of the same, 256 bits as 64 digits."""
    signs: int
    """Signs in text-like lines near the border of the middle picture; see ``burned_in``."""
    dark: float
    """Share of the pixels of all pictures that are 0, in [0, 1]."""
    bright: float
    """Share of the pixels of all pictures that are 1, in [0, 1]."""
    mean: float
    """Mean over the pixels of all pictures, in [0, 1]."""


def look_at(source: Source) -> Look:
    """Return what is kept of a source."""
    pictures = source.pictures
    middle = pictures[len(pictures) // 2].values
    coarse, fine = hashes_of(middle)
    return Look(
        facts=source.facts,
        parts=tuple(picture.part for picture in pictures),
        phash=coarse,
        fine=fine,
        signs=signs_of_text(middle),
        dark=_share(pictures, 0.0),
        bright=_share(pictures, 1.0),
        mean=float(
            np.average(
                [picture.values.mean() for picture in pictures],
                weights=[picture.values.size for picture in pictures],
            )
        ),
    )


def look_from(said: Mapping[str, Any]) -> Look:
    """Return the look that ``said`` was made of.

    Args:
        said: The fields of a look, as JSON gives them.

    Raises:
        TypeError: A field is missing, or there is one more.
    """
    facts = Facts(**said["facts"])
    facts = facts._replace(notes=tuple(facts.notes))
    return Look(**{**said, "facts": facts, "parts": tuple(said["parts"])})


def said_of(look: Look) -> dict[str, Any]:
    """Return the fields of a look, for JSON."""
    return look._asdict() | {"facts": look.facts._asdict()}


def hashes_of(values: NDArray[np.float32]) -> tuple[str, str]:
    """Return the perceptual hashes of a picture: which of its lowest frequencies are strong.

    Of the lowest 8 x 8 and 16 x 16 frequencies, each is compared with their median (pHash, Zauner
    2010).

    Args:
        values: In [0, 1], shape (H, W) or (H, W, 3).

    Returns:
        64 bits as 16 hexadecimal digits, and 256 bits as 64; similar pictures differ in few bits.
    """
    levels = cv2.convertScaleAbs(values, alpha=255)
    if levels.ndim == 3:  # noqa: PLR2004 - colour
        levels = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    # The means of its areas are all that the low frequencies need, and a small picture is fast.
    small = cv2.resize(levels, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
    found = [imagehash.phash(Image.fromarray(small), hash_size=side).hash for side in (8, 16)]
    coarse, fine = (np.packbits(bits).tobytes().hex() for bits in found)
    return coarse, fine


def _share(pictures: Sequence[Picture], value: float) -> float:
    counted = sum(int(np.count_nonzero(picture.values == value)) for picture in pictures)
    return counted / sum(picture.values.size for picture in pictures)
