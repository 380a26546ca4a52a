"""Laws of where slices lie in the patient; vectors by hand are the reference."""

import numpy as np
import pytest
from pydicom import Dataset

from client.dicom_geometry import orientation_of, placed
from common.errors import ImageError

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def view(
    position: tuple[float, float, float] | None = (0, 0, 0),
    directions: tuple[float, ...] | None = AXIAL,
    **elements: object,
) -> Dataset:
    """Return the header of a slice of 8 x 8 pixels of 0.5 x 0.7 mm."""
    found = Dataset()
    found.Rows = found.Columns = 8
    found.PixelSpacing = [0.5, 0.7]
    if position is not None:
        found.ImagePositionPatient = list(position)
    if directions is not None:
        found.ImageOrientationPatient = list(directions)
    for name, value in elements.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("directions", "along"),
    [(AXIAL, (0, 0, 1)), (CORONAL, (0, 1, 0)), (SAGITTAL, (-1, 0, 0))],
)
def test_slices_are_ordered_along_their_normal(
    directions: tuple[float, ...], along: tuple[int, int, int]
) -> None:
    """The order is that of the position along row x column, and the axes are unit vectors."""
    heights = [12.0, -3.0, 7.0, 2.0]
    views = [view(tuple(5 + h * np.array(along)), directions) for h in heights]
    placing = placed(views)
    assert placing.order == (1, 3, 2, 0)
    assert placing.spacing == pytest.approx((5, 0.5, 0.7))
    assert placing.notes == ()
    assert placing.axes is not None
    np.testing.assert_allclose(placing.axes, [along, directions[3:], directions[:3]])


def test_oblique_slices_are_ordered_too() -> None:
    """On slices that are turned by 30 degrees, only the way along the normal counts."""
    sine, cosine = np.sin(np.pi / 6), np.cos(np.pi / 6)
    normal = np.array([0, -sine, cosine])
    views = [view(tuple(h * normal), (1, 0, 0, 0, cosine, sine)) for h in (4.0, 0.0, 2.0)]
    assert placed(views).order == (1, 2, 0)
    assert placed(views).spacing == pytest.approx((2, 0.5, 0.7))


@pytest.mark.parametrize(
    ("heights", "notes"),
    [
        ((0, 1, 2, 3, 4), ()),
        ((0, 1.02, 2, 3, 4.01), ()),
        ((0, 1, 2, 4, 5), ("gaps",)),
        ((0, 1, 2.2, 3.2, 4.2), ("mixed_spacing",)),
        ((0, 1, 2.2, 3.2, 5.7), ("gaps", "mixed_spacing")),
    ],
)
def test_gaps_and_uneven_spacing_are_noted(
    heights: tuple[float, ...], notes: tuple[str, ...]
) -> None:
    """A distance of more than 1.5 medians is a gap, one of 5 % beside the median is uneven."""
    assert placed([view((0, 0, height)) for height in heights]).notes == notes


def test_a_tilted_gantry_is_noted() -> None:
    """Slices that shift within their plane from one to the next are of a tilted gantry."""
    assert placed([view((0, 0.3 * h, h)) for h in (0.0, 5.0, 10.0)]).notes == ("tilted",)
    assert placed([view((0, 0.01 * h, h)) for h in (0.0, 5.0, 10.0)]).notes == ()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (view((0, 0, 5), Rows=9), "sizes"),
        (view((0, 0, 5), Columns=9), "sizes"),
        (view((0, 0, 5), PixelSpacing=[0.5, 0.71]), "spacings of pixels"),
        (view((0, 0, 5), CORONAL), "directions"),
        (view((0, 0, 5), None), "directions"),
        (view((3, 0, 0)), "place of another"),
    ],
)
def test_slices_of_no_one_volume_are_refused(other: Dataset, reason: str) -> None:
    """Slices that differ in size, spacing or direction, or share a place, make no volume."""
    with pytest.raises(ImageError, match=reason) as refusal:
        placed([view(), other])
    assert refusal.value.remedy


def test_without_positions_the_order_is_kept() -> None:
    """Slices or frames without positions stay as they come, and their axes are unknown."""
    several = placed([view(None, SpacingBetweenSlices="3"), view(None)])
    assert several.order == (0, 1)
    assert several.axes is None
    assert several.spacing == (3, 0.5, 0.7)
    assert several.notes == ("no_positions",)
    frames = [view()] * 3  # of one header, whose position is that of its first frame
    assert placed(frames).notes == ("no_positions",)


def test_a_single_slice_lies_where_it_says() -> None:
    """One slice has its axes, and for a distance what it says of distance or thickness."""
    alone = placed([view(None, SliceThickness="2")])
    assert (alone.order, alone.spacing, alone.notes) == ((0,), (2, 0.5, 0.7), ())
    assert alone.axes is not None
    assert placed([view()]).spacing is None
    assert placed([view(None, (1, 0, 0, 1, 0, 0))]).axes is None


@pytest.mark.parametrize(
    ("directions", "word"),
    [
        (AXIAL, ""),
        (CORONAL, ""),
        (SAGITTAL, ""),
        ((0.97, 0.1, 0.22, -0.12, 0.99, 0.08), ""),
        ((-1, 0, 0, 0, 1, 0), "mirrored"),
        ((-1, 0, 0, 0, 0, -1), "mirrored"),
        ((0, -1, 0, 0, 0, -1), "mirrored"),
        ((1, 0, 0, 0, -1, 0), "upside_down"),
        ((-1, 0, 0, 0, -1, 0), "upside_down"),
        ((1, 0, 0, 0, 0, 1), "upside_down"),
        ((0, 1, 0, 1, 0, 0), "sideways"),
        ((0, -1, 0, 1, 0, 0), "sideways"),
        ((0, 0, -1, 1, 0, 0), "sideways"),
        ((0, 0, 1, 0, 1, 0), "sideways"),
        ((0.7071, 0.7071, 0, -0.7071, 0.7071, 0), ""),
        (None, ""),
    ],
)
def test_the_view_is_judged_by_its_directions(
    directions: tuple[float, ...] | None, word: str
) -> None:
    """Against the radiologist's view a slice is as it should be, turned, mirrored or oblique."""
    assert orientation_of(view(None, directions)) == word


@pytest.mark.parametrize(
    ("letters", "word"),
    [
        (["L", "F"], ""),
        (["A", "F"], ""),
        (["P", "L"], ""),
        (["R", "F"], "mirrored"),
        (["L", "H"], "upside_down"),
        (["F", "L"], "sideways"),
        (["HL", "A"], "sideways"),
        ("", ""),
        (["L"], ""),
    ],
)
def test_a_radiograph_is_judged_by_its_letters(letters: list[str] | str, word: str) -> None:
    """Rows usually run to the patient's left and columns to the feet."""
    assert orientation_of(view(None, None, PatientOrientation=letters)) == word
