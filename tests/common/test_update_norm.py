"""Laws of the norm of a site's change, against NumPy's own in float64."""

import math

import numpy as np
import pytest

from common.packed_arrays import PackedArrays
from common.update_norm import factor_within, is_within, update_norm


def change(dtype: str = "float32") -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    shared = {"w": rng.normal(size=(1200, 1100)), "b": rng.normal(size=7), "none": np.zeros((0, 3))}
    groups = {"shared": shared, "head:a": {"h": rng.normal(size=(2, 9))}}
    return {g: {n: v.astype(dtype) for n, v in arrays.items()} for g, arrays in groups.items()}


def by_hand(groups: dict[str, dict[str, np.ndarray]]) -> float:
    flat = [v.astype(np.float64).ravel() for arrays in groups.values() for v in arrays.values()]
    return float(np.linalg.norm(np.concatenate(flat)))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_norm_is_that_of_all_numbers(dtype: str) -> None:
    """It is the L2 norm over all groups in float64, also of arrays that came in pieces."""
    groups = change(dtype)
    assert update_norm(groups) == pytest.approx(by_hand(groups), rel=1e-12)
    packed = {group: PackedArrays.of(arrays) for group, arrays in groups.items()}
    assert update_norm(packed) == pytest.approx(by_hand(groups), rel=1e-12)
    assert update_norm({}) == 0.0


def test_running_statistics_do_not_count() -> None:
    """A variance that was measured anew says nothing of how far the training went."""
    groups = change()
    assert update_norm({**groups, "statistics": {"v": np.full(9, 1e6)}}) == update_norm(groups)


def test_a_change_is_shortened_to_the_bound() -> None:
    """Times its factor it is as long as the bound; a shorter one and one without bound stay."""
    groups = change()
    factor = factor_within(groups, 2.0)
    assert factor * by_hand(groups) == pytest.approx(2.0)
    assert factor_within(groups, 1e9) == factor_within(groups, None) == 1.0
    assert not is_within(groups, 2.0)
    halves = {
        g: {n: (v * factor).astype("float16") for n, v in a.items()} for g, a in groups.items()
    }
    assert is_within(halves, 2.0)
    assert is_within(groups, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_within_no_bound(value: float) -> None:
    """One number that is none makes the whole change too long."""
    groups = change()
    groups["head:a"]["h"][0, 0] = value
    assert update_norm(groups) == math.inf
    assert not is_within(groups, 1e30)
