"""Stored values of a frame become Hounsfield units, signal or intensities.

Clauses are those of PS3.3. Shapes: H rows, W columns.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.special import expit

from client.dicom_tables import looked_up, painted
from client.pixels import Pixels
from common.errors import ImageError

Unit = Literal["hounsfield", "signal", "shown"]
GREY = ("MONOCHROME1", "MONOCHROME2")
GREY_AXES, COLOUR_AXES = 2, 3
AIR = -1000.0
"""What padding becomes on CT, in Hounsfield units: there is no patient."""


class Values(NamedTuple):
    """One frame in its unit."""

    values: NDArray[np.float32]
    """Shape (H, W), or (H, W, 3) with red first."""
    low: float
    """Least value, padding left out; of grey images before any window."""
    high: float
    """Greatest value likewise."""


def unit_of(photometric: str, modality: str) -> Unit:
    """Return what the values of a frame become in a task of a modality."""
    if photometric not in GREY:
        return "shown"
    units: dict[str, Unit] = {"CT": "hounsfield", "MR": "signal"}
    return units.get(modality, "shown")


def values_of(stored: Pixels, photometric: str, view: Dataset, unit: Unit) -> Values:
    """Bring a frame to its unit.

    Args:
        stored: Stored values of shape (H, W) or (H, W, 3).
        photometric: The photometric interpretation that they have.
        view: What holds for the frame; see ``views_of``.
        unit: See ``unit_of``.

    Raises:
        ImageError: It says too little, or is of a kind that is not read.
    """
    if photometric not in GREY or stored.ndim != GREY_AXES:
        return _colour(stored, view, photometric)
    if unit == "hounsfield":
        _check_hounsfield(view)
    padding = _padding(stored, view)
    values = _modality_values(stored, view)
    low, high = _ends(stored, values, padding, view)
    if unit == "shown":
        values = _presented(values, view)
    if padding is not None:
        # C.7.5.1.1.2: padding is no part of the image, and is to be seen as background
        values[padding] = _background(view, unit, low, high)
    return Values(values.astype(np.float32, copy=False), low, high)


def _ends(
    stored: Pixels, values: Pixels, padding: NDArray[np.bool_] | None, view: Dataset
) -> tuple[float, float]:
    """Return the least and the greatest of a modality's values, padding left out."""
    inside = values
    if padding is not None:
        inside = values if padding.all() else values[~padding]
    elif stored.dtype.kind in "iu" and "ModalityLUTSequence" not in view:
        # A rescale keeps or turns the order, and integers of 16 bits are the fastest to compare.
        inside = _modality_values(np.array([stored.min(), stored.max()]), view)
    return float(inside.min()), float(inside.max())


def _background(view: Dataset, unit: Unit, low: float, high: float) -> float:
    if unit == "hounsfield":
        return AIR
    if unit == "shown":
        return 0.0
    return high if view.PhotometricInterpretation == "MONOCHROME1" else low


def _padding(stored: Pixels, view: Dataset) -> NDArray[np.bool_] | None:
    """Return where a frame is padded, or None where it is not (C.7.5.1.1.2)."""
    names = {"f4": "FloatPixelPadding", "f8": "DoubleFloatPixelPadding"}  # C.7.6.24, C.7.6.25
    name = names.get(stored.dtype.str[1:], "PixelPadding")
    if view.get(f"{name}Value") is None:
        return None
    value = view.get(f"{name}Value")
    limit = view.get(f"{name}RangeLimit")
    # Written as unsigned where pixels are signed, it wraps around, as the bits would.
    ends = np.array([value, value if limit is None else limit]).astype(stored.dtype)
    padding: NDArray[np.bool_] = (stored >= ends.min()) & (stored <= ends.max())
    return padding if padding.any() else None


def _modality_values(stored: Pixels, view: Dataset) -> Pixels:
    """Return the modality's own values (C.11.1)."""
    if view.get("ModalityLUTSequence"):
        return looked_up(stored, view.ModalityLUTSequence[0], view, signed=_is_signed(view))[0]
    # Float32 holds integers of 24 bits, and pixels of 16 after any rescale that they come with.
    wide = np.float32 if stored.dtype.itemsize < 4 else np.float64  # noqa: PLR2004 - bytes
    values: Pixels = stored.astype(wide)
    slope, intercept = view.get("RescaleSlope"), view.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        if slope != 1:
            np.multiply(values, wide(slope), out=values)
        np.add(values, wide(intercept), out=values)
    return values


