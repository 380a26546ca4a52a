"""Laws of what stored values become; pydicom and arithmetic by hand are the reference."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from client.dicom_values import Unit, Values, unit_of, values_of
from common.errors import ImageError

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 40


def view_of(
    stored: NDArray[Any], *, syntax: UID = ExplicitVRLittleEndian, **elements: object
) -> Dataset:
    """Return the header of an image of 12 bits, or of 8 where the pixels are bytes."""
    view = Dataset()
    view.file_meta = FileMetaDataset()
    view.file_meta.TransferSyntaxUID = syntax
    view.PhotometricInterpretation = "MONOCHROME2"
    view.BitsStored = 12 if stored.dtype.itemsize == 2 else 8
    view.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    for name, value in elements.items():
        setattr(view, name, value)
    return view


def values(stored: NDArray[Any], unit: Unit, **elements: object) -> Values:
    view = view_of(stored, **elements)
    return values_of(stored, view.PhotometricInterpretation, view, unit)


def shown(stored: NDArray[Any], **elements: object) -> NDArray[np.float32]:
    return values(stored, "shown", **elements).values


def table(entries: list[int], *, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


@pytest.mark.parametrize(
    ("photometric", "modality", "unit"),
    [
        ("MONOCHROME1", "CT", "hounsfield"),
        ("MONOCHROME2", "MR", "signal"),
        ("MONOCHROME2", "OCT", "shown"),
        ("RGB", "CT", "shown"),
        ("PALETTE COLOR", "MR", "shown"),
    ],
)
def test_the_task_and_the_colour_decide_the_unit(
    photometric: str, modality: str, unit: str
) -> None:
    """Grey images of CT and MR have a unit; others, and those in colour, are shown."""
    assert unit_of(photometric, modality) == unit


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({}, "no rescale"),
        ({"RescaleSlope": "1", "RescaleIntercept": "0", "RescaleType": "Z_EFF"}, "Z_EFF"),
    ],
)
def test_ct_without_hounsfield_units_is_refused(elements: dict[str, str], reason: str) -> None:
    """A CT whose values are in no or another unit is refused with that reason."""
    with pytest.raises(ImageError, match=reason):
        values(RAMP, "hounsfield", **elements)


def test_monochrome1_is_the_inverse_of_monochrome2() -> None:
    """The same stored values as MONOCHROME1 and MONOCHROME2 add up to 1 everywhere."""
    one, two = (
        shown(RAMP, PhotometricInterpretation=name) for name in ("MONOCHROME1", "MONOCHROME2")
    )
    np.testing.assert_allclose(one + two, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("unit", "name", "background"),
    [
        ("hounsfield", "MONOCHROME1", -1000),
        ("hounsfield", "MONOCHROME2", -1000),
        ("signal", "MONOCHROME2", 10),
        ("signal", "MONOCHROME1", 90),
        ("shown", "MONOCHROME1", 0),
        ("shown", "MONOCHROME2", 0),
    ],
)
def test_padding_is_background(unit: Unit, name: str, background: float) -> None:
    """Padding counts in no extreme: it is air on CT, as dark as the darkest pixel elsewhere."""
    stored = np.array([[-2000, 10], [50, 90]], dtype=np.int16)
    elements = {"RescaleSlope": "1", "RescaleIntercept": "0", "PixelPaddingValue": -2000}
    found = values(stored, unit, PhotometricInterpretation=name, **elements)
    assert found.values[0, 0] == background
    assert (found.low, found.high) == (10, 90)


@pytest.mark.parametrize(
    ("padding", "limit", "low"),
    [
        (-2000, None, -1990),
        (-2000, -1990, -1989),
        (-1990, -2000, -1989),
        (2**16 - 2000, None, -1990),  # written as unsigned
        (7, None, -2000),
    ],
)
def test_padding_may_be_a_range_and_wrap_around(
    padding: int, limit: int | None, low: float
) -> None:
    """All from the padding value to its limit is padding; unsigned, it means the same bits."""
    stored = np.array([[-2000, -1990, 5], [50, 90, -1989]], dtype=np.int16)
    elements = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    assert values(stored, "signal", PixelPaddingValue=padding, **elements).low == low


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", ["1", "800"])
def test_the_files_own_window_is_pydicoms(function: str, width: str) -> None:
    """The first window of a file shows what pydicom's windowing shows, over its output range."""
    elements = {
        "WindowCenter": ["1200", "5"],
        "WindowWidth": [width, "9"],
        "VOILUTFunction": function,
    }
    with np.errstate(over="ignore"):
        expected = apply_windowing(RAMP, view_of(RAMP, **elements)) / 4095
    np.testing.assert_allclose(shown(RAMP, **elements), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "width"), [("LINEAR", "0.5"), ("LINEAR_EXACT", "0"), ("SIGMOID", "-1"), ("X", "9")]
)
def test_an_impossible_window_is_refused(function: str, width: str) -> None:
    """A width that the function cannot have, and an unknown function, are refused."""
    with pytest.raises(ImageError, match="Window Width"):
        shown(RAMP, WindowCenter="5", WindowWidth=width, VOILUTFunction=function)


