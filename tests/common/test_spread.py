"""Laws of how far sites lie apart."""

import numpy as np
import pytest

from common.spread import spread


def test_by_hand() -> None:
    """Range, worst site and standard deviation are those of the sites that have the metric."""
    values = {"b": 0.9, "a": 0.7, "c": None, "d": 0.8}
    found = spread(values, "auroc")
    assert found is not None
    assert found.pop("std") == pytest.approx(np.std([0.9, 0.7, 0.8], ddof=1))
    assert found == {"lowest": 0.7, "highest": 0.9, "worst_site": "a", "sites": 3}


@pytest.mark.parametrize("metric", ["brier", "calibration_error", "loss"])
def test_the_worst_of_what_should_be_small_is_the_largest(metric: str) -> None:
    """Of errors the highest is the worst."""
    found = spread({"a": 0.1, "b": 0.3}, metric)
    assert found is not None
    assert found["worst_site"] == "b"


def test_one_site_has_no_spread() -> None:
    """Of fewer than two sites with the metric nothing is said."""
    assert spread({"a": 0.1, "b": None}, "auroc") is None
    assert spread({}, "auroc") is None


def test_of_equals_the_first_by_name_is_worst() -> None:
    """The order in which sites are told changes nothing."""
    one, other = spread({"b": 0.5, "a": 0.5}, "auroc"), spread({"a": 0.5, "b": 0.5}, "auroc")
    assert one == other
    assert one is not None
    assert one["worst_site"] == "a"
