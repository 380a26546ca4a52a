"""Laws of how a volume becomes images; a body whose every voxel is known is the reference."""

from itertools import permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from client.pictures import Stack
from client.volumes import chosen, part_names, planes
from common.errors import ImageError

SIZES = (3, 5, 7)
X, Y, Z = np.meshgrid(*map(np.arange, SIZES), indexing="ij")
BODY = (100 * X + 10 * Y + Z).astype(np.float32)
"""Voxel values by place: x to the patient's left, y to the back, z to the head."""
ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def laid(order: tuple[int, ...], signs: tuple[int, ...]) -> Stack:
    """Return the body as slices, rows and columns along the axes ``order``, in directions."""
    flips = tuple(slice(None, None, sign) for sign in signs)
    axes = np.array([sign * np.eye(3)[axis] for axis, sign in zip(order, signs, strict=True)])
    return Stack(BODY.transpose(order)[flips], "signal", spacing=(2.0, 2.0, 2.0), axes=axes)


@pytest.mark.parametrize(
    ("count", "slices", "indices"),
    [
        (1, "one", [0]),
        (1, "all", [0]),
        (4, "all", [0, 1, 2, 3]),
        (4, "planes", [0, 1, 2, 3]),
        (7, "every:3", [0, 3, 6]),
        (2, "every:999", [0]),
        (7, "middle:3", [2, 3, 4]),
        (7, "middle:1", [3]),
        (8, "middle:3", [2, 3, 4]),
        (8, "middle:2", [3, 4]),
        (3, "middle:8", [0, 1, 2]),
    ],
)
def test_a_study_chooses_slices(count: int, slices: str, indices: list[int]) -> None:
    """Every n-th starts with the first, the middle n lie around the centre, or all there are."""
    assert list(chosen(count, slices)) == indices


def test_a_row_lists_slices() -> None:
    """Listed numbers count from 1; each slice comes once, in its order."""
    assert chosen(5, "listed", [5, 1, 5, 2]) == (0, 1, 4)


@pytest.mark.parametrize(
    ("slices", "listed", "reason"),
    [
        ("one", [], "3 slices or frames, and the task expects one"),
        ("listed", [], "lists no slices"),
        ("listed", [0, 3, 4], "lists slices 0, 4, but it has 1 to 3"),
    ],
)
def test_a_wish_that_a_volume_cannot_meet_is_refused(
    slices: str, listed: list[int], reason: str
) -> None:
    """Several slices for one image, no list, and a number beyond the volume are refused."""
    with pytest.raises(ImageError, match=reason) as refusal:
        chosen(3, slices, listed)
    assert refusal.value.remedy


def test_parts_are_named_by_their_numbers() -> None:
    """Slices are called by their numbers from 1, and the only one has no name."""
    assert part_names((0, 4), 5) == ("1", "5")
    assert part_names((0,), 1) == ("",)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_planes_are_the_radiologists_views(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """However a volume was scanned, its three planes are the same body seen the same way."""
    seen = dict(planes(laid(order, signs)))
    assert list(seen) == ["axial", "coronal", "sagittal"]
    assert seen["axial"].shape == (5, 3)
    # Corners by hand: x is 0 at the patient's right, y is 0 in front, z is 6 at the head.
    assert seen["axial"][[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [3, 203, 43, 243]
    assert seen["coronal"].shape == (7, 3)
    assert seen["coronal"][[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [26, 226, 20, 220]
    assert seen["sagittal"].shape == (7, 5)
    assert seen["sagittal"][[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [106, 146, 100, 140]


def test_an_oblique_volume_is_cut_along_its_own_axes() -> None:
    """Axes 20 degrees off the body's give the planes of the axes that they are nearest to."""
    angle = np.radians(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    straight = laid((2, 1, 0), (1, 1, 1))
    assert straight.axes is not None
    oblique = Stack(
        straight.values, "signal", spacing=straight.spacing, axes=straight.axes @ turn.T
    )
    for (_, one), (_, other) in zip(planes(straight), planes(oblique), strict=True):
        np.testing.assert_array_equal(one, other)


def test_planes_have_equal_spacing() -> None:
    """A plane is stretched to the finest spacing, linearly between the centres of its pixels."""
    stack = laid((2, 1, 0), (1, 1, 1))
    stack = Stack(stack.values, "signal", spacing=(3.0, 0.5, 1.0), axes=stack.axes)
    axial, coronal, sagittal = (plane for _, plane in planes(stack))
    assert axial.shape == (5, 6)
    assert coronal.shape == (42, 6)
    assert sagittal.shape == (42, 5)
    centres = (np.arange(42) + 0.5) / 6 - 0.5  # of the fine rows, among seven coarse ones
    by_hand: NDArray[np.float64] = np.interp(centres, np.arange(7), 100 + 20 + np.arange(7)[::-1])
    np.testing.assert_allclose(sagittal[:, 2], by_hand, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": BODY[:1]}, "one slice"),
        ({"axes": None}, "too little of where"),
        ({"axes": np.zeros((3, 3))}, "too little of where"),
        ({"spacing": None}, "too little of where"),
        ({"spacing": (0.0, 1.0, 1.0)}, "too little of where"),
        ({"spacing": (float("nan"), 1.0, 1.0)}, "too little of where"),
        ({"spacing": (1e6, 1e-3, 1.0)}, "pixels are more than"),
    ],
)
def test_planes_need_a_volume_in_space(change: dict[str, object], reason: str) -> None:
    """One slice, unknown or impossible geometry, and a plane of too many pixels are refused."""
    known: dict[str, object] = {"values": BODY, "axes": np.eye(3), "spacing": (1.0, 1.0, 1.0)}
    with pytest.raises(ImageError, match=reason):
        planes(Stack(unit="signal", **(known | change)))  # type: ignore[arg-type]