def test_the_files_own_table_is_looked_up() -> None:
    """A VOI LUT wins over a window; stored values outside the table take its ends."""
    stored = np.array([[9, 10, 11], [12, 13, 99]], dtype=np.uint16)
    item = table([0, 1023, 2048, 4095], first=10, bits=12)
    by_hand = np.array([[0, 0, 1023], [2048, 4095, 4095]]) / 4095
    found = shown(stored, VOILUTSequence=[item], WindowCenter="1", WindowWidth="1")
    np.testing.assert_allclose(found, by_hand, atol=1e-6)


def test_a_table_may_have_more_entries_than_its_bits_can_index() -> None:
    """A VOI LUT of 512 entries of 8 bits is read, where an index of 8 bits would wrap around."""
    item = table([index // 2 for index in range(512)], first=0, bits=8)
    found = shown(RAMP, VOILUTSequence=[item])
    np.testing.assert_allclose(found, RAMP.clip(0, 511) // 2 / 255, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_modality_lut_is_looked_up_over_the_whole_range(syntax: UID) -> None:
    """The most negative and the most positive of 16 signed bits find entries of 12 bits."""
    stored = np.array([[-32768, -1], [0, 32767]], dtype=np.int16)
    entries = (np.arange(2**16) * 7 % 4096).astype("<u2" if syntax.is_little_endian else ">u2")
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [0, 2**15, 12])  # 65536 entries from -32768
    item.add_new("LUTData", "OW", entries.tobytes())
    elements = {"BitsStored": 16, "ModalityLUTSequence": [item]}
    found = values(stored, "signal", syntax=syntax, **elements)
    np.testing.assert_array_equal(found.values, entries[stored.astype(int) + 2**15])
    np.testing.assert_allclose(
        shown(stored, syntax=syntax, **elements), found.values / 4095, atol=1e-6
    )


def test_without_a_window_the_stored_bits_are_the_range() -> None:
    """With no window or table, 0 and 1 are the ends of the stored bits, signed or not."""
    np.testing.assert_allclose(shown(RAMP), RAMP / 4095, atol=1e-6)
    signed = RAMP.astype(np.int16) - 1000
    found = shown(signed, RescaleSlope="-1", RescaleIntercept="0")
    np.testing.assert_allclose(found, (2047.0 - signed) / 4095, atol=1e-6)


def palette(colours: NDArray[Any], *, first: int, bits: int) -> dict[str, object]:
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        start = f"{name}PaletteColorLookupTable"
        elements[f"{start}Descriptor"] = [len(colours), first, bits]
        entries = colours[:, channel].tobytes()
        elements[f"{start}Data"] = entries + b"\0" * (len(entries) % 2)
    return elements


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2"])
def test_a_palette_paints(kind: str) -> None:
    """A stored value takes the colour of its entry; values beyond the palette take its ends."""
    full = 255 if kind == "u1" else 65535
    colours = np.array([[0, 10, 20], [30, 40, 50], [full, 128, 0]], dtype=kind)
    stored = np.array([[4, 5], [6, 7], [9, 0]], dtype=np.uint8)
    syntax = ExplicitVRBigEndian if kind == ">u2" else ExplicitVRLittleEndian
    for bits in (8, 16):  # some writers name the wrong depth
        found = shown(stored, syntax=syntax, **palette(colours, first=5, bits=bits))
        index = (stored.astype(int) - 5).clip(0, 2)
        np.testing.assert_allclose(found, colours[index] / full, atol=1e-6)


def test_a_palette_may_be_larger_than_its_depth() -> None:
    """A palette of 4096 entries of 8 bits is indexed as a whole."""
    colours = np.random.default_rng(0).integers(0, 256, (4096, 3), dtype=np.uint8)
    found = shown(RAMP, **palette(colours, first=0, bits=8))
    np.testing.assert_allclose(found, colours[RAMP] / 255, atol=1e-6)


def test_a_palette_in_segments_is_expanded() -> None:
    """A discrete and a linear segment are the entries that they stand for."""
    segments = np.array([0, 2, 10, 20, 1, 4, 60], dtype=np.uint16)  # 10, 20, then 30, 40, 50, 60
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [6, 0, 16]
        elements[f"Segmented{name}PaletteColorLookupTableData"] = segments.tobytes()
    stored = np.arange(8, dtype=np.uint8).reshape(2, 4)
    by_hand = np.array([[10, 20, 30, 40], [50, 60, 60, 60]]) / 65535
    np.testing.assert_allclose(shown(stored, **elements)[..., 0], by_hand, atol=1e-6)
