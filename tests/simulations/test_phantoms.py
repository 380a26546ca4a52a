"""Laws of the phantoms and of their DICOM files."""

from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_rescale
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simulations.dicom_files import Origin, write_dicom
from simulations.drawing import kernel_noise
from simulations.phantoms import PRETEXT, TASKS, Phantom, pretext, scanner

IMAGES = 80
FORM = {
    "CT": ((256, 256), np.int16, -1024, 3071),
    "MR": ((256, 256), np.uint16, 0, 4095),
    "fundus": ((384, 384, 3), np.uint8, 0, 255),
}
DEVICES = [scanner(site, np.random.default_rng(site)) for site in range(4)]


@cache
def drawn(task: str) -> list[Phantom]:
    """Half healthy, half ill, on each of four devices alike."""
    draw = TASKS[task].draw
    return [
        draw(number, 0, diseased=number % 2 == 1, scanner=DEVICES[number // 2 % 4])
        for number in range(IMAGES)
    ]


def grey(phantom: Phantom) -> NDArray[np.float64]:
    pixels = phantom.pixels.astype(np.float64)
    return pixels if pixels.ndim == 2 else pixels.mean(axis=2)


def ring(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    wide = mask.copy()
    for _ in range(width):
        wide[1:] |= wide[:-1]
        wide[:-1] |= wide[1:]
        wide[:, 1:] |= wide[:, :-1]
        wide[:, :-1] |= wide[:, 1:]
    return wide & ~mask


@pytest.mark.parametrize("task", TASKS)
def test_pixels_have_the_form_of_their_modality(task: str) -> None:
    """Every image has the shape, type and range that its modality promises."""
    shape, dtype, low, high = FORM[TASKS[task].modality]
    for phantom in drawn(task):
        assert phantom.pixels.shape == shape
        assert phantom.pixels.dtype == dtype
        assert phantom.mask.shape == shape[:2]
        assert low <= phantom.pixels.min() < phantom.pixels.max() <= high


@pytest.mark.parametrize("task", TASKS)
def test_mask_is_empty_exactly_when_healthy(task: str) -> None:
    """There is a mask if and only if the label is the disease."""
    assert {phantom.label for phantom in drawn(task)} == set(TASKS[task].classes)
    for phantom in drawn(task):
        assert phantom.mask.any() == (phantom.label == TASKS[task].positive)


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_gives_the_same_pixels(task: str) -> None:
    """The same patient and view give the same image; another view or patient another one."""
    draw, device = TASKS[task].draw, DEVICES[0]
    first = draw(7, 0, diseased=True, scanner=device)
    again = draw(7, 0, diseased=True, scanner=device)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.mask, again.mask)
    for patient, view in ((7, 1), (8, 0)):
        other = draw(patient, view, diseased=True, scanner=device)
        assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("task", TASKS)
def test_views_of_a_patient_share_the_anatomy(task: str) -> None:
    """Two views of a patient are more alike than views of two patients, on the whole."""
    draw, device = TASKS[task].draw, DEVICES[0]
    views = [
        [grey(draw(patient, view, diseased=False, scanner=device)).ravel() for view in (0, 1)]
        for patient in range(4)
    ]
    same = [np.corrcoef(first, second)[0, 1] for first, second in views]
    other = [np.corrcoef(views[i][0], views[i - 1][1])[0, 1] for i in range(4)]
    assert np.mean(same) > np.mean(other)


@pytest.mark.parametrize("task", TASKS)
def test_lesion_stands_out_from_its_surroundings(task: str) -> None:
    """The mean inside the mask differs from that around it by a share of the image's contrast."""
    contrasts = []
    for phantom in drawn(task):
        if phantom.mask.any():
            image = grey(phantom)
            if TASKS[task].modality == "CT":
                image = np.clip(image, -160, 240)  # the usual window of the abdomen
            around = ring(phantom.mask, 6)
            difference = image[phantom.mask].mean() - image[around].mean()
            contrasts.append(abs(difference) / image[around].std())
    assert np.median(contrasts) > 0.25


def test_spleen_holds_dark_nodules() -> None:
    """Within the ill spleen, most patients have places 25 HU darker than its median."""
    shares = []
    for phantom in drawn("gaucher"):
        inner = phantom.mask & ~ring(~phantom.mask, 4)
        if inner.any():
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(phantom.pixels, 2), (5, 5))
            smooth = windows.mean(axis=(2, 3))[inner]
            shares.append(np.mean(smooth < np.median(smooth) - 25))
    assert np.median(shares) > 0.02


@pytest.mark.parametrize("task", TASKS)
def test_brightness_does_not_tell_the_disease(task: str) -> None:
    """Mean and standard deviation of an image leave a logistic regression near chance."""
    phantoms = drawn(task)
    features = [[grey(phantom).mean(), grey(phantom).std()] for phantom in phantoms]
    ill = np.array([phantom.mask.any() for phantom in phantoms])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, features, ill, cv=5, method="predict_proba")[:, 1]
    assert roc_auc_score(ill, scores) < 0.65


