"""How arrays leave the network and enter it; which of them travel says ``common/layout.py``."""

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common.arrays import Array, Arrays
from common.layout import (
    DISCRIMINATOR,
    SHARED,
    SITES,
    STATISTICS,
    Layout,
    head_group,
    votes_group,
    votes_name,
)
from common.models import FederatedModel
from common.study import Study


def layout_of(model: FederatedModel, study: Study) -> Layout:
    """Sort the network's arrays into groups that travel, local ones and the base."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    normalisation = set(_batch_norm_entries(model))
    statistics = normalisation - {name for name, _ in model.named_parameters()}
    local = normalisation if study.backbone.normalisation == "local" else set()
    if study.federation.personal == "head":
        local |= {name for name in trained if name.startswith("heads.")}
    state = list(model.state_dict())
    votes = {votes_group(t): (votes_name(t),) for t in study.tasks if votes_name(t) in state}
    travelling = (trained | normalisation) - local
    groups = {
        SHARED: _under("backbone.", state, travelling - statistics),
        STATISTICS: _under("backbone.", state, travelling & statistics),
    }
    if study.training.aligns:
        groups[SITES] = _under(DISCRIMINATOR, state, travelling)
    for task in study.tasks:
        groups[head_group(task)] = _under(f"heads.{task}.", state, travelling)
    once = set(state) - travelling.union(*votes.values())
    return Layout(
        groups=groups | votes,
        local=tuple(name for name in state if name in local),
        base=tuple(name for name in state if name in once - local),
        initial=(*groups[SHARED], *groups[STATISTICS]) if study.training.stays_near else (),
        stages=0 if study.training.unfreeze_every is None else len(model.stages),
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
    check_fit(model, arrays)
    state = model.state_dict()
    with torch.no_grad():
        for name in arrays:
            state[name].copy_(torch.from_numpy(np.array(arrays[name])))


def check_fit(model: FederatedModel, arrays: Arrays) -> None:
    """Refuse arrays that have no place in the network.

    Raises:
        ValueError: A name is unknown, or a shape or dtype differs; all such names are listed.
    """
    state = model.state_dict()
    # Each array is looked at by itself, here and in ``put``: one that came in pieces is joined anew
    # each time, and all of them at once would be a second model in memory.
    wrong = [name for name in arrays if not _fits(state.get(name), arrays[name])]
    if wrong:
        raise ValueError(f"arrays that do not fit the network: {', '.join(wrong)}")


def _fits(target: torch.Tensor | None, value: Array) -> bool:
    if target is None:
        return False
    return target.shape == value.shape and str(target.dtype) == f"torch.{value.dtype}"


def _batch_norm_entries(model: FederatedModel) -> Iterable[str]:
    """Weights and statistics of every batch norm that still lives, without its step counter."""
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    yield f"{prefix}.{name}"


def _under(prefix: str, state: Iterable[str], names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in state if name.startswith(prefix) and name in names)
