"""Laws of bringing values to [0, 1]; arithmetic by hand and scikit-image are the reference."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from client.intensity import body, intensities
from client.pictures import Reading

MR = Reading("MR", None)
ZSCORE = Reading("MR", None, intensity="zscore")
Slice = NDArray[np.float32]


def disc(
    size: int = 128, radius: float = 40, at: tuple[float, float] = (64, 64)
) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:size, :size]
    return np.hypot(rows - at[0], columns - at[1]) <= radius


def scan(inside: NDArray[np.bool_], *, level: float = 800, seed: int = 0) -> Slice:
    """Draw tissue of a level and a texture in Rician noise, as MR magnitude images have it."""
    noise = np.random.default_rng(seed).normal(0, 30, (2, *inside.shape))
    signal = inside * (level + 100 * np.sin(np.arange(inside.shape[1]) / 3))
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32)


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("inverted", [False, True])
def test_hounsfield_units_go_through_the_window(*, inverted: bool) -> None:
    """An HU value is (value - centre) / width + 1/2, cut to [0, 1], in MONOCHROME1 as well."""
    values = np.array([[-1000, -500], [100, 3000]], dtype=np.int16)
    shown = intensities([values], "hounsfield", Reading("CT", (100, 1600)), inverted=inverted)
    np.testing.assert_allclose(shown[0], [[0, 0.125], [0.5, 1]], atol=1e-6)
    assert shown[0].dtype == np.float32


def test_no_window_means_soft_tissue() -> None:
    """Without a window of the study, -160 HU is 0 and 240 HU is 1."""
    (shown,) = intensities(
        [np.array([[-160, 40, 240]])], "hounsfield", Reading("CT", None), inverted=False
    )
    np.testing.assert_allclose(shown, [[0, 0.5, 1]])


def test_shown_pictures_stay_as_they_are() -> None:
    """What is in [0, 1] already is unchanged, and turned over where it is inverted."""
    values = np.array([[0, 0.25, 1]], dtype=np.float32)
    for inverted, expected in ((False, values), (True, 1 - values)):
        (shown,) = intensities([values], "shown", MR, inverted=inverted)
        np.testing.assert_array_equal(shown, expected)


def test_the_body_is_found_in_noise() -> None:
    """The mask covers a head in noisy air to within two pixels of its edge, holes included."""
    head = disc()
    cyst = disc(radius=8, at=(70, 60))
    (found,) = body([scan(head & ~cyst)])
    assert overlap(found, head) > 0.93
    assert found[70, 60]
    assert not (found & ~disc(radius=43)).any()


def test_the_threshold_is_otsus() -> None:
    """Where nothing is smoothed away, the mask is what scikit-image's threshold would mark."""
    image = np.full((96, 96), 10, dtype=np.float32)
    image[20:70, 20:70] = 200
    assert 10 < threshold_otsu(image) < 200
    (found,) = body([image])
    assert overlap(found, image > threshold_otsu(image)) > 0.97


def test_two_legs_are_one_body() -> None:
    """Parts of similar size are all kept; a small ghost beside them is not."""
    legs = disc(radius=22, at=(64, 34)), disc(radius=20, at=(64, 94))
    ghost = disc(radius=5, at=(10, 64))
    (found,) = body([scan(legs[0] | legs[1] | ghost)])
    assert overlap(found, legs[0] | legs[1]) > 0.9
    assert not found[ghost].any()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99])
def test_an_implausible_body_is_not_believed(share: float) -> None:
    """A body of less than 5 % or more than 95 % of the pixels is none: all pixels count."""
    image = np.zeros((100, 100), dtype=np.float32)
    image[: int(100 * share)] = 500
    (found,) = body([image])
    assert found.all()


def test_a_bright_organ_is_not_the_body() -> None:
    """Where tissue lies beside what is bright, and not air, all pixels count."""
    organ, fat = disc(radius=25, at=(90, 40)), disc(radius=20, at=(30, 90))
    everywhere = np.ones((128, 128), dtype=np.bool_)
    (found,) = body([scan(everywhere, level=250) + scan(organ | fat, level=900, seed=1)])
    assert found.all()


def test_dim_tissue_belongs_to_the_body() -> None:
    """Tissue of a fifth of the brightest signal is within the mask, beside bright fat."""
    head, fat = disc(), disc() & ~disc(radius=34)
    image = scan(head, level=400) + 1600 * fat.astype(np.float32)
    (found,) = body([image])
    assert overlap(found, head) > 0.9


def test_percentiles_are_those_within_the_body() -> None:
    """Percentile 0.5 of the body is 0 and percentile 99.5 is 1; the air is black."""
    image = scan(disc())
    (inside,) = body([image])
    low, high = np.percentile(image[inside], (0.5, 99.5))
    (shown,) = intensities([image], "signal", MR, inverted=False)
    np.testing.assert_allclose(shown, np.clip((image - low) / (high - low), 0, 1), atol=1e-5)
    assert np.median(shown[~disc(radius=45)]) == 0


def test_zscore_is_of_the_body() -> None:
    """Mean of the body is 1/2; three standard deviations to either side are 0 and 1."""
    image = scan(disc())
    (inside,) = body([image])
    mean, deviation = image[inside].mean(), image[inside].std()
    (shown,) = intensities([image], "signal", ZSCORE, inverted=False)
    by_hand = np.clip((image - mean) / deviation, -3, 3) / 6 + 0.5
    np.testing.assert_allclose(shown, by_hand, atol=1e-5)


@pytest.mark.parametrize("reading", [MR, ZSCORE])
def test_a_signal_has_no_unit(reading: Reading) -> None:
    """Another gain and offset of the scanner give the same intensities."""
    image = scan(disc())
    (shown,) = intensities([image], "signal", reading, inverted=False)
    (other,) = intensities([image * 3 + 7], "signal", reading, inverted=False)
    np.testing.assert_allclose(other, shown, atol=1e-5)


@pytest.mark.parametrize("reading", [MR, ZSCORE])
def test_an_inverted_signal_shows_the_same_body(reading: Reading) -> None:
    """Stored upside down as MONOCHROME1, the same scan gives the same intensities."""
    image = scan(disc())
    (shown,) = intensities([image], "signal", reading, inverted=False)
    (other,) = intensities([4095 - image], "signal", reading, inverted=True)
    np.testing.assert_allclose(other, shown, atol=1e-4)


@pytest.mark.parametrize("reading", [MR, ZSCORE])
def test_slices_of_a_volume_share_one_scale(reading: Reading) -> None:
    """The same signal is the same intensity on every slice, however dark a slice is."""
    slices = [scan(disc(), level=level) for level in (400, 800)]
    slices[0][0, 0] = slices[1][0, 0] = 333
    slices.append(np.full((32, 16), 333, dtype=np.float32))  # planes differ in size
    dark, bright, flat = intensities(slices, "signal", reading, inverted=False)
    assert dark[0, 0] == bright[0, 0] == flat[0, 0]
    assert np.median(dark[disc()]) < np.median(bright[disc()]) - 0.1


def test_a_small_bright_spot_is_kept() -> None:
    """Where the percentiles meet, least and greatest value take their place."""
    image = np.zeros((32, 32), dtype=np.float32)
    image[3, 4] = 900
    for reading in (MR, ZSCORE):
        (shown,) = intensities([image], "signal", reading, inverted=False)
        assert shown[3, 4] == 1
    (shown,) = intensities([image], "signal", MR, inverted=False)
    assert shown.sum() == 1
