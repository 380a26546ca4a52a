"""What central differential privacy has cost: epsilon of rounds of the Gaussian mechanism.

The rounds are composed without any loss: T of them, each with noise of z times the sensitivity,
tell as much as one with z / sqrt(T). Its epsilon is exact (Balle & Wang 2018, arXiv:1805.06083,
theorem 8): with mu = sqrt(T) / z, it is the least one for which

    Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu) <= delta.

With a = epsilon/mu - mu/2 the second term is phi(a) times Mills' ratio at a + mu, which no large
epsilon makes overflow. The functions of the standard library do; SciPy would cost the rounds more
memory than many a network.
"""

import math
from statistics import NormalDist

_CLOSE = 1e-12
_FAR = 20.0
"""From here on the fraction below is as good as ``erfc``, which ends in zeros at 38."""


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Return what so many rounds cost a site that was in all of them.

    No amplification by sampling: who is asked in a round is no secret.

    Args:
        noise_multiplier: Standard deviation of each round's noise over what one site can change;
            above 0.
        rounds: Rounds that were combined, 0 or more.
        delta: In (0, 1).

    Returns:
        Epsilon, 0 or more; exact but for rounding.
    """
    if rounds == 0:
        return 0.0
    mu = math.sqrt(rounds) / noise_multiplier
    low, high = -mu / 2, -NormalDist().inv_cdf(delta)
    if _delta(low, mu) <= delta:
        return 0.0
    while high - low > _CLOSE * max(1.0, abs(high)):
        middle = (low + high) / 2
        low, high = (low, middle) if _delta(middle, mu) <= delta else (middle, high)
    return mu * (high + mu / 2)


def _delta(a: float, mu: float) -> float:
    """Return delta at epsilon = mu (a + mu/2), which falls as ``a`` rises; ``a`` >= -mu/2."""
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return math.erfc(a / math.sqrt(2)) / 2 - density * _mills(a + mu)


def _mills(x: float) -> float:
    """Return Phi(-x) / phi(x), for ``x`` above 0.

    Far out it is the fourth convergent of Laplace's continued fraction, 1e-9 below the ratio at
    most: epsilon is then the larger for it.
    """
    if x < _FAR:
        return math.erfc(x / math.sqrt(2)) / 2 * math.sqrt(2 * math.pi) * math.exp(x * x / 2)
    return (x**3 + 5 * x) / (x**4 + 6 * x**2 + 3)
