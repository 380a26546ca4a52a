"""Laws of temperature scaling; the reference is scipy's minimiser on the logits themselves."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from common import metrics
from common.ranking import histogram_of
from common.temperature import (
    AT_ONE,
    TEMPERATURES,
    best_temperature,
    loss_at,
    scaled_calibration_error,
    scaled_loss,
)

Logits = NDArray[Any]


def sample(n: int, k: int, scale: float, seed: int) -> tuple[Logits, Logits]:
    """Return logits whose right temperature is near ``scale``, and labels drawn from them."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(n, k))
    noise = random.gumbel(size=(n, k))
    return logits * scale, (logits + noise).argmax(axis=1)


def mean_loss(logits: Logits, labels: Logits, temperature: float) -> float:
    log_p = log_softmax(logits / temperature, axis=1)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def test_the_loss_is_that_of_the_divided_logits() -> None:
    """At each temperature it is that of scipy's softmax; at 1 that of the network as it is."""
    logits, labels = sample(200, 3, 1.5, seed=0)
    found = scaled_loss(logits, labels) / 200
    expected = [mean_loss(logits, labels, t) for t in TEMPERATURES]
    assert found == pytest.approx(expected, rel=1e-9)
    assert TEMPERATURES[AT_ONE] == 1


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("scale", [0.12, 0.4, 0.9, 1.0, 1.3, 2.7, 8.0])
def test_the_best_temperature_is_near(scale: float, k: int) -> None:
    """It is within 0.2 % of the minimiser on the logits."""
    logits, labels = sample(600, k, scale, seed=1)
    found = best_temperature(scaled_loss(logits, labels))
    reference = minimize_scalar(
        lambda x: mean_loss(logits, labels, np.exp(x)), bounds=(-3, 3), method="bounded"
    )
    assert found == pytest.approx(np.exp(reference.x), rel=0.002)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 0.77, 1.0, 1.9, 14.0])
def test_the_loss_between_temperatures_is_near(temperature: float) -> None:
    """A spline gives the loss to 0.1 % where the logits were too small, right or too large."""
    for scale in (0.5, 1.0, 3.0):
        logits, labels = sample(400, 3, scale, seed=2)
        found = loss_at(scaled_loss(logits, labels), 400, temperature)
        assert found == pytest.approx(mean_loss(logits, labels, temperature), rel=0.001)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 100))
def test_sites_give_the_temperature_of_all_images(n_sites: int, seed: int) -> None:
    """Added over sites, the sums lead to the temperature that all images together have."""
    logits, labels = sample(40 * n_sites, 3, 2.0, seed)
    parts = zip(np.split(logits, n_sites), np.split(labels, n_sites), strict=True)
    added = sum(scaled_loss(*part) for part in parts)
    assert best_temperature(np.asarray(added)) == pytest.approx(
        best_temperature(scaled_loss(logits, labels)), rel=1e-6
    )


def test_nothing_is_fitted_to_nothing() -> None:
    """No images, or logits that are all the same, have no temperature; no images have no loss."""
    assert best_temperature(np.zeros(len(TEMPERATURES))) is None
    assert best_temperature(scaled_loss(np.zeros((5, 2)), np.zeros(5, np.int64))) is None
    assert loss_at(np.zeros(len(TEMPERATURES)), 0, 1.0) is None
    assert scaled_calibration_error(np.zeros((2, 2000), np.int64), 1.0, 15) is None


def test_logits_that_are_always_right_get_the_least_temperature() -> None:
    """Where every image says smaller, or every one larger, the outermost temperature is taken."""
    logits = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert best_temperature(scaled_loss(logits, np.array([0, 1]))) == TEMPERATURES[0]
    assert best_temperature(scaled_loss(logits, np.array([1, 0]))) == TEMPERATURES[-1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_calibration_error_after_scaling_is_near(temperature: float) -> None:
    """From the histogram it is that of the divided logits to 0.005."""
    logits, labels = sample(2000, 2, 3.0, seed=3)
    (histogram,) = histogram_of(logits, labels, 1)
    state = metrics.update(metrics.zero(2, 1), logits / temperature, labels, 1)
    expected = metrics.compute(state, 1)["calibration_error"]
    found = scaled_calibration_error(histogram, temperature, metrics.CALIBRATION_BINS)
    assert found == pytest.approx(expected, abs=0.005)
