"""Laws of what central privacy costs; references are dp-accounting, SciPy and a sum by hand."""

import math

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from scipy.special import log_ndtr, ndtr

from server.central_accounting import epsilon

HISTORIES = [(1.0, 1), (1.0, 12), (0.7, 3), (4.0, 50), (10.0, 1000), (50.0, 7), (1000.0, 1)]
DELTAS = (1e-3, 1e-5, 1e-9)


def delta_of(found: float, noise_multiplier: float, rounds: int) -> float:
    """Theorem 8 of Balle and Wang as it stands there, in logarithms of SciPy's."""
    mu = math.sqrt(rounds) / noise_multiplier
    return float(
        ndtr(mu / 2 - found / mu) - math.exp(found + float(log_ndtr(-mu / 2 - found / mu)))
    )


def test_a_sum_by_hand() -> None:
    """With mu = 1 an epsilon of 1 goes with Phi(-1/2) - e Phi(-3/2), from a table of Phi."""
    assert epsilon(1.0, 1, 0.3085375387 - math.e * 0.0668072013) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("noise_multiplier", "rounds"), HISTORIES)
def test_composed_rounds_agree_with_google(noise_multiplier: float, rounds: int) -> None:
    """Within 1 % of privacy loss distributions that were composed round by round."""
    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=2e-4)
    accountant.compose(dp_event.GaussianDpEvent(noise_multiplier), rounds)
    expected = float(accountant.get_epsilon(1e-5))
    assert epsilon(noise_multiplier, rounds, 1e-5) == pytest.approx(expected, rel=0.01, abs=2e-4)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize(("noise_multiplier", "rounds"), HISTORIES)
def test_it_is_the_exact_figure(noise_multiplier: float, rounds: int, delta: float) -> None:
    """Within 1e-6 to either side of it, by Google's delta of a Gaussian mechanism."""
    found = epsilon(noise_multiplier, rounds, delta)
    exact = GaussianPrivacyLoss(noise_multiplier / math.sqrt(rounds))
    assert exact.get_delta_for_epsilon(found + 1e-6) <= delta
    if found:
        assert exact.get_delta_for_epsilon(max(found - 1e-6, 0.0)) >= delta * (1 - 1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9, 1e-100])
@pytest.mark.parametrize("mu", [10.0, 19.0, 20.0, 21.0, 30.0, 100.0, 1e4])
def test_large_figures_do_not_overflow(mu: float, delta: float) -> None:
    """Where exp(epsilon) is no float any more, the figure is still the least one."""
    found = epsilon(1 / mu, 1, delta)
    assert delta_of(found, 1 / mu, 1) == pytest.approx(delta, rel=1e-4)
    # SciPy's own digits end here: epsilon / mu is that of a number of the order of mu.
    assert delta_of(found * (1 + 1e-9), 1 / mu, 1) <= delta * (1 + 1e-6)


def test_the_ends_of_the_range() -> None:
    """No round costs nothing, much delta needs no epsilon, and the least noise is still finite."""
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert epsilon(1.0, 1, 0.5) == 0.0
    assert epsilon(1000.0, 1, 0.999) == 0.0
    assert math.isfinite(epsilon(1e-9, 100_000, 1e-300))


def test_it_depends_on_the_noise_over_the_root_of_the_rounds() -> None:
    """Four rounds with twice the noise cost as one; more rounds and less noise cost more."""
    assert epsilon(2.0, 4, 1e-5) == pytest.approx(epsilon(1.0, 1, 1e-5), rel=1e-12)
    by_rounds = [epsilon(3.0, rounds, 1e-5) for rounds in range(30)]
    assert by_rounds == sorted(set(by_rounds))
    by_noise = [epsilon(noise, 5, 1e-5) for noise in (0.1, 0.5, 1, 2, 10, 100)]
    assert by_noise == sorted(set(by_noise), reverse=True)