def test_reconstruction_noise_has_its_power_where_the_kernel_puts_it() -> None:
    """CT noise has unit variance, and more power in the middle frequencies than at both ends."""
    noise = kernel_noise(np.random.default_rng(0), 128, peak=0.16)
    power = np.abs(np.fft.rfft2(noise)) ** 2
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None])
    low = power[radius < 0.03].mean()
    middle = power[(radius > 0.1) & (radius < 0.2)].mean()
    high = power[radius > 0.45].mean()
    assert noise.std() == pytest.approx(1, abs=1e-3)
    assert middle > 2 * low
    assert middle > 2 * high


def test_pretext_walks_through_its_classes() -> None:
    """Images in a row walk through all classes, ill or not as the class says."""
    rng = np.random.default_rng(0)
    for index in range(10, 20):
        pixels, number = pretext(rng, index)
        assert number == index - 10
        assert pixels.dtype == (np.int16, np.uint16, np.uint8)[min(number // 3, 2)]
    assert [finding for _, finding in PRETEXT].count("none") == 3


@pytest.mark.parametrize(("task", "modality"), [("gaucher", "CT"), ("neurofibromatosis", "MR")])
def test_dicom_gives_back_the_phantom(task: str, modality: str, tmp_path: Path) -> None:
    """Pydicom reads the same values, a CT's in Hounsfield units."""
    phantom = drawn(task)[1]
    file = tmp_path / "image.dcm"
    write_dicom(file, phantom, modality=modality, origin=Origin("here", "x", "p1", 2))  # type: ignore[arg-type]
    dataset = pydicom.dcmread(file)
    assert np.array_equal(apply_rescale(dataset.pixel_array, dataset), phantom.pixels)
    assert dataset.Modality == modality
    assert dataset.PatientID == "p1"
    assert dataset.InstanceNumber == 3
    assert int(dataset.pixel_array.max()) < 2**dataset.BitsStored


@pytest.mark.parametrize(("task", "modality"), [("gaucher", "CT"), ("neurofibromatosis", "MR")])
def test_dicom_has_what_its_standard_requires(task: str, modality: str, tmp_path: Path) -> None:
    """Type 1 attributes have values, type 2 attributes are there, and UIDs are valid."""
    file = tmp_path / "image.dcm"
    origin = Origin("here", "x", "p1", 0)
    write_dicom(file, drawn(task)[0], modality=modality, origin=origin)  # type: ignore[arg-type]
    dataset = pydicom.dcmread(file)
    type_1 = [
        "SOPClassUID",
        "SOPInstanceUID",
        "Modality",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "ImageType",
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelData",
    ]
    type_1 += {
        "CT": ["RescaleIntercept", "RescaleSlope", "PatientPosition"],
        "MR": ["ScanningSequence", "SequenceVariant", "PatientPosition"],
    }[modality]
    type_2 = [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
        "StudyID",
        "AccessionNumber",
        "SeriesNumber",
        "Manufacturer",
        "PositionReferenceIndicator",
        "InstanceNumber",
        "SliceThickness",
    ]
    type_2 += {
        "CT": ["KVP", "AcquisitionNumber"],
        "MR": ["ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength"],
    }[modality]
    assert [name for name in type_1 if name not in dataset or dataset[name].is_empty] == []
    assert [name for name in type_2 if name not in dataset] == []
    uids = [element.value for element in dataset if element.VR == "UI"]
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_dicom_bytes_and_uids_come_from_names(tmp_path: Path) -> None:
    """The same names give the same bytes; views share a series, patients and seeds no study."""
    phantom = drawn("gaucher")[0]

    def written(name: str, origin: Origin) -> pydicom.Dataset:
        write_dicom(tmp_path / name, phantom, modality="CT", origin=origin)
        return pydicom.dcmread(tmp_path / name)

    first = written("a", Origin("here", "x", "p1", 0))
    written("b", Origin("here", "x", "p1", 0))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    view = written("c", Origin("here", "x", "p1", 1))
    assert view.SeriesInstanceUID == first.SeriesInstanceUID
    assert view.SOPInstanceUID != first.SOPInstanceUID
    for other in (Origin("here", "x", "p2", 0), Origin("here", "x", "p1", 0, seed=1)):
        assert written("d", other).StudyInstanceUID != first.StudyInstanceUID
