"""Where the network begins: timm's pretrained weights, a safetensors file, or a random start.

Only the coordinator does this; a hospital gets the arrays with its first order and needs no
model hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import MissingFolderError, WeightsError
from common.models import FederatedModel, build_model
from common.study import Study


@dataclass(frozen=True)
class Start:
    """A network with its initial weights, and what was left of their source."""

    model: FederatedModel
    source: str
    """``pretrained``, ``none`` or the file's name; those of an ensemble's members, each once."""
    left_out: tuple[str, ...]
    """Arrays of the source that the network has no place for, such as another head."""


def initial_model(study: Study) -> Start:
    """Build the network of ``study`` and give its backbones the weights that the study names.

    Raises:
        WeightsError: The hub cannot be reached, or the arrays do not fit; every array that is
            missing or misshapen is listed.
        MissingFolderError: The weights file does not exist.
        UnknownBackboneError: timm knows no such backbone.
    """
    model = build_model(study)
    study.check_weights_file()
    begun = [
        _begin(backbone, member)
        for backbone, member in zip(model.backbones, study.members, strict=True)
    ]
    sources = dict.fromkeys(one.source for one in begun)
    places = [f"members.{number}." if study.ensemble else "" for number in range(len(begun))]
    left_out = [
        place + name for place, one in zip(places, begun, strict=True) for name in one.left_out
    ]
    return Start(model, ", ".join(sources), tuple(left_out))


class _Begun(NamedTuple):
    source: str
    left_out: tuple[str, ...]


def _begin(backbone: nn.Module, study: Study) -> _Begun:
    """Give one backbone its initial weights, and say whence they are and what was left over."""
    file = study.backbone.weights_file
    if study.backbone.weights == "none":
        return _Begun("none", ())
    if file is None:
        return _Begun("pretrained", _load(backbone, _from_hub(study), "timm's weights"))
    return _Begun(file.name, _load(backbone, _from_file(file), str(file)))


def _from_hub(study: Study) -> dict[str, Tensor]:
    name, size = study.backbone.name, study.backbone.image_size
    settings = timm.get_pretrained_cfg(name)
    extra: dict[str, Any] = {"img_size": size} if settings and settings.fixed_input_size else {}
    try:
        source = timm.create_model(name, pretrained=True, num_classes=0, **extra)
    except WeightsError:  # of a network that no hub has
        raise
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise WeightsError(
            f"timm has no pretrained weights of {name} here, or cannot reach its hub: "
            f"{type(error).__name__}: {error}",
            remedy="On a machine with a network save them with safetensors.torch.save_file("
            f"timm.create_model({name!r}, pretrained=True).state_dict(), 'weights.safetensors'), "
            "then set backbone.weights to that file's path.",
        ) from error
    return dict(source.state_dict())


def _from_file(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise MissingFolderError(
            f"There is no weights file {file}.",
            remedy="Correct backbone.weights; a relative path counts from the study file.",
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is no safetensors file: {error}",
            remedy="Give a file written by safetensors; another form is never read.",
        ) from error


def _load(backbone: nn.Module, source: Mapping[str, Tensor], origin: str) -> tuple[str, ...]:
    """Copy the arrays of ``source`` into the backbone; return the names left over."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in source) else ""
    found = {name.removeprefix(prefix): value for name, value in source.items()}
    target = backbone.state_dict()
    faults = [
        _fault(name, value, found.get(name))
        for name, value in target.items()
        if not _fits(value, found.get(name))
    ]
    if faults:
        raise WeightsError(
            f"{origin} does not fit the backbone; {len(faults)} of {len(target)} arrays:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="Give weights of this very backbone; only its head may differ.",
        )
    with torch.no_grad():
        for name, value in target.items():
            if name in found:
                value.copy_(found[name])
    return tuple(sorted(n for n in set(found) - set(target) if not _is_counter(found[n])))


def _fits(target: Tensor, value: Tensor | None) -> bool:
    """A step counter of batch norm may be missing; nothing else may."""
    return _is_counter(target) if value is None else target.shape == value.shape


def _is_counter(value: Tensor) -> bool:
    """Tell whether an array is batch norm's step counter, which a frozen layer does not have."""
    return not value.is_floating_point() and value.ndim == 0


def _fault(name: str, target: Tensor, value: Tensor | None) -> str:
    if value is None:
        return f"{name} is missing"
    return f"{name} has the shape {tuple(value.shape)} instead of {tuple(target.shape)}"
