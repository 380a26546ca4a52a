"""Which arrays of the network travel, and how they leave and enter it.

Every entry of the network's state belongs to exactly one kind:

- the group ``shared``: trained parts of the backbone, averaged over all sites;
- the group ``statistics``: running means and variances of batch normalisation, likewise. They
  are a group of their own because they are measured, not trained: a server's optimizer that
  stepped along their change could make a variance negative;
- the groups ``head:TASK``: one task's head, averaged over the sites that have the task;
- ``local``: batch normalisation that each site keeps to itself (FedBN, Li et al. 2021);
- ``base``: all the rest, frozen weights and counters among it. The coordinator sends it once to
  a site that does not have it yet, and it never travels again.

Integer buffers (batch norm's step counter, index tables) are always ``base``: an average of
counters means nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common.arrays import Array, Arrays
from common.models import FederatedModel
from common.study import Study

SHARED = "shared"
STATISTICS = "statistics"


def head_group(task: str) -> str:
    """Return the name of the group that holds one task's head."""
    return f"head:{task}"


@dataclass(frozen=True)
class Layout:
    """Names of the network's arrays, by what happens to them."""

    groups: Mapping[str, tuple[str, ...]]
    """Arrays that travel each round, by group; a group may be empty."""
    local: tuple[str, ...]
    """Arrays that stay at their site once it has the first ones."""
    base: tuple[str, ...]
    """Arrays that never change, or count."""

    def groups_of(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """Return the groups that concern a site with these tasks, without empty ones."""
        wanted = [SHARED, STATISTICS, *(head_group(task) for task in tasks)]
        return tuple(name for name in wanted if self.groups.get(name))

    @property
    def sent_once(self) -> tuple[str, ...]:
        """Arrays that a site gets one time: the base, and where its local ones begin."""
        return (*self.base, *self.local)


def layout_of(model: FederatedModel, study: Study) -> Layout:
    """Sort the network's arrays into groups that travel, local ones and the base."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    normalisation = set(_batch_norm_entries(model))
    statistics = normalisation - {name for name, _ in model.named_parameters()}
    local = normalisation if study.backbone.normalisation == "local" else set()
    travelling = (trained | normalisation) - local
    state = list(model.state_dict())
    groups = {
        SHARED: _under("backbone.", state, travelling - statistics),
        STATISTICS: _under("backbone.", state, travelling & statistics),
    }
    for task in study.tasks:
        groups[head_group(task)] = _under(f"heads.{task}.", state, travelling)
    return Layout(
        groups=groups,
        local=tuple(name for name in state if name in local),
        base=tuple(name for name in state if name not in travelling | local),
    )


def take(model: FederatedModel, names: Iterable[str]) -> dict[str, Array]:
    """Copy arrays out of the network, each of its own dtype and shape."""
    state = model.state_dict()
    return {name: state[name].detach().to("cpu", copy=True).numpy() for name in names}


def put(model: FederatedModel, arrays: Arrays) -> None:
    """Copy arrays into the network.

    Raises:
        ValueError: A name is unknown, or a shape or dtype differs; nothing is changed then.
    """
    state = model.state_dict()
    values = {name: arrays[name] for name in arrays}
    wrong = [
        name
        for name, value in values.items()
        if name not in state
        or state[name].shape != value.shape
        or str(state[name].dtype) != f"torch.{value.dtype}"
    ]
    if wrong:
        raise ValueError(f"arrays that do not fit the network: {', '.join(wrong)}")
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(torch.from_numpy(np.array(value)))


def _batch_norm_entries(model: FederatedModel) -> Iterable[str]:
    """Weights and statistics of every batch norm that still lives, without its step counter."""
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    yield f"{prefix}.{name}"


def _under(prefix: str, state: Iterable[str], names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in state if name.startswith(prefix) and name in names)
