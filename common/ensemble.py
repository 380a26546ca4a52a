"""Several networks in one: each learns by itself, and their mean probability is what they say.

Shapes: M members, B batch, C channels, H height, W width, D features of all members together, K
classes of a task.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_ROUNDED = 1e-4
"""By how much the sum of votes in single precision may differ from 1."""


class Colours(NamedTuple):
    """Mean and standard deviation that a backbone expects of the channels of an image."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Members(nn.Module):
    """The backbones of an ensemble, from images to the features of all of them.

    Images come normalised as the first member wants them; the others have them as they want.

    Args:
        members: From images to features, shape (B, features of the member).
        colours: What each of them expects.
    """

    scales: Tensor
    """What each member multiplies the study's normalised images with, shape (M, 3, 1, 1)."""
    shifts: Tensor
    """What it adds then, shape (M, 3, 1, 1)."""

    def __init__(self, members: Sequence[nn.Module], colours: Sequence[Colours]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._alike = [one == colours[0] for one in colours]
        means_M311 = torch.tensor([one.mean for one in colours]).view(-1, 3, 1, 1)
        stds_M311 = torch.tensor([one.std for one in colours]).view(-1, 3, 1, 1)
        # They follow from the study: no checkpoint holds them.
        self.register_buffer("scales", stds_M311[:1] / stds_M311, persistent=False)
        shifts_M311 = (means_M311[:1] - means_M311) / stds_M311
        self.register_buffer("shifts", shifts_M311, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the features of all members side by side, shape (B, D)."""
        found = [
            member(x_BCHW if alike else x_BCHW * scale + shift)
            for member, alike, scale, shift in zip(
                self.members, self._alike, self.scales, self.shifts, strict=True
            )
        ]
        return torch.cat(found, dim=1)


class MemberHeads(nn.Module):
    """One task's heads, one for each member of an ensemble.

    Args:
        members: In the order of the members, each from the features of its own.
        weighted: Whether what each of them weighs may come to differ. If so it is an array of the
            network; else they weigh the same, and no array says so.
    """

    votes: Tensor | None
    """What each member weighs, shape (M,), in [0, 1], their sum being 1; None for the same."""

    def __init__(self, members: Sequence[nn.Linear], *, weighted: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.widths = [head.in_features for head in members]
        """Features of each member; together they are D."""
        self.out_features = members[0].out_features
        """Classes of the task, K."""
        equal_M = torch.full((len(members),), 1 / len(members))
        self.register_buffer("votes", equal_M if weighted else None)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the logits of the mean probability, shape (B, K)."""
        return mean_probability(torch.stack(self._each(features_BD)), self.votes)

    def apart(self, features_BD: Tensor) -> Tensor:
        """Return the logits of each member, one member after the other, shape (M * B, K)."""
        return torch.cat(self._each(features_BD))

    def _each(self, features_BD: Tensor) -> list[Tensor]:
        parts = features_BD.split(self.widths, dim=1)
        return [head(part) for head, part in zip(self.members, parts, strict=True)]


def mean_probability(logits_MBK: Tensor, weights_M: Tensor | None = None) -> Tensor:
    """Return the logarithm of the members' mean probability, shape (B, K); softmax undoes it.

    Mixing probabilities with equal weights is the ensemble of Hansen and Salamon 1990 and of
    Lakshminarayanan et al. 2017, section 2.4; with others, that of Opitz and Shavlik 1996.

    Args:
        logits_MBK: Logits of each member.
        weights_M: What each member weighs, at least 0, with the sum 1; None for the same.
    """
    log_p_MBK = logits_MBK.log_softmax(dim=2)
    if weights_M is None:
        return log_p_MBK.logsumexp(dim=0) - math.log(len(logits_MBK))
    return (log_p_MBK + weights_M.log().view(-1, 1, 1)).logsumexp(dim=0)


def vote_alike(heads: Iterable[nn.Module]) -> None:
    """Have all members of an ensemble weigh the same, in the heads that say what they weigh."""
    for head in heads:
        if isinstance(head, MemberHeads) and head.votes is not None:
            head.votes.fill_(1 / len(head.votes))


def check_votes(weights_M: NDArray[np.floating]) -> None:
    """Refuse what members cannot weigh.

    Raises:
        ValueError: A weight is not finite or below 0, or their sum is not 1, but for rounding.
    """
    sums_to_one = math.isclose(float(weights_M.sum()), 1.0, abs_tol=_ROUNDED)
    if not (np.isfinite(weights_M).all() and (weights_M >= 0).all() and sums_to_one):
        raise ValueError("the votes of an ensemble are not shares of one")
