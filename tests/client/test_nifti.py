"""Laws of reading NIfTI; nibabel's own world coordinates and images are the reference."""

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.images import read_image, read_images
from client.nifti import is_nifti, read_nifti
from client.pictures import Reading
from client.pixels import MAX_BYTES
from common.errors import ImageError

CT = Reading("CT", (0.0, 2000.0), slices="all")
MR = Reading("MR", None, slices="all")
BODY = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
"""Voxels by place: x to the patient's right, y to the front, z to the head, as NIfTI has them."""
SEEN = BODY[::-1, ::-1].transpose(2, 1, 0)
"""The same as axial slices from the feet up, rows to the back and columns to the left."""
AFFINE = np.diag([1.5, 2.0, 4.0, 1.0])
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.15) @ np.diag([-1.5, 2.0, -4.0]), [10, -20, 30]
)


def save(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> Path:
    nib.Nifti1Image(values, affine).to_filename(path)
    return path


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_the_affine_says_how_the_patient_lies(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """In whatever order a file stores a body, the slices are the same, seen the same way."""
    turn = np.column_stack([list(order), list(signs)])
    stored = nib.orientations.apply_orientation(BODY, turn)
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, BODY.shape)
    stack, facts = read_nifti(save(tmp_path / "a.nii", stored, affine), CT, ())
    np.testing.assert_array_equal(stack.values, SEEN)
    assert stack.spacing == pytest.approx((4, 2, 1.5))
    assert stack.axes is not None
    np.testing.assert_allclose(stack.axes, [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-6)
    assert stack.parts == ("1", "2", "3", "4", "5")
    assert (facts.kind, facts.rows, facts.columns, facts.slices) == ("NIfTI", 4, 3, 5)


def test_geometry_is_nibabels(tmp_path: Path) -> None:
    """Steps along axes and spacing join the world coordinates that nibabel gives two voxels."""
    file = save(tmp_path / "a.nii", BODY, OBLIQUE)
    stack, _ = read_nifti(file, CT, ())
    assert stack.axes is not None
    assert stack.spacing is not None
    steps = stack.axes * np.array(stack.spacing)[:, None]

    def world(k: int, i: int, j: int) -> NDArray[np.float64]:
        (voxel,) = np.argwhere(np.equal(BODY, stack.values[k, i, j]))
        return nib.affines.apply_affine(OBLIQUE, voxel) * [-1, -1, 1]  # to DICOM's axes

    moved = world(4, 3, 2) - world(0, 0, 0)
    np.testing.assert_allclose(moved, [4, 3, 2] @ steps, atol=1e-4)
    canonical = nib.as_closest_canonical(nib.load(file)).get_fdata()
    np.testing.assert_array_equal(stack.values, canonical[::-1, ::-1].T)


def test_without_a_form_the_note_says_so(tmp_path: Path) -> None:
    """A file with neither sform nor qform is read as nibabel would, and noted."""
    image = nib.Nifti1Image(BODY, None)
    image.header.set_zooms((1.5, 2, 4))
    image.to_filename(tmp_path / "a.nii")
    stack, facts = read_nifti(tmp_path / "a.nii", CT, ())
    assert facts.notes == ("no_orientation",)
    np.testing.assert_array_equal(stack.values, BODY[:, ::-1].T)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ((slice(1), slice(None), slice(None)), BODY[0].T[::-1, ::-1]),
        ((slice(None), slice(1), slice(None)), BODY[:, 0].T[::-1, ::-1]),
        ((slice(None), slice(None), slice(1)), BODY[:, :, 0].T[::-1, ::-1]),
    ],
)
def test_one_slice_is_seen_as_its_view(
    tmp_path: Path, view: tuple[slice, ...], expected: NDArray[np.int16]
) -> None:
    """One sagittal, coronal or axial slice has its head or front at the top, and is one image."""
    stack, _ = read_nifti(save(tmp_path / "a.nii", BODY[view]), Reading("CT", None), ())
    np.testing.assert_array_equal(stack.values, expected[None])
    assert stack.parts == ("",)


def test_a_flat_file_is_one_image(tmp_path: Path) -> None:
    """Two dimensions, and a third without length or more without extent, are one slice."""
    flat = np.diag([2.0, 2.0, 0.0, 1.0])
    for name, values in (("a", BODY[..., 0]), ("b", BODY[..., :1, None, None])):
        stack, _ = read_nifti(save(tmp_path / f"{name}.nii", values), MR._replace(slices="one"), ())
        np.testing.assert_array_equal(stack.values, SEEN[:1])
    image = nib.Nifti1Image(BODY[..., 0], None)
    image.header.set_sform(flat, code=1)
    image.to_filename(tmp_path / "c.nii")
    stack, _ = read_nifti(tmp_path / "c.nii", MR._replace(slices="one"), ())
    np.testing.assert_array_equal(stack.values, SEEN[:1])


