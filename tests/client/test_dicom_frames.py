"""Laws of files of several frames; values by hand and pydicom are the reference."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from client.dicom import read_dicom
from client.dicom_frames import views_of
from client.pictures import Reading
from common.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

STORED = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
HEIGHTS = (15.0, 0.0, 10.0, 5.0)


def item(**elements: object) -> Dataset:
    """Return an item of a sequence."""
    found = Dataset()
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def write_enhanced(path: Path, shared: Dataset, frames: list[Dataset], **elements: object) -> Path:
    """Write an enhanced MR of the four frames of ``STORED``."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["frames"])
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality = "MR"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = STORED.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.add_new("PixelData", "OW", STORED.tobytes())
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


SHARED = item(
    PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.7], SliceThickness="4")],
    FrameAnatomySequence=[item(FrameLaterality="R")],
)


def at(height: float, **groups: object) -> Dataset:
    """Return the functional groups of a frame at a height."""
    return item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, height])], **groups)


def rescale(slope: str, intercept: str) -> list[Dataset]:
    return [item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")]


def read(path: Path, slices: str = "all", listed: tuple[int, ...] = ()) -> NDArray[np.float32]:
    return read_dicom(path, Reading("MR", None, slices), listed)[0].values


def test_each_frame_has_its_own_rescale_and_place(tmp_path: Path) -> None:
    """Frames are rescaled each by its own group, and ordered along the normal."""
    frames = [
        at(height, PixelValueTransformationSequence=rescale(str(index + 1), str(-index)))
        for index, height in enumerate(HEIGHTS)
    ]
    file = write_enhanced(tmp_path / "a", SHARED, frames)
    stack, facts = read_dicom(file, Reading("MR", None, "all"))
    by_hand = [STORED[index] * (index + 1.0) - index for index in (1, 3, 2, 0)]
    np.testing.assert_array_equal(stack.values, by_hand)
    assert stack.parts == ("1", "2", "3", "4")
    assert stack.spacing == pytest.approx((5, 0.5, 0.7))
    assert stack.axes is not None
    np.testing.assert_array_equal(stack.axes, [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert (facts.laterality, facts.slices, facts.notes) == ("R", 4, ())


def test_what_is_shared_holds_where_a_frame_says_nothing(tmp_path: Path) -> None:
    """A shared rescale goes for all frames but those with one of their own."""
    shared = item(**{element.keyword: element.value for element in SHARED})
    shared.PixelValueTransformationSequence = rescale("3", "1")
    frames = [at(height) for height in HEIGHTS]
    frames[2].PixelValueTransformationSequence = rescale("1", "0")
    values = read(write_enhanced(tmp_path / "a", shared, frames))
    by_hand = [STORED[1] * 3.0 + 1, STORED[3] * 3.0 + 1, STORED[2], STORED[0] * 3.0 + 1]
    np.testing.assert_array_equal(values, by_hand)


def test_each_frame_is_seen_through_its_own_window(tmp_path: Path) -> None:
    """In a task of neither CT nor MR, the Frame VOI LUT of each frame is what it is shown with."""
    frames = [
        at(h, FrameVOILUTSequence=[item(WindowCenter=str(c), WindowWidth="10")])
        for h, c in zip(range(4), (20, 70, 120, 170), strict=True)
    ]
    for frame in frames:
        frame.FrameVOILUTSequence[0].VOILUTFunction = "LINEAR_EXACT"
    file = write_enhanced(tmp_path / "a", SHARED, frames, Modality="OT")
    stack, _ = read_dicom(file, Reading("other", None, "all"))
    for values, stored, centre in zip(stack.values, STORED, (20, 70, 120, 170), strict=True):
        np.testing.assert_allclose(
            values, (stored / 10.0 - centre / 10 + 0.5).clip(0, 1), atol=1e-6
        )


@pytest.mark.parametrize(
    ("slices", "listed", "numbers"),
    [
        ("every:2", (), ("1", "3")),
        ("middle:2", (), ("2", "3")),
        ("listed", (4, 2), ("2", "4")),
        ("planes", (), ("1", "2", "3", "4")),
    ],
)
def test_only_the_frames_that_are_wanted_are_read(
    tmp_path: Path, slices: str, listed: tuple[int, ...], numbers: tuple[str, ...]
) -> None:
    """Numbers of slices count along the normal, from 1."""
    file = write_enhanced(tmp_path / "a", SHARED, [at(height) for height in HEIGHTS])
    stack, _ = read_dicom(file, Reading("MR", None, slices), listed)
    assert stack.parts == numbers
    order = (1, 3, 2, 0)
    expected = [STORED[order[int(number) - 1]] for number in numbers]
    np.testing.assert_array_equal(stack.values, expected)


def test_a_broken_frame_that_is_not_wanted_does_no_harm(shared: Path, tmp_path: Path) -> None:
    """Of compressed frames, only the wanted ones meet a decoder."""
    dataset = dcmread(shared / "dicom/emri_small_jpeg_2k_lossless.dcm")
    frames = list(generate_frames(dataset.PixelData, number_of_frames=10))
    frames[0] = frames[0][:90] + b"\0" * (len(frames[0]) - 90)
    frames[1] = b"\0" * 20
    dataset.PixelData = encapsulate(frames)
    dataset.save_as(tmp_path / "a")
    plain = read(shared / "dicom/emri_small.dcm")
    np.testing.assert_array_equal(read(tmp_path / "a", "listed", (3, 10)), plain[[2, 9]])
    with pytest.raises(ImageError, match="no header that can be read"):
        read(tmp_path / "a", "listed", (2,))


def test_frames_that_are_missing_are_missed(shared: Path, tmp_path: Path) -> None:
    """A file that holds fewer frames than it says is refused where one of them is wanted."""
    dataset = dcmread(shared / "dicom/emri_small_jpeg_2k_lossless.dcm")
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=10)))
    dataset.NumberOfFrames = 12
    dataset.save_as(tmp_path / "a")
    with pytest.raises(ImageError, match="fewer frames than the 12"):
        read(tmp_path / "a")


