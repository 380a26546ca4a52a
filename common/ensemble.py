"""Several networks in one: each learns by itself, and their mean probability is what they say.

Shapes: M members, B batch, C channels, H height, W width, D features of all members together, K
classes of a task.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


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
    """

    def __init__(self, members: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.widths = [head.in_features for head in members]
        """Features of each member; together they are D."""
        self.out_features = members[0].out_features
        """Classes of the task, K."""

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the logits of the mean probability, shape (B, K)."""
        return mean_probability(torch.stack(self._each(features_BD)))

    def apart(self, features_BD: Tensor) -> Tensor:
        """Return the logits of each member, one member after the other, shape (M * B, K)."""
        return torch.cat(self._each(features_BD))

    def _each(self, features_BD: Tensor) -> list[Tensor]:
        parts = features_BD.split(self.widths, dim=1)
        return [head(part) for head, part in zip(self.members, parts, strict=True)]


def mean_probability(logits_MBK: Tensor) -> Tensor:
    """Return the logarithm of the members' mean probability, shape (B, K); softmax undoes it.

    Mixing probabilities with equal weights is the ensemble of Hansen and Salamon 1990 and of
    Lakshminarayanan et al. 2017, section 2.4.

    Args:
        logits_MBK: Logits of each member.
    """
    members = math.log(len(logits_MBK))
    return logits_MBK.log_softmax(dim=2).logsumexp(dim=0) - members
