"""Laws of folders of slices; positions by hand and single files are the reference."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

from client.dicom import read_dicom
from client.images import read_images
from client.pictures import Facts, Reading, Stack
from client.series import read_series
from common.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

NAMES = ("c", "a.dcm", "d.ima", "b")
HEIGHTS = (15.0, 0.0, 10.0, 5.0)
ORDER = (1, 3, 2, 0)


def stored(index: int) -> NDArray[np.int16]:
    """Return the stored values of the slice that is written as number ``index``."""
    return np.arange(48, dtype=np.int16).reshape(6, 8) + np.int16(100 * index)


def write_slice(path: Path, index: int, height: float | None, **elements: object) -> Path:
    """Write a CT slice at a height; ``elements`` are added, or taken out where None."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["s", str(index)])
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3", "7"
    dataset.Modality, dataset.InstanceNumber = "CT", 9 - index
    dataset.Rows, dataset.Columns = 6, 8
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.5, 0.7], [1, 0, 0, 0, 1, 0]
    if height is not None:
        dataset.ImagePositionPatient = [1, 2, height]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept = str(index + 1), "-1024"
    dataset.add_new("PixelData", "OW", stored(index).tobytes())
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A series whose names, instance numbers and positions are in three different orders."""
    for index, (name, height) in enumerate(zip(NAMES, HEIGHTS, strict=True)):
        write_slice(tmp_path / name, index, height)
    return tmp_path


def read(path: Path, slices: str = "all", listed: Sequence[int] = ()) -> tuple[Stack, Facts]:
    return read_series(path, Reading("CT", None, slices), listed)


def test_slices_are_ordered_by_position(folder: Path) -> None:
    """Neither names nor instance numbers order slices; each is rescaled by its own header."""
    stack, facts = read(folder)
    by_hand = [stored(index) * (index + 1.0) - 1024 for index in ORDER]
    np.testing.assert_array_equal(stack.values, by_hand)
    assert (stack.unit, stack.parts) == ("hounsfield", ("1", "2", "3", "4"))
    assert stack.spacing == pytest.approx((5, 0.5, 0.7))
    assert stack.axes is not None
    np.testing.assert_array_equal(stack.axes, [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert facts == Facts("DICOM series", 6, 8, 4, low=stack.values.min(), high=stack.values.max())


@pytest.mark.parametrize(
    ("slices", "listed", "numbers"),
    [
        ("all", (), (1, 2, 3, 4)),
        ("planes", (), (1, 2, 3, 4)),
        ("every:3", (), (1, 4)),
        ("middle:2", (), (2, 3)),
        ("listed", (3, 1), (1, 3)),
    ],
)
def test_only_the_slices_that_are_wanted_are_decoded(
    folder: Path, slices: str, listed: tuple[int, ...], numbers: tuple[int, ...]
) -> None:
    """Slices count from 1 along the normal; damaged pixels of the others do no harm."""
    for number, index in enumerate(ORDER, start=1):
        if number not in numbers:
            file = folder / NAMES[index]
            file.write_bytes(file.read_bytes()[:-50])
    stack, facts = read(folder, slices, listed)
    assert stack.parts == tuple(str(number) for number in numbers)
    expected = [stored(ORDER[n - 1]) * (ORDER[n - 1] + 1.0) - 1024 for n in numbers]
    np.testing.assert_array_equal(stack.values, expected)
    assert facts.slices == 4


def test_a_damaged_slice_is_named(folder: Path) -> None:
    """A slice that is wanted and cannot be read is refused by its name, never left out."""
    file = folder / "d.ima"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ImageError, match=r"d\.ima: cannot be decoded"):
        read(folder)
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"d\.ima: it holds no image, or is cut short"):
        read(folder, "middle:1")


def test_one_image_is_expected_of_several_slices(folder: Path) -> None:
    """A task of one image refuses a series, and the remedy names the study's key."""
    with pytest.raises(ImageError, match="4 slices or frames") as refusal:
        read(folder, "one")
    assert "tasks.TASK.slices" in refusal.value.remedy


def test_what_is_no_image_is_passed_over(folder: Path) -> None:
    """Texts, folders, reports and scouts beside the slices are no slices."""
    expected = read(folder)[0].values
    (folder / "notes.txt").write_text("path,label\n")
    (folder / "empty").touch()
    (folder / "more").mkdir()
    assert read(folder)[1].notes == ()
    write_slice(folder / "sr", 7, None, SOPClassUID=BasicTextSRStorage, SeriesInstanceUID="1.9")
    kinds = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slice(folder / "scout", 8, 3, ImageType=kinds, SeriesInstanceUID="1.8")
    stack, facts = read(folder)
    np.testing.assert_array_equal(stack.values, expected)
    assert facts.notes == ("set_aside",)


def test_a_copy_counts_once(folder: Path) -> None:
    """The same image under two names is one slice, and noted."""
    shutil.copy(folder / "a.dcm", folder / "a (1).dcm")
    stack, facts = read(folder)
    assert len(stack.values) == 4
    assert facts.notes == ("copies",)


