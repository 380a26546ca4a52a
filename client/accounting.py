"""What trainings cost a patient: epsilon of composed steps of DP-SGD, by Opacus' PRV accountant.

Privacy loss random variables (Gopi, Lee, Wutschitz 2021, arXiv:2106.02848) give an upper bound
that lies a stated error above the exact figure. Opacus comes with torch, which takes seconds to
load; it is loaded when there is something to compose.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from common.errors import PrivacyError

DELTA_POWER = 1.1
LEAST_DELTA = 1e-10
"""Below it, what float64 loses in adding up (1e-16 a number) is no longer small beside delta."""
_RELATIVE_ERROR = 0.005
"""How far the figure may lie above the exact one, as a share of it."""
_ERRORS = (5e-4, 0.25)
"""Least and largest such distance, whatever epsilon is."""
_DELTA_SHARE = 1e-3
"""The share of delta that the accountant's own cut-offs may use; Opacus' default."""
_CELLS = 2**22
"""Most cells of a distribution; 32 MB for each of the dozen arrays of that length."""
_LARGEST_LOSS = 700.0
"""exp() of a larger number overflows, and Opacus then gives too small a figure in silence."""
_ORDERS = (1.25, 1.5, 1.75, 2.5, 3.5, *range(2, 64), 128, 256)
"""Renyi orders; those near 1 are slow to compute."""
_SIGMAS = (0.05, 1e5)
"""Noise multipliers between which a calibration looks."""
_SIGMA_DIGITS = 4
_WIDTH = 1.001
"""A calibration ends when the two ends of its interval are this close to one another."""

_History = tuple[tuple[float, float, int], ...]
"""Noise multiplier, sample rate and steps of each part, no two of them alike."""


class Mechanism(NamedTuple):
    """Steps of DP-SGD that are alike."""

    noise_multiplier: float
    """Standard deviation of the noise over the bound of one patient's gradient; above 0."""
    sample_rate: float
    """Probability with which a step draws a patient, in (0, 1]."""
    steps: int


def default_delta(patients: int) -> float:
    """Return 1 / patients^1.1, a little below one in the number of patients."""
    return 1.0 / math.pow(patients, DELTA_POWER)


def epsilon(history: Sequence[Mechanism], delta: float) -> float:
    """Return what a history costs a patient who was in all of it.

    Neighbours are data sets with one patient more or less. The order of the steps does not
    matter, so those that are alike are counted together.

    Args:
        history: All steps, in any order; it may be empty.
        delta: In (0, 1).

    Returns:
        Epsilon, at least 0 and never below the exact figure; ``math.inf`` where no finite one
        can be had: beyond about 600, or with a delta below ``LEAST_DELTA``. It lies at most
        0.5 % above the exact figure, or 0.0005 if that is more (further for an epsilon below
        0.1 over many thousand steps).
    """
    counts: Counter[tuple[float, float]] = Counter()
    for mechanism in history:
        if mechanism.steps:
            counts[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.steps
    return _epsilon(tuple(sorted((*alike, steps) for alike, steps in counts.items())), delta)


def noise_multiplier(epsilon: float, delta: float, *, sample_rate: float, steps: int) -> float:
    """Return the least noise with which so many steps cost at most ``epsilon``.

    Args:
        epsilon: The target, above 0.
        delta: In (0, 1).
        sample_rate: In (0, 1].
        steps: All steps of the study.

    Returns:
        The noise multiplier, rounded up to four digits; at most 0.2 % above the least.

    Raises:
        PrivacyError: No noise reaches the target, or not with figures that can be trusted.
    """
    least, most = _SIGMAS

    def enough(sigma: float) -> bool:
        return _epsilon(((sigma, sample_rate, steps),), delta) <= epsilon

    if not enough(most):
        raise PrivacyError(
            f"No noise keeps {steps} steps, each with {sample_rate:.3g} of the patients, within "
            f"epsilon {epsilon:.4g} at delta {delta:.3g}.",
            remedy="Allow a larger epsilon or delta, or fewer rounds.",
        )
    # From 1 outwards: far from it composing is slow or impossible.
    low = high = 1.0
    while low > least and enough(low):
        low, high = max(low / 2, least), low
    while not enough(high):
        low, high = high, min(high * 2, most)
    while high / low > _WIDTH:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    sigma = _rounded_up(high)
    while not enough(sigma):  # the accountant's last digits need not fall with every digit
        sigma = _rounded_up(sigma * _WIDTH)
    return sigma


def _rounded_up(value: float) -> float:
    """Return the least number of so many digits that is not below ``value``.

    Machines then agree on a noise multiplier even where their last digits do not.
    """
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _SIGMA_DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_SIGMA_DIGITS}g}")