def _check_hounsfield(view: Dataset) -> None:
    # C.8.2.1.1.5: slope and intercept give Hounsfield units; both are required
    if view.get("RescaleSlope") is None or view.get("RescaleIntercept") is None:
        raise ImageError("it has no rescale to Hounsfield units", remedy="List original CT slices.")
    # C.11.1.1.2; many scanners leave it out or write US (unspecified) for HU
    if (unit := str(view.get("RescaleType") or "HU")) not in ("HU", "US"):
        raise ImageError(
            f"its values are {unit}, not Hounsfield units", remedy="List original CT slices."
        )


def _presented(values: Pixels, view: Dataset) -> Pixels:
    """Return values in [0, 1] as the file asks them to be shown, 0 the darkest."""
    shown = _contrast(values, view)
    # C.7.6.3.1.2: in MONOCHROME1 the lowest value is shown as white
    return 1 - shown if view.PhotometricInterpretation == "MONOCHROME1" else shown


def _contrast(values: Pixels, view: Dataset) -> Pixels:
    # C.11.2.1.1: the first of several tables, which are alternatives
    if view.get("VOILUTSequence"):
        signed = _is_signed(view) and not view.get("ModalityLUTSequence")
        entries, bits = looked_up(values, view.VOILUTSequence[0], view, signed=signed)
        return _scaled(entries, 0, 2**bits - 1)
    # C.11.2.1.2: the first of several windows, which are alternatives
    if view.get("WindowCenter") is not None and view.get("WindowWidth") is not None:
        centre, width = (
            float(np.atleast_1d(view[key].value)[0]) for key in ("WindowCenter", "WindowWidth")
        )
        function = str(view.get("VOILUTFunction") or "LINEAR")
        # C.11.2.1.2.1 counts in whole numbers, which the values of a quantity are not.
        if function == "LINEAR" and "BitsStored" not in view:
            function = "LINEAR_EXACT"
        return _windowed(values, centre, width, function)
    return _scaled(values, *_full_range(values, view))


def _windowed(values: Pixels, centre: float, width: float, function: str) -> Pixels:
    """Return values through a window, in [0, 1] (C.11.2.1.2 and C.11.2.1.3)."""
    least = 1.0 if function == "LINEAR" else np.finfo(float).tiny
    if not width >= least or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(
            f"a Window Width of {width:g} is none for the function {function}",
            remedy="Export it without a window.",
        )
    if function == "SIGMOID":  # C.11.2.1.3.1
        curve: Pixels = expit(4 * (values - centre) / width)
        return curve
    if function == "LINEAR":  # C.11.2.1.2.1
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float32)
    return _scaled(values, centre - width / 2, centre + width / 2)


def _full_range(values: Pixels, view: Dataset) -> tuple[float, float]:
    """Return the least and the greatest value that the bits could hold, after the modality LUT."""
    if "BitsStored" not in view:  # C.7.6.24, C.7.6.25: floats have no range of their own
        return float(values.min()), float(values.max())
    # C.11.1.1.1: the third value of the descriptor is the bits of an entry, unsigned
    if view.get("ModalityLUTSequence"):
        bits = int(view.ModalityLUTSequence[0].LUTDescriptor[2])
        return 0.0, float(2**bits - 1)
    bits = int(view.BitsStored)
    low = -(2 ** (bits - 1)) if _is_signed(view) else 0
    ends = _modality_values(np.array([low, low + 2**bits - 1]), view)
    return float(ends.min()), float(ends.max())


def _is_signed(view: Dataset) -> bool:
    # C.7.6.3.1.1 and PS3.5 8.1.1: two's complement where it is 1
    return bool(view.get("PixelRepresentation") == 1)


def _scaled(values: Pixels, low: float, high: float) -> Pixels:
    """Return values with ``low`` at 0 and ``high`` at 1, cut off beyond."""
    if low == high:
        raise ImageError("every pixel has the same value", remedy="Take it out of the manifest.")
    scaled: Pixels = (values - low) / (high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def _colour(stored: Pixels, view: Dataset, photometric: str) -> Values:
    # C.7.6.3.1.2; the decoder has made RGB of YBR_FULL, YBR_FULL_422, YBR_ICT and YBR_RCT
    if photometric == "RGB" and stored.ndim == COLOUR_AXES:
        shown = _scaled(stored.astype(np.float32), 0, 2 ** int(view.BitsStored) - 1)
    elif photometric == "PALETTE COLOR" and stored.ndim == GREY_AXES:
        shown = painted(stored, view)
    else:
        raise ImageError(
            f"photometric interpretation {photometric} is not read", remedy="Export it as RGB."
        )
    return Values(shown.astype(np.float32), float(shown.min()), float(shown.max()))
