"""What travels from a reader of image files to the preparation: stacks, pictures and facts.

Shapes: N slices, H rows, W columns. These types need numpy alone, so that the gate's worker
processes do not wait for torch.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.study import Task


class Reading(NamedTuple):
    """How a task wants its images to be read."""

    modality: str
    """CT, MR, fundus, OCT or other."""
    window: tuple[float, float] | None
    """Centre and width in Hounsfield units; None means soft tissue, 40 and 400."""
    slices: str = "one"
    """How a volume becomes images: one, all, listed, planes, every:n or middle:n."""
    intensity: str = "percentiles"
    """What becomes 0 and 1 on MR: percentiles or zscore."""


def reading_of(task: Task) -> Reading:
    """Return how a study's task wants its images to be read."""
    return Reading(task.modality, task.window, task.slices, task.intensity)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a source, as a network may see it."""

    values: NDArray[np.float32]
    """In [0, 1], 0 the darkest; shape (H, W) when grey and (H, W, 3), red first, when colour."""
    part: str = ""
    """Which part of the source: "" of a single image, else the number of the slice or frame,
    counted from 1, or the name of a plane."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices of one source in their order, before they are shown."""

    values: NDArray[Any]
    """In ``unit``; shape (N, H, W), or (N, H, W, 3) with red first."""
    unit: Literal["hounsfield", "signal", "shown"]
    """``shown`` is in [0, 1] already; ``signal`` has no unit."""
    inverted: bool = False
    """Whether the least value is meant to be the brightest (MONOCHROME1, PS3.3 C.7.6.3.1.2)."""
    parts: tuple[str, ...] = ("",)
    """The name of each slice; see ``Picture.part``."""
    spacing: tuple[float, float, float] | None = None
    """In mm: between slices along their normal, between rows, between columns."""
    axes: NDArray[np.float64] | None = None
    """3 x 3, unit vectors of the slice, row (downwards) and column (to the right) directions, in
    the patient's coordinates: x to the left, y to the back, z to the head (PS3.3 C.7.6.2.1.1)."""


class Facts(NamedTuple):
    """What a header or a file says beside its pixels; at most 64 characters a text."""

    kind: str = ""
    """PNG, JPEG, TIFF, DICOM, DICOM series or NIfTI."""
    rows: int = 0
    columns: int = 0
    slices: int = 1
    scanner: str = ""
    """Manufacturer and model."""
    sex: str = ""
    """M, F, O or unknown."""
    age: str = ""
    """A band of ten years, such as 40-49; never the age itself."""
    laterality: str = ""
    """L, R or unknown."""
    burned_in: str = ""
    """YES, NO or unknown: whether text is burned into the pixels, by (0028,0301)."""
    orientation: str = ""
    """How rows and columns lie against the usual view: "" when they agree or nothing is known,
    else sideways, mirrored or upside_down."""
    notes: tuple[str, ...] = ()
    """Codes of what is odd: gaps, mixed_spacing, mixed_series, several_windows and others."""
    low: float | None = None
    """Least value of what was read, in the modality's unit."""
    high: float | None = None
    """Greatest value of what was read, in the modality's unit."""


@dataclass(frozen=True, slots=True)
class Source:
    """All that one file or folder gives."""

    pictures: tuple[Picture, ...]
    facts: Facts
