"""Laws of dealing: how many units of each class each site gets."""

import numpy as np
import pytest

from simulations.dealing import Skew, deal_counts, parse_skew


def test_small_alpha_is_more_skewed_than_iid() -> None:
    """The classes' mix differs more between sites under dirichlet:0.2 than under iid."""

    def unlikeness(alpha: float | None) -> float:
        spread = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            counts = deal_counts(np.array([90, 90, 90]), sites=4, skew=Skew(alpha), rng=rng)
            assert counts.sum(axis=1).tolist() == [90, 90, 90]
            spread.append((counts / counts.sum(axis=0)).std(axis=1).mean())
        return float(np.mean(spread))

    assert unlikeness(None) + 0.1 < unlikeness(1.0) < unlikeness(0.2)


def test_size_skew_follows_its_power() -> None:
    """Under size:1 four sites get units as 12 : 6 : 4 : 3."""
    rng = np.random.default_rng(0)
    counts = deal_counts(np.array([125, 125]), sites=4, skew=Skew(power=1), rng=rng)
    assert counts.sum(axis=0).tolist() == [120, 60, 40, 30]


@pytest.mark.parametrize("seed", range(10))
def test_every_site_has_two_units_of_two_classes(seed: int) -> None:
    """However skewed, no site is left without two units of each of two classes."""
    rng = np.random.default_rng(seed)
    skew = Skew(alpha=0.05, power=1)
    counts = deal_counts(np.array([20, 25, 30]), sites=5, skew=skew, rng=rng)
    assert ((counts >= 2).sum(axis=0) >= 2).all()
    assert (counts >= 0).all()
    assert counts.sum(axis=1).tolist() == [20, 25, 30]


def test_skew_is_read_as_written() -> None:
    """Parts combine in any order."""
    assert parse_skew("iid") == Skew()
    assert parse_skew("size:1, dirichlet:0.5") == Skew(0.5, 1.0)
    assert parse_skew("scanner,iid") == Skew(scanner=True)