def test_slope_and_intercept_give_hounsfield_units(tmp_path: Path) -> None:
    """Stored values times scl_slope plus scl_inter are Hounsfield units in a CT task."""
    image = nib.Nifti1Image(BODY, AFFINE)
    image.header.set_slope_inter(2, -1024)
    image.to_filename(tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    # nibabel divides by the slope as it writes; put the plain numbers back
    (tmp_path / "a.nii").write_bytes(raw[:352] + BODY.tobytes("F"))
    source = read_images(tmp_path / "a.nii", CT)
    assert source.pictures[2].part == "3"
    by_hand = ((SEEN[2] * 2.0 - 1024) / 2000 + 0.5).clip(0, 1)
    np.testing.assert_allclose(source.pictures[2].values, by_hand, atol=1e-6)
    assert (source.facts.low, source.facts.high) == (-1024, 59 * 2 - 1024)


def test_forms_of_the_same_volume_are_the_same(tmp_path: Path) -> None:
    """Compressed, NIfTI-2, big-endian and floating files give the plain file's slices."""
    save(tmp_path / "a.nii.gz", BODY)
    nib.Nifti2Image(BODY, AFFINE).to_filename(tmp_path / "b.nii")
    big = nib.Nifti1Header(endianness=">")
    big.set_data_dtype(">i2")
    nib.Nifti1Image(BODY, AFFINE, big).to_filename(tmp_path / "c.nii")
    save(tmp_path / "d.nii", BODY.astype(np.float64))
    (tmp_path / "e").write_bytes((tmp_path / "a.nii.gz").read_bytes())  # the name is nothing
    assert sorted(tmp_path.iterdir()) == [
        tmp_path / n for n in ("a.nii.gz", "b.nii", "c.nii", "d.nii", "e")
    ]
    for file in tmp_path.iterdir():
        stack, _ = read_nifti(file, MR, ())
        np.testing.assert_array_equal(stack.values, SEEN)
        assert stack.unit == "signal"
        assert stack.values.dtype == np.float32


def test_chosen_slices_count_from_the_feet(tmp_path: Path) -> None:
    """Listed slices are numbered from 1 at the feet, and the middle is half way up."""
    file = save(tmp_path / "a.nii.gz", BODY)
    stack, facts = read_nifti(file, CT._replace(slices="listed"), (5, 1))
    np.testing.assert_array_equal(stack.values, SEEN[[0, 4]])
    assert (stack.parts, facts.slices) == (("1", "5"), 5)
    middle, _ = read_nifti(file, CT._replace(slices="middle:1"), ())
    np.testing.assert_array_equal(middle.values, SEEN[2:3])


def test_planes_of_a_volume_are_cut(tmp_path: Path) -> None:
    """A NIfTI volume gives three named planes at its finest spacing."""
    source = read_images(save(tmp_path / "a.nii", BODY), CT._replace(slices="planes"))
    assert [picture.part for picture in source.pictures] == ["axial", "coronal", "sagittal"]
    shapes = [picture.values.shape for picture in source.pictures]
    assert shapes == [(5, 3), (13, 3), (13, 5)]
    np.testing.assert_allclose(source.pictures[0].values[0], SEEN[2, 0] / 2000 + 0.5, atol=1e-6)


RGB = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 4, 5, 6), dtype=np.int16), "4 dimensions"),
        (BODY.astype(np.complex64), "no plain numbers"),
        (RGB, "no plain numbers"),
        (np.where(BODY == 7, np.nan, BODY).astype(np.float32), "not finite"),
        (np.zeros((3, 4, 5), dtype=np.int16), "same value"),
        (np.zeros((3, 4, 0), dtype=np.int16), "0 slices"),
    ],
)
def test_what_is_no_image_is_refused(
    tmp_path: Path, values: NDArray[np.generic], reason: str
) -> None:
    """Time series, complex or colour voxels, NaN, a flat and an empty volume."""
    with pytest.raises(ImageError, match=reason) as refusal:
        read_images(save(tmp_path / "a.nii", values), MR)
    assert refusal.value.remedy
    assert "a.nii" in refusal.value.message


def test_a_volume_is_not_one_image(tmp_path: Path) -> None:
    """Where a task expects one image, a volume is refused with its number of slices."""
    with pytest.raises(ImageError, match="5 slices or frames"):
        read_image(save(tmp_path / "a.nii", BODY), modality="MR")


