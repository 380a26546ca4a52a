"""Laws of the accounting of differential privacy; the reference is Google's dp-accounting."""

import math
import subprocess
import sys
from collections.abc import Sequence

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from opacus.accountants import GaussianAccountant

from client import accounting
from client.accounting import Mechanism, default_delta, epsilon, noise_multiplier
from common.errors import PrivacyError

TOLERANCE = 0.02
FLOOR = 1e-3
"""Below about 0.05, what the accountant adds at least is no longer small beside epsilon."""

HISTORIES: list[tuple[list[tuple[float, float, int]], float, float]] = [
    ([(1, 1 / 3, 12)], 1e-3, 1e-4),
    ([(1, 0.05, 500)], 1e-5, 1e-4),
    ([(1.1, 0.01, 1000)], 1e-5, 1e-4),
    ([(0.6, 0.1, 100)], 1e-4, 1e-3),
    ([(4, 1, 50)], 1e-4, 1e-3),
    ([(10, 1, 50)], 1e-3, 1e-4),
    ([(0.5, 1, 200)], 1e-4, 1e-2),  # hundreds
    ([(0.1, 0.01, 10)], 1e-4, 1e-2),  # a loss with a long tail
    ([(20, 0.001, 1000)], 1e-5, 1e-6),  # next to nothing
    ([(5, 1e-3, 100)], 1e-6, 1e-6),
    ([(1000, 1, 1)], 1e-3, 1e-4),
    ([(1, 1e-6, 10)], 1e-3, 1e-4),
    ([(1, 0.01, 1000)], 1e-10, 1e-4),
    ([(1, 0.01, 1000), (2, 0.3, 50), (3, 1, 4)], 1e-5, 1e-4),
    ([(0.8, 0.2, 10), (50, 0.001, 500), (1.5, 1, 1), (1.2, 0.05, 77)], 1e-4, 1e-4),
]
"""Noise multiplier, sample rate and steps of each part; delta; the reference's mesh."""


def mechanisms(parts: Sequence[tuple[float, float, int]]) -> list[Mechanism]:
    return [Mechanism(*part) for part in parts]


def reference(parts: Sequence[tuple[float, float, int]], delta: float, mesh: float) -> float:
    """Epsilon by privacy loss distributions, as Google composes them."""
    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=mesh)
    for sigma, rate, steps in parts:
        gaussian = dp_event.GaussianDpEvent(sigma)
        event = gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian)
        accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("parts", "delta", "mesh"), HISTORIES)
def test_it_agrees_with_google(
    parts: list[tuple[float, float, int]], delta: float, mesh: float
) -> None:
    """Within 2 %, also for few steps, all patients, tiny shares and mixed histories."""
    expected = reference(parts, delta, mesh)
    found = epsilon(mechanisms(parts), delta)
    assert found == pytest.approx(expected, rel=TOLERANCE, abs=FLOOR)
    assert found >= expected * (1 - 1e-3)  # an upper bound, but for the reference's own error


def test_the_figure_is_not_that_of_gdp() -> None:
    """Opacus' GDP accountant gives less than the exact figure (Bu et al. 2020 is a limit)."""
    parts, delta = [(1.0, 0.05, 500)], 1e-5
    with pytest.warns(UserWarning, match="underestimate"):
        accountant = GaussianAccountant()
    accountant.history = list(parts)
    too_small, exact = accountant.get_epsilon(delta), reference(parts, delta, 1e-4)
    assert too_small < 0.95 * exact
    assert epsilon(mechanisms(parts), delta) >= exact


def test_the_gaussian_alone_agrees_with_the_closed_form() -> None:
    """Balle and Wang 2018, theorem 8: delta of one Gaussian as a function of epsilon."""

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    for sigma, steps, delta in ((4.0, 50, 1e-4), (1.0, 1, 1e-5), (10.0, 50, 1e-3)):
        mu = math.sqrt(steps) / sigma  # steps with all patients are one with less noise
        found = epsilon([Mechanism(sigma, 1.0, steps)], delta)
        for value, holds in ((found, True), (found / (1 + TOLERANCE), False)):
            exact = normal(mu / 2 - value / mu) - math.exp(value) * normal(-mu / 2 - value / mu)
            assert (exact <= delta) is holds


def test_no_history_costs_nothing() -> None:
    """Opacus raises there."""
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Mechanism(1.0, 0.1, 0)], 1e-5) == 0.0