@lru_cache(maxsize=4096)
def _epsilon(history: _History, delta: float) -> float:
    """Return ``epsilon`` of a history without two parts that are alike."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, not between 0 and 1")
    if not history:
        return 0.0  # Opacus raises here
    if delta < LEAST_DELTA or min(sigma for sigma, _, _ in history) <= 0:
        return math.inf
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of RDP orders, and of overflows that end below
            return _composed(history, delta)
    except (ArithmeticError, ValueError, RuntimeError, MemoryError):
        return math.inf


def _composed(history: _History, delta: float) -> float:
    """Return the bound that ``PRVAccountant.get_epsilon`` gives, with an error that suits it.

    It is put together from the accountant's own parts, because the accountant makes a mesh for
    the same error whether epsilon is 0.01 or 500, and works out how wide it must be each time.
    """
    from opacus.accountants.analysis import prv  # noqa: PLC0415 - torch takes seconds to load

    delta_error = delta * _DELTA_SHARE
    loss = _largest_loss(history, delta_error)
    if not loss < _LARGEST_LOSS:
        return math.inf
    total = sum(steps for _, _, steps in history)
    # Gopi et al. 2021, theorem 5.5, as in Opacus: what the error is divided by gives the mesh.
    fineness = math.sqrt(total * math.log(12 / delta_error) / 2)

    def bound(error: float) -> float:
        domain = prv.Domain.create_aligned(-loss, loss, error / fineness)
        parts = [
            prv.discretize(
                prv.TruncatedPrivacyRandomVariable(
                    prv.PoissonSubsampledGaussianPRV(rate, sigma), domain.t_min, domain.t_max
                ),
                domain,
            )
            for sigma, rate, _ in history
        ]
        composed = prv.compose_heterogeneous(parts, [steps for _, _, steps in history])
        *_, upper = composed.compute_epsilon(delta, delta_error, error)
        return float(upper) if math.isfinite(upper) else math.inf

    affordable = 2 * loss * fineness / _CELLS
    if affordable >= 1:
        return math.inf  # the bound is proved below
    least, most = (max(error, affordable) for error in _ERRORS)
    rough = bound(most) - most
    return max(0.0, bound(min(max(least, _RELATIVE_ERROR * rough), most)))


def _largest_loss(history: _History, delta_error: float) -> float:
    """Return a privacy loss that is exceeded so seldom that the distribution may end there.

    Remark 5.6 of Gopi et al. 2021 as in Opacus' ``compute_safe_domain_size``, by fewer orders,
    which can only make it larger; all steps together and each alone are bounded.
    """
    from opacus.accountants.analysis import rdp  # noqa: PLC0415 - torch takes seconds to load

    def spent(renyi: Any, share: float) -> float:
        value, _ = rdp.get_privacy_spent(orders=list(_ORDERS), rdp=renyi, delta=share)
        return float(value)

    alone = [_renyi(rate, sigma) for sigma, rate, _ in history]
    total = sum(steps for _, _, steps in history)
    together = sum(steps * each for each, (_, _, steps) in zip(alone, history, strict=True))
    losses = [spent(each, delta_error / (8 * total)) for each in alone]
    return max(spent(together, delta_error / 4), *losses, _ERRORS[1]) + 3


@lru_cache(maxsize=1024)
def _renyi(rate: float, sigma: float) -> Any:
    from opacus.accountants.analysis import rdp  # noqa: PLC0415 - torch takes seconds to load

    return rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=list(_ORDERS))
