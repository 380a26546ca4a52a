"""Central differential privacy: what the coordinator does so that no model tells of one site.

Each site's change is shortened to a bound, and Gaussian noise is added to the sum (McMahan et al.
2018, arXiv:1710.06963). Two runs are neighbours when the same sites reply in both, and what one of
them replies counts in one run and is nothing in the other (zero-out, Kairouz et al. 2021,
arXiv:2103.00039). Noise of z times the bound on every group's sum is the Gaussian mechanism over
all of them together, since the bound holds for all of a site's arrays together.

The formulas of the noise are Flower's own; ``docs/privacy.md`` says why its strategy wrappers,
which use them too, are not taken.
"""

import math
from collections.abc import Mapping

import numpy as np
from flwr.supercore.differential_privacy import compute_adaptive_noise_params, compute_stdv
from numpy.typing import NDArray

from common.arrays import Array, Arrays
from common.errors import StudyError
from common.layout import STATISTICS, Layout
from common.privacy import CentralPrivacy
from common.study import Study
from common.update_norm import factor_within
from server.central_accounting import epsilon

CARRIED = "central-privacy"
"""Where a checkpoint keeps the state, beside those of the groups."""
_CHUNK = 1 << 16
"""Numbers that get their noise at a time, so that it never takes a model's memory."""


class SiteNoise:
    """The bound on a site's change, and the noise on what is made of the changes.

    The generator is filled from the operating system's entropy: whoever knows a seed could
    subtract the noise.
    """

    def __init__(self, settings: CentralPrivacy) -> None:
        self._settings = settings
        self._generator = np.random.default_rng()
        self._multiplier, self._count_noise = settings.noise_multiplier, 0.0
        if settings.clipping == "adaptive":
            self._count_noise, self._multiplier = compute_adaptive_noise_params(
                settings.noise_multiplier, 1, settings.count_noise or settings.noise_multiplier
            )
        self.clip_norm = settings.clip_norm
        """The bound of this round; one that adapts is another in the next."""
        self.rounds = 0
        """Rounds that were combined."""
        self._within = 0.0

    def begin_round(self) -> None:
        """Forget the replies of a round that was not combined."""
        self._within = 0.0

    def factor_for(self, groups: Mapping[str, Arrays]) -> float:
        """Return what a site's change is multiplied by, in (0, 1], and count whether it is 1.

        Args:
            groups: The change of each group's arrays; the bound is on all of them together.
        """
        factor = factor_within(groups, self.clip_norm)
        # Around zero: a reply that counts as nothing is then 1/2 away, whichever it was.
        self._within += 0.5 if factor == 1 else -0.5
        return factor

    def std(self, sites: int) -> float:
        """Return the standard deviation of the noise on each number of a mean over ``sites``."""
        return compute_stdv(self._multiplier, self.clip_norm, sites)

    def add_to(self, mean: NDArray[np.float32], sites: int) -> None:
        """Add noise to a mean over so many sites, in place.

        Args:
            mean: Contiguous, of any shape.
            sites: How many replies the mean is of; it is divided by, so fewer mean more noise.
        """
        std, flat = self.std(sites), mean.reshape(-1)
        for begin in range(0, flat.size, _CHUNK):
            part = flat[begin : begin + _CHUNK]
            part[:] = part + self._generator.normal(scale=std, size=part.size)

    def close_round(self, sites: int) -> dict[str, float | int]:
        """Count a round whose model has got its noise, and adapt the bound for the next one.

        The bound moves by exp(-rate * (share of sites within it - quantile)), the share with noise
        of its own (Andrew et al. 2021, arXiv:1905.03871, section 2.2).

        Args:
            sites: How many replies were combined.

        Returns:
            What the round was, for its record.
        """
        settings, bound = self._settings, self.clip_norm
        self.rounds += 1
        if settings.clipping == "adaptive":
            noise = self._generator.normal(scale=self._count_noise)
            off = (self._within + noise) / sites + 0.5 - settings.target_quantile
            # Noise may make the share any number; a bound that it threw far away would be lost.
            self.clip_norm *= math.exp(-settings.clip_learning_rate * min(max(off, -1.0), 1.0))
        return {
            "noise_multiplier": settings.noise_multiplier,
            "clip_norm": bound,
            "sites": sites,
            "epsilon": epsilon(settings.noise_multiplier, self.rounds, settings.delta),
            "delta": settings.delta,
        }

    def state(self) -> dict[str, Array]:
        """Return what is carried from round to round, to be kept on disk."""
        return {"clip_norm": np.array(self.clip_norm), "rounds": np.array(self.rounds)}

    def restore(self, state: Arrays) -> None:
        """Go on from such a state; before the first round there is none."""
        if state:
            self.clip_norm, self.rounds = float(state["clip_norm"]), int(state["rounds"])


def make_noise(study: Study, layout: Layout, states: Mapping[str, Arrays]) -> SiteNoise | None:
    """Return the noise of a study as it was when the last round was done; None where it has none.

    Args:
        study: What was agreed.
        layout: How the network's arrays are divided.
        states: What the last round's checkpoint carries.

    Raises:
        StudyError: The network cannot have it.
    """
    if study.central_privacy is None:
        return None
    check_layout(study, layout)
    noise = SiteNoise(study.central_privacy)
    noise.restore(states.get(CARRIED, {}))
    return noise


def check_layout(study: Study, layout: Layout) -> None:
    """Refuse central privacy where statistics of batch normalisation travel.

    They are measured and not trained: no bound on a site's change is meant for them, and noise
    could make a variance negative.

    Raises:
        StudyError: They do.
    """
    if study.central_privacy is not None and layout.groups.get(STATISTICS):
        raise StudyError(
            "Central privacy cannot cover the running statistics of batch normalisation, which "
            f"the sites of {study.name} would send: no bound fits them.",
            remedy='Set backbone.normalisation = "frozen" or "local", or take a backbone with '
            "group or layer normalisation.",
        )