def test_gaps_are_noted(folder: Path) -> None:
    """A slice that is missing between others is a note, not a refusal."""
    (folder / "b").unlink()
    write_slice(folder / "e", 5, 20)
    assert read(folder)[1].notes == ("gaps",)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SeriesInstanceUID": "1.2.4"}, "holds 2 series"),
        ({"PatientID": "8"}, "holds 2 patients"),
        ({"Rows": 3}, "several sizes"),
        ({"PixelSpacing": [0.5, 0.8]}, "several spacings"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "several directions"),
        ({"ImagePositionPatient": [1, 2, 5]}, "place of another"),
        ({"NumberOfFrames": 2}, "some of several frames"),
        ({"Modality": "MR"}, "its modality is MR"),
    ],
)
def test_what_is_no_one_volume_is_refused(
    folder: Path, elements: dict[str, object], reason: str
) -> None:
    """A slice of another series, patient, size, spacing, direction or kind, or at one place."""
    write_slice(folder / "e", 5, 20, **elements)
    with pytest.raises(ImageError, match=reason) as refusal:
        read(folder)
    assert refusal.value.remedy


def test_without_positions_the_instance_number_orders(tmp_path: Path) -> None:
    """Slices without positions follow their instance numbers, if these tell them apart."""
    for index, name in enumerate(NAMES):
        write_slice(tmp_path / name, index, None)  # the last one has the least number
    stack, facts = read(tmp_path)
    assert [values[0, 0] for values in stack.values] == [176, -424, -824, -1024]
    assert facts.notes == ("no_positions",)
    assert stack.axes is None
    for number in (None, 6):
        write_slice(tmp_path / "b", 4, None, InstanceNumber=number)
        write_slice(tmp_path / "c", 3, None)
        with pytest.raises(ImageError, match="neither positions nor instance numbers"):
            read(tmp_path)


def test_a_folder_without_slices_is_refused(tmp_path: Path) -> None:
    """An empty folder, and one of reports alone, hold no image."""
    with pytest.raises(ImageError, match="no DICOM image"):
        read(tmp_path)
    write_slice(tmp_path / "sr", 1, None, SOPClassUID=BasicTextSRStorage)
    with pytest.raises(ImageError, match="no DICOM image"):
        read(tmp_path)


def test_a_link_out_of_the_folder_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A symbolic link to a file elsewhere is refused; one within the folder is a copy."""
    (folder / "again").symlink_to(folder / "b")
    assert read(folder)[1].notes == ("copies",)
    elsewhere = write_slice(tmp_path_factory.mktemp("other") / "x", 5, 20)
    (folder / "link").symlink_to(elsewhere)
    with pytest.raises(ImageError, match="link that leads out"):
        read(folder)


def test_a_folder_of_one_file_is_that_file(shared: Path, tmp_path: Path) -> None:
    """A folder that holds one enhanced object, or one slice, gives what the file gives."""
    for name in ("mr_siemens_xa30_enhanced.dcm", "mr_small.dcm"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(shared / "dicom" / name, folder)
        stack, facts = read_series(folder, Reading("MR", None, "all"))
        alone, its = read_dicom(shared / "dicom" / name, Reading("MR", None, "all"))
        np.testing.assert_array_equal(stack.values, alone.values)
        assert facts._replace(kind="") == its._replace(kind="")


def test_real_slices_of_a_tilted_gantry_are_a_series(shared: Path, tmp_path: Path) -> None:
    """Two slices of one real head CT are ordered by position, and the tilt is noted."""
    for name, renamed in (("tilt_a", "2"), ("tilt_b", "1")):
        shutil.copy(shared / f"dicom/ct_ge_hispeed_{name}.dcm", tmp_path / renamed)
    series = {dcmread(file).SeriesInstanceUID for file in tmp_path.iterdir()}
    assert len(series) == 1
    stack, facts = read(tmp_path)
    one = read_dicom(shared / "dicom/ct_ge_hispeed_tilt_a.dcm", Reading("CT", None))[0]
    np.testing.assert_array_equal(stack.values[0], one.values[0])
    assert stack.spacing is not None
    assert stack.spacing[0] == pytest.approx(56 * 0.9483237, rel=1e-4)
    assert facts.notes == ("tilted",)


def test_the_door_reads_a_folder(folder: Path) -> None:
    """A folder in a manifest becomes one picture a slice."""
    pictures = read_images(folder, Reading("CT", (-900.0, 1000.0), "every:2")).pictures
    assert [picture.part for picture in pictures] == ["1", "3"]


def test_more_voxels_than_the_bound_are_refused(tmp_path: Path) -> None:
    """The bound holds for the slices that are wanted together, before one is decoded."""
    for index in range(6):
        write_slice(tmp_path / str(index), index, index, Rows=8000, Columns=8000)
    with pytest.raises(ImageError, match="in all"):
        read(tmp_path)