def header(dimensions: tuple[int, ...], **fields: object) -> bytes:
    """Return a NIfTI-1 header of 352 bytes that claims what nibabel would not write."""
    made = nib.Nifti1Header()
    made["magic"], made["vox_offset"], made["datatype"], made["bitpix"] = b"n+1", 352, 4, 16
    made["dim"] = (len(dimensions), *dimensions, *[1] * (7 - len(dimensions)))
    made["sform_code"] = 1
    made["srow_x"], made["srow_y"], made["srow_z"] = np.eye(4)[:3]
    for name, value in fields.items():
        made[name] = value
    return bytes(made.binaryblock) + bytes(4)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (header((30000, 30000, 2)), "30000 x 30000 pixels are more"),
        (header((4000, 4000, 1000)), "in all"),
        (header((512, 512, 1000), datatype=64, bitpix=64), "bytes, more than"),
        (header((512, 512, 100)), "cut short"),
        (header((-4, 4, 4)), "-4 rows"),
        (header((4, 4, 0)), "0 slices"),
        (header((2, 2, 2), vox_offset=1e12), "bytes, more than"),
        (header((2, 2, 2), vox_offset=float("nan")), "cannot be decoded"),
        (header((2, 2, 2), datatype=9999), "cannot be decoded"),
        (header((2, 2, 2), magic=b"ni1"), "pair of files"),
        (header((2, 2, 2), srow_x=np.zeros(4)), "axes"),
        (header((2, 2, 2), srow_x=(0, 1, 0, 0)), "axes"),
        (header((2, 2, 2), srow_x=np.full(4, np.nan)), "axes"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_cannot_be_is_refused_at_once(
    tmp_path: Path, start: bytes, reason: str, *, packed: bool
) -> None:
    """Sizes beyond the bounds or the file, and impossible axes, cost no memory."""
    file = tmp_path / "a"
    content = start + bytes(64)
    file.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    with pytest.raises(ImageError, match=reason):
        read_images(file, MR)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_the_bounds_hold_for_sixty_thousand(tmp_path: Path) -> None:
    """A NIfTI-2 header of 60,000 x 60,000 pixels is refused before memory is asked for."""
    made = nib.Nifti2Header()
    made.set_data_shape((60_000, 60_000, 1))
    made["magic"], made["vox_offset"] = b"n+2\0\r\n\x1a\n", 544
    (tmp_path / "a.nii").write_bytes(made.binaryblock + bytes(100))
    with pytest.raises(ImageError, match="60000 x 60000 pixels are more than"):
        read_images(tmp_path / "a.nii", MR)
    assert MAX_BYTES == 2**30


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """What lies behind the voxels that a header claims is never unpacked."""
    content = header((3, 4, 5)) + BODY.tobytes("F") + bytes(50_000_000)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    del content
    tracemalloc.start()
    read_images(tmp_path / "a.nii.gz", MR)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_a_cut_or_altered_file_is_refused(tmp_path: Path) -> None:
    """A file cut anywhere, and a compressed one with a bit changed, are an ImageError."""
    values = np.random.default_rng(0).integers(0, 999, (8, 9, 10)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        content = save(tmp_path / name, values).read_bytes()
        for share in (0.01, 0.1, 0.5, 0.99):
            (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
            with pytest.raises(ImageError):
                read_images(tmp_path / "cut", MR)
    middle = len(content) // 2
    altered = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (tmp_path / "altered").write_bytes(altered)
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_images(tmp_path / "altered", MR)


@pytest.mark.parametrize(
    "start",
    [b"", b"\x1f\x8b", gzip.compress(b"text", mtime=0), b"\x1f\x8b" + bytes(99), bytes(400)],
)
def test_other_files_are_no_nifti(start: bytes) -> None:
    """Empty, gzip of something else, and damaged gzip are not taken for NIfTI."""
    assert not is_nifti(start)


SMALL = header((3, 4, 5)) + BODY.tobytes("F")
EDITS = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), max_size=6)


@settings(
    max_examples=150, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS, cut=st.integers(0, 500), packed=st.sampled_from(["", "before", "after"]))
def test_damaged_bytes_are_an_image_or_an_image_error(
    tmp_path: Path,
    survives: Callable[..., None],
    edits: list[tuple[int, bytes]],
    cut: int,
    packed: str,
) -> None:
    """Mutated NIfTI, plain or compressed, raises ImageError or is read, in little memory."""
    content = bytearray(gzip.compress(SMALL) if packed == "before" else SMALL)
    for place, new in edits:
        content[place : place + len(new)] = new
    content = content[: max(0, len(content) - cut)] if cut > 250 else content
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed == "after" else content)
    survives(tmp_path / "a", MR, 2**24)


def test_numbers_of_any_size_in_the_header_are_survived(tmp_path: Path) -> None:
    """Each field of the header filled with ones, and with the largest float, is survived."""
    plain = header((3, 4, 5))
    for place in range(0, 348, 4):
        for new in (b"\xff\xff\xff\xff", struct.pack("<f", 3e38), bytes(4)):
            content = plain[:place] + new + plain[place + 4 :] + BODY.tobytes("F")
            (tmp_path / "a").write_bytes(content)
            try:
                read_images(tmp_path / "a", MR)
            except ImageError:
                continue
