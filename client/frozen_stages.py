"""Divides a network where its frozen stages end, so that what they give can be computed once.

Shapes: B batch, C channels, H height, W width, D features, K classes; ... of what a stage gives.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.models import FederatedModel


class FrozenPart:
    """What of a network does not train, and ``behind``, the network without it.

    Args:
        model: The network.
        last: The last frozen stage; None where the whole backbone is frozen.
        behind: From what the frozen part gives, and the name of a task, to logits; it shares its
            parameters and buffers with the network.
    """

    def __init__(
        self, model: FederatedModel, last: nn.Module | None, behind: FederatedModel
    ) -> None:
        self._model, self._last, self.behind = model, last, behind

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Return what the frozen part gives of normalised images, without dropout, (B, ...)."""
        mode = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                if self._last is None:
                    return self._model.features(x_BCHW)
                return _output_of(self._last, self._model.backbone, x_BCHW)
        finally:
            self._model.train(mode)


def frozen_part(model: FederatedModel, size: int) -> FrozenPart | None:
    """Return the part of a network that does not train, if it can be run by itself.

    It is the whole backbone, or its first stages. Those are layers that do nothing in the network
    behind them; whether the two parts together give what the whole gives is tried out. They do
    not where a network does more between its stages than to hand on what they give: a vision
    transformer adds the positions of patches there.

    Args:
        model: The network, on the device and with the memory format that it keeps.
        size: Height and width of its images, in pixels.

    Returns:
        None where no stage is frozen, one gathers statistics, or the network cannot be divided.
    """
    if not any(value.requires_grad for value in model.backbone.parameters()):
        heads = FederatedModel(nn.Identity(), model.heads, model.dropout.p)
        return None if _gathering(model) else FrozenPart(model, None, heads)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.rand(2, 3, size, size, generator=generator).to(device)
    ahead = _stages_ahead(model, x_BCHW)
    if not ahead:
        return None
    part = FrozenPart(model, model.get_submodule(ahead[-1]), _without(model, ahead))
    return part if _is_whole(part, model, x_BCHW) else None


def _stages_ahead(model: FederatedModel, x_BCHW: Tensor) -> list[str]:
    """Return the names of the largest modules that end before the first trained one begins."""
    names = {module: name for name, module in model.backbone.named_modules(prefix="backbone")}
    ended: list[str] = []
    trained: list[nn.Module] = []
    gathering = _gathering(model)

    def begins(module: nn.Module, _: tuple[Any, ...]) -> None:
        own = module.parameters(recurse=False)
        if module in gathering or any(value.requires_grad for value in own):
            trained.append(module)

    def ends(module: nn.Module, _: tuple[Any, ...], __: Any) -> None:
        if not trained:
            ended.append(names[module])

    handles = [module.register_forward_pre_hook(begins) for module in names]
    handles += [module.register_forward_hook(ends) for module in names]
    mode = model.training
    model.eval()  # or this pass would count for statistics
    try:
        with torch.no_grad():
            model.features(x_BCHW)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    found = set(ended)
    return [name for name in dict.fromkeys(ended) if name.rpartition(".")[0] not in found]


def _gathering(model: FederatedModel) -> set[nn.Module]:
    """Return the batch norms that gather statistics while the network trains."""
    resting = {module for at_rest in model.resting for module in at_rest.modules()}
    living = (module for module in model.backbone.modules() if isinstance(module, _BatchNorm))
    return {module for module in living if module not in resting}


def _without(model: FederatedModel, stages: list[str]) -> FederatedModel:
    """Copy the network's modules, but not what they hold, and have stages hand on what comes."""
    held = [*model.parameters(), *model.buffers()]
    behind = copy.deepcopy(model, {id(value): value for value in held})
    for name in stages:
        behind.set_submodule(name, nn.Identity())
    return behind


def _is_whole(part: FrozenPart, model: FederatedModel, x_BCHW: Tensor) -> bool:
    """Try whether the frozen part and the network behind it give what the whole network gives."""
    task, mode = next(iter(model.heads)), model.training
    model.eval()
    part.behind.eval()
    try:
        with torch.no_grad():
            return torch.equal(part.behind(part(x_BCHW), task), model(x_BCHW, task))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # what a stage got was not what the one before it gave
    finally:
        model.train(mode)


class _ReachedError(Exception):
    """A stage has given its output; the rest of the network need not run."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _output_of(stage: nn.Module, network: nn.Module, x_BCHW: Tensor) -> Tensor:
    def stop(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        raise _ReachedError(output)

    handle = stage.register_forward_hook(stop)
    try:
        network(x_BCHW)
    except _ReachedError as reached:
        return reached.output
    finally:
        handle.remove()
    raise RuntimeError("the network does not run its frozen stages")