def test_one_image_is_expected_of_several_frames(tmp_path: Path) -> None:
    """A task of one image refuses several frames, and the remedy names the study's key."""
    file = write_enhanced(tmp_path / "a", SHARED, [at(height) for height in HEIGHTS])
    with pytest.raises(ImageError, match="4 slices or frames") as refusal:
        read(file, "one")
    assert "tasks.TASK.slices" in refusal.value.remedy


def test_frames_at_one_place_are_refused(tmp_path: Path) -> None:
    """Phases, echoes or repetitions are no volume."""
    file = write_enhanced(tmp_path / "a", SHARED, [at(height) for height in (0, 5, 0, 5)])
    with pytest.raises(ImageError, match="phases, echoes or repetitions"):
        read(file)


def test_frames_without_groups_keep_their_order(tmp_path: Path) -> None:
    """A cine of ultrasound has one header for all frames, and no place in the patient."""
    file = write_enhanced(tmp_path / "a", SHARED, [])
    dataset = dcmread(file)
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    del dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence
    dataset.Modality = "US"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.save_as(file)
    views = views_of(dataset)
    assert all(view is views[0] for view in views)
    assert len(views) == 4
    stack, facts = read_dicom(file, Reading("other", None, "all"))
    np.testing.assert_allclose(stack.values, STORED / 65535, atol=1e-6)
    assert stack.axes is None
    assert facts.notes == ()


@pytest.mark.parametrize(
    ("name", "modality", "slope", "intercept"),
    [
        ("ct_enhanced_multiframe.dcm", "CT", 1, -1024),
        ("mr_philips_enhanced.dcm", "MR", 0.1, 0),
        ("mr_siemens_xa30_enhanced.dcm", "MR", 1, 0),
    ],
)
def test_real_enhanced_objects_are_rescaled_by_their_groups(
    shared: Path, name: str, modality: str, slope: float, intercept: float
) -> None:
    """The rescale inside the functional groups is applied to what pydicom decodes."""
    file = shared / "dicom" / name
    stack, facts = read_dicom(file, Reading(modality, None, "all"))
    expected = dcmread(file).pixel_array * np.float64(slope) + intercept
    if stack.axes is not None and stack.axes[0][2] < 0:  # its frames go down from the head,
        expected = expected[::-1]  # against their normal
    np.testing.assert_allclose(stack.values, expected, rtol=1e-6)
    assert facts.low == pytest.approx(expected.min())
    assert facts.high == pytest.approx(expected.max())
