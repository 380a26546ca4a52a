"""How a study wants images to be looked at, prepared and varied; the sites do it, all alike.

Every key of a table may be left out; what then holds depends on the task's modality.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from common.section import Positive, Section

Modality = Literal["CT", "MR", "fundus", "OCT", "other"]

WINDOWS: Mapping[str, tuple[float, float]] = {
    "abdomen": (40.0, 400.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 350.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
"""Centre and width of windows by name, in Hounsfield units: the usual presets of viewers."""


def _numbers_of(window: object) -> object:
    if isinstance(window, list):  # of JSON, where pydantic would take it for a tuple by itself
        return tuple(window)
    if not isinstance(window, str):
        return window
    if window not in WINDOWS:
        raise ValueError(f"there is no such window; use two numbers or {', '.join(WINDOWS)}")
    return WINDOWS[window]


Window = Annotated[tuple[float, Positive], BeforeValidator(_numbers_of)]
"""Centre and width, in Hounsfield units; a name of ``WINDOWS`` stands for its numbers."""
Slices = Annotated[
    str, Field(pattern="^(one|all|listed|planes|every:[1-9][0-9]{0,2}|middle:[1-9][0-9]{0,2})$")
]
"""How a volume becomes images: it must be ``one`` image; ``all`` slices; ``every:n``-th, the first
included; the ``middle:n``; those ``listed`` in the manifest; or three ``planes`` through its
centre, axial, coronal and sagittal, at equal spacing."""
Rate = Annotated[float, Field(ge=0, le=1)]


class Preparation(Section):
    """What every image goes through before the network sees it, in this order."""

    crop: Literal["none", "retina"] | None = None
    """``retina`` cuts a photograph of the fundus to the disc of the retina."""
    mirror: bool | None = None
    """Mirror left eyes, where the manifest or the header names the side."""
    ben_graham: bool = False
    """Subtract the local mean colour (Graham 2015)."""
    local_contrast: bool = False
    """CLAHE on the lightness of a colour image."""
    denoise: Literal["none", "median", "nlmeans"] = "none"
    """A median filter of 3 x 3 pixels, or non-local means."""
    equalise: Literal["none", "global", "clahe"] = "none"
    """Histogram equalisation; of a colour image, of its lightness."""
    aspect: Literal["stretch", "pad"] = "stretch"
    """Stretch an image to the study's square, or keep its proportions on black."""


class Augmentation(Section):
    """Random changes of a training image, anew each time that it is seen."""

    rotation: Annotated[float, Field(ge=0, le=180)] | None = None
    """Largest rotation to either side, in degrees."""
    zoom: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Largest change of size, as a share."""
    flip: bool | None = None
    """Mirror left and right, every other time."""
    contrast: Rate | None = None
    """Largest change of contrast, as a share."""
    brightness: Rate | None = None
    """Largest change of brightness, as a share."""
    elastic: Annotated[float, Field(ge=0, le=100)] | None = None
    """Size of an elastic deformation, in thousandths of the image's side."""
    noise: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Standard deviation of Gaussian noise, of intensities in [0, 1]."""


class Varied(NamedTuple):
    """An augmentation in which nothing is left out."""

    rotation: float
    zoom: float
    flip: bool
    contrast: float
    brightness: float
    elastic: float
    noise: float


VARIED: Mapping[str, Varied] = {
    "CT": Varied(10, 0.1, flip=False, contrast=0.1, brightness=0.1, elastic=0, noise=0.01),
    "MR": Varied(10, 0.1, flip=False, contrast=0.1, brightness=0.1, elastic=0, noise=0.01),
    "fundus": Varied(15, 0.1, flip=False, contrast=0.1, brightness=0.1, elastic=0, noise=0),
    "OCT": Varied(5, 0.1, flip=True, contrast=0.1, brightness=0.1, elastic=0, noise=0.02),
    "other": Varied(10, 0.1, flip=False, contrast=0.1, brightness=0.1, elastic=0, noise=0),
}
"""What an augmentation table leaves out, by modality. Nothing is flipped where left and right
differ: organs in the trunk, and eyes, whose sides ``mirror`` makes alike instead."""


def varied(augmentation: Augmentation, modality: str) -> Varied:
    """Return an augmentation with the modality's defaults for what it leaves out."""
    given = {k: v for k, v in augmentation.model_dump().items() if v is not None}
    return VARIED[modality]._replace(**given)


def prepared(preparation: Preparation | None, modality: str) -> Preparation:
    """Return what images of a modality go through; without a table, only the resize."""
    if preparation is None:
        return Preparation(crop="none", mirror=False)
    fundus = modality == "fundus"
    crop, mirror = preparation.crop, preparation.mirror
    return preparation.model_copy(
        update={
            "crop": crop or ("retina" if fundus else "none"),
            "mirror": fundus if mirror is None else mirror,
        }
    )
