"""The mean of bounded changes with noise, and a strategy's step along it.

Whatever is made of the noisy mean has its privacy: a strategy that steps along it, and all later
rounds. So the noise comes before the step, not after it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.arrays import Array, Arrays, form_of, pieces_of
from server.central_privacy import SiteNoise
from server.exact_sum import ExactSum
from server.strategies import Combiner, FlowerStrategy

Floats = NDArray[np.float32]


class NoisyMean:
    """Equal weights: the sum of the changes, each shortened, over the replies that came.

    Sites that were asked and did not answer make the mean one over fewer, with more noise: what a
    round costs does not depend on how many came.

    Args:
        noise: The study's, of all groups together.
        strategy: What steps along the mean; None for old plus mean.
    """

    def __init__(self, noise: SiteNoise, strategy: FlowerStrategy | None) -> None:
        self._noise, self._strategy = noise, strategy

    def begin(self, server_round: int, current: Arrays, capacity: float) -> None:
        """Start a round with empty sums."""
        self._noise.begin_round()
        self._current, self._capacity, self._replies = current, capacity, 0
        # The grid of the sums is fitted to the bound, not to the weights, however large they are:
        # rounding then lengthens a change by less than 1e-10 of max(bound, 1/16) times the sites
        # asked times the root of the numbers in the network.
        bound = self._noise.clip_norm
        shapes = {name: form_of(current, name)[1] for name in current}
        self._sums = {
            name: ExactSum(np.broadcast_to(bound, shape)) for name, shape in shapes.items()
        }
        if self._strategy is not None:
            self._strategy.begin(server_round, current, capacity)

    def accept(self, site: str, change: Arrays, weight: float) -> None:
        """Fold one reply in.

        Args:
            site: Who sent it.
            change: As it came.
            weight: What shortens it: ``SiteNoise.factor_for`` its groups, or less.
        """
        del site  # a sum does not ask who
        for name, total in self._sums.items():
            pieces = pieces_of(change, name)
            shortened = (np.multiply(piece, weight, dtype=np.float64) for piece in pieces)
            total.add(shortened, 1 / self._capacity)
        self._replies += 1

    def finish(self) -> dict[str, Array]:
        """Return old plus step; without a reply, the old arrays and no noise."""
        if not self._replies:
            return {name: self._current[name] for name in self._sums}
        if self._strategy is None:
            return {
                name: np.asarray(self._current[name] + self._mean(name), np.float32)
                for name in list(self._sums)
            }
        mean = {name: self._mean(name) for name in list(self._sums)}
        self._strategy.accept("mean", mean, 1.0)
        return self._strategy.finish()

    def state(self) -> dict[str, Array]:
        """Return the strategy's state."""
        return {} if self._strategy is None else self._strategy.state()

    def restore(self, state: Arrays, names: Sequence[str]) -> None:
        """Give the strategy its state back."""
        if self._strategy is not None:
            self._strategy.restore(state, names)

    def _mean(self, name: str) -> Floats:
        """Return the noisy mean of one array's changes, giving the sum's memory back."""
        zero = np.zeros(form_of(self._current, name)[1], np.float32)
        mean = self._sums.pop(name).applied_to(zero, self._replies / self._capacity)
        self._noise.add_to(mean, self._replies)
        return mean


def with_noise(combiner: Combiner, noise: SiteNoise | None) -> Combiner:
    """Return the combiner that does as ``combiner`` does, on the noisy mean if there is noise.

    Args:
        combiner: A plain mean, or a strategy of Flower that steps along the mean; a study with
            noise has no other (``common/study_faults.py``).
        noise: The study's, if it has any.
    """
    if noise is None:
        return combiner
    return NoisyMean(noise, combiner if isinstance(combiner, FlowerStrategy) else None)