def test_the_order_of_the_steps_does_not_matter() -> None:
    """Steps that are alike are counted together, however they are scattered."""
    one, other = Mechanism(1.0, 0.1, 3), Mechanism(2.0, 0.3, 1)
    whole = epsilon([Mechanism(1.0, 0.1, 300), Mechanism(2.0, 0.3, 100)], 1e-4)
    assert epsilon([one, other] * 100, 1e-4) == whole
    assert epsilon([other] * 100 + [one] * 100, 1e-4) == whole


def test_more_never_costs_less() -> None:
    """More steps, more patients drawn, less noise and a smaller delta each cost more."""
    base = Mechanism(1.0, 0.1, 50)
    middle = epsilon([base], 1e-4)
    for dearer in (base._replace(steps=51), base._replace(sample_rate=0.102)):
        assert epsilon([dearer], 1e-4) > middle
    assert epsilon([base._replace(noise_multiplier=0.99)], 1e-4) > middle
    assert epsilon([base], 0.9e-4) > middle
    assert epsilon([base, Mechanism(8.0, 0.1, 10)], 1e-4) > middle


@pytest.mark.parametrize(
    ("parts", "delta"),
    [
        ([(0.01, 1.0, 1)], 1e-4),
        ([(1e-6, 0.5, 10)], 1e-6),
        ([(0.02, 0.001, 1)], 1e-6),
        ([(0.5, 1.0, 400)], 1e-4),
        ([(1.0, 0.1, 10)], 1e-13),
        ([(0.0, 0.1, 1)], 1e-4),
        ([(1.0, 0.1, 10), (0.0, 0.1, 1)], 1e-4),
    ],
)
def test_what_cannot_be_composed_is_infinite(
    parts: list[tuple[float, float, int]], delta: float
) -> None:
    """No noise to speak of, or a delta of no digits: never an error, and never too small."""
    assert epsilon(mechanisms(parts), delta) == math.inf


def test_very_many_steps_need_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh as fine as they would have it may not fit; the bound is looser then, never lower."""
    steps, rate, sigma = 10**6, 1e-3, 10.0
    share = math.sqrt(steps) * rate / sigma  # of so many small steps: a Gaussian (Bu et al. 2020)
    exact = epsilon([Mechanism(1 / share, 1.0, 1)], 1e-5)
    monkeypatch.setattr(accounting, "_CELLS", 2**16)
    assert exact < epsilon([Mechanism(sigma, rate, steps)], 1e-5) < 3 * exact
    monkeypatch.setattr(accounting, "_CELLS", 2**10)
    assert epsilon([Mechanism(sigma, rate, steps + 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        (8.0, 1e-3, 1 / 13, 130),
        (1.0, 1e-3, 1 / 13, 130),
        (3.0, 1e-4, 1.0, 30),
        (0.1, 1e-3, 0.2, 20),
    ],
)
def test_noise_is_the_least_that_keeps_the_target(
    target: float, delta: float, rate: float, steps: int
) -> None:
    """What it gives keeps epsilon, by Google's count too, and a fiftieth less does not."""
    sigma = noise_multiplier(target, delta, sample_rate=rate, steps=steps)
    assert epsilon([Mechanism(sigma, rate, steps)], delta) <= target
    assert reference([(sigma, rate, steps)], delta, 1e-4) <= target
    assert reference([(0.98 * sigma, rate, steps)], delta, 1e-4) > target * 0.995
    assert float(f"{sigma:.4g}") == sigma


def test_what_no_noise_keeps_is_refused() -> None:
    """A target that is out of reach, and a delta with which nothing can be counted."""
    for target, delta in ((1e-9, 1e-8), (1.0, 1e-13)):
        with pytest.raises(PrivacyError, match="No noise") as refusal:
            noise_multiplier(target, delta, sample_rate=1.0, steps=10)
        assert refusal.value.remedy


def test_the_default_delta_is_below_one_patient() -> None:
    """1 / patients^1.1."""
    assert default_delta(100) == pytest.approx(10**-2.2)
    assert all(default_delta(n) < 1 / n for n in (2, 10, 10**6))


def test_a_delta_out_of_range_is_a_mistake_of_the_caller() -> None:
    """It is no probability."""
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            epsilon([Mechanism(1.0, 0.1, 1)], delta)


def test_the_module_does_not_wait_for_torch() -> None:
    """Opacus comes with torch; a command that composes nothing starts without."""
    code = (
        "import sys, client.accounting as a, client.ledger, client.plan, client.cli_privacy; "
        "a.epsilon([], 0.1); print('torch' in sys.modules or 'opacus' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
