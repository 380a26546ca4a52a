"""Laws of the sum that no order of arrival can change."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.exact_sum import ExactSum, largest_change

Floats = NDArray[np.float32]


def combined(current: Floats, changes: list[Floats], weights: list[float]) -> Floats:
    """Sum the changes in their order, as shares of all weights, and apply them."""
    total, capacity, received = ExactSum(current), math.fsum(weights), 0.0
    for change, weight in zip(changes, weights, strict=True):
        total.add([change.reshape(-1)], weight / capacity)
        received += weight / capacity
    return total.applied_to(current, received)


def random_case(
    seed: int, sites: int, exponent: float, shape: tuple[int, ...] = (40,)
) -> tuple[Floats, list[Floats], list[float]]:
    """Return weights of magnitude 10**exponent, changes of a tenth of it, and sites' weights."""
    rng = np.random.default_rng(seed)
    scale = 10.0**exponent
    current = np.asarray(rng.normal(scale=scale, size=shape), np.float32)
    changes = [
        np.asarray(rng.normal(scale=scale / 10, size=shape), np.float32) for _ in range(sites)
    ]
    return current, changes, rng.integers(1, 500, sites).astype(float).tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    sites=st.integers(1, 8),
    exponent=st.floats(-8, 3),
    data=st.data(),
)
def test_the_order_of_arrival_changes_no_bit(
    seed: int, sites: int, exponent: float, data: st.DataObject
) -> None:
    """Any permutation of the sites gives the same array, bit for bit."""
    current, changes, weights = random_case(seed, sites, exponent)
    order = data.draw(st.permutations(range(sites)))
    capacity = math.fsum(weights)
    results = []
    for permutation in (list(range(sites)), order):
        total = ExactSum(current)
        for site in permutation:
            total.add([changes[site].reshape(-1)], weights[site] / capacity)
        results.append(total.applied_to(current, 1.0).tobytes())
    assert results[0] == results[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 8), exponent=st.floats(-8, 3))
def test_it_is_the_weighted_mean(seed: int, sites: int, exponent: float) -> None:
    """Old plus change is the float64 weighted mean within 1e-9 of the array's scale.

    Beyond that stands only the one rounding to float32 of the result itself.
    """
    current, changes, weights = random_case(seed, sites, exponent)
    mean = np.average(np.stack(changes).astype(np.float64), axis=0, weights=weights)
    exact = current + mean
    scale = max(float(np.abs(current).max()), 1 / 16)
    error = np.abs(combined(current, changes, weights).astype(np.float64) - exact)
    assert (error <= 1e-9 * scale + np.abs(exact) * 2.0**-24).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(magnitude=st.floats(0, 1e30))
def test_the_grid_fits_the_array(magnitude: float) -> None:
    """The largest change is a power of two, 4,096 to 8,192 times the largest magnitude."""
    limit = largest_change(np.array([magnitude, -magnitude / 2, 0], np.float64))
    assert math.frexp(limit)[0] == 0.5
    assert 4096 <= limit / max(magnitude, 1 / 16) <= 8192
    assert largest_change(np.array([-magnitude], np.float64)) == limit
    assert largest_change(np.zeros(0, np.float32)) == 256


@pytest.mark.parametrize("sites", [1, 2, 3, 7, 10, 64, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_change_is_held_without_overflow(sites: int, sign: int) -> None:
    """All sites at the limit with shares that add up to 1 give the limit, not a wrapped sum."""
    current = np.array([0.0, 1.5, -3.0], np.float32)
    limit = sign * largest_change(current)
    changes = [np.full(3, limit, np.float32)] * sites
    found = combined(current, changes, [0.1] * sites)
    np.testing.assert_allclose(found, current + np.float32(limit), rtol=1e-7)


def test_opposite_changes_cancel_exactly() -> None:
    """A change and its opposite of equal share leave the array as it was, to the bit."""
    current, (change,), _ = random_case(1, 1, 0.0)
    assert combined(current, [change, -change], [3.0, 3.0]).tobytes() == current.tobytes()


def test_missing_sites_leave_the_mean_of_the_others() -> None:
    """Shares are of all that were asked; the sum is divided by those that answered."""
    current, changes, _ = random_case(2, 2, -1.0)
    total = ExactSum(current)
    total.add([changes[0].reshape(-1)], 0.25)
    total.add([changes[1].reshape(-1)], 0.25)
    found = total.applied_to(current, 0.5)
    np.testing.assert_allclose(found, current + (changes[0] + changes[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4), (70_000,), (256, 257)])
def test_every_shape_is_kept(shape: tuple[int, ...]) -> None:
    """Scalars, empty arrays and arrays larger than one chunk keep shape and become float32."""
    current, changes, weights = random_case(3, 3, -1.0, shape)
    found = combined(current, changes, weights)
    assert found.shape == shape
    assert found.dtype == np.float32
    mean = np.average(np.stack(changes).astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(found, current + mean, rtol=1e-6, atol=1e-9)


def test_the_layout_in_memory_does_not_count() -> None:
    """Fortran order and read-only arrays give the same bits, and no input is written to."""
    current, changes, weights = random_case(4, 3, 0.0, (5, 7))
    turned = [np.asfortranarray(change) for change in changes]
    for array in (current, *changes, *turned):
        array.flags.writeable = False
    first = combined(current, changes, weights)
    assert combined(np.asfortranarray(current), turned, weights).tobytes() == first.tobytes()
