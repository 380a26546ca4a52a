"""Ways to train that a backbone cannot be trained in; the network itself has to tell."""

from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import StudyError
from common.study import Study

LEAST_LAYER_GROUPS = 3
"""Fewest layer groups whose rates can fall from each to the one before: two are two rates."""


def check_backbone(backbone: Any, study: Study) -> None:
    """Refuse what the study asks of a backbone that has no place for it.

    Args:
        backbone: The network as it was created, nothing of it frozen yet.
        study: The study.

    Raises:
        StudyError: Lists every such way, with what to do instead.
    """
    faults = [*_division_faults(backbone, study), *_normalisation_faults(backbone, study)]
    if faults:
        raise StudyError(
            f"{study.backbone.name} cannot be trained as the study asks:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="Correct each, or take another backbone; docs/methods.md tells what each has.",
        )


def _division_faults(backbone: Any, study: Study) -> Iterator[str]:
    training = study.training
    asked = {
        "training.train": training.train != "all",
        "training.phases": bool(training.phases),
        "training.unfreeze_every": training.unfreeze_every is not None,
        "training.layer_decay": training.layer_decay < 1,
    }
    if not hasattr(backbone, "group_matcher"):
        for key in (key for key, is_asked in asked.items() if is_asked):
            yield f"{key}: timm does not divide this network into stages; leave it out."
        return
    groups = len(group_parameters(backbone, backbone.group_matcher(coarse=False)))
    if asked["training.layer_decay"] and groups < LEAST_LAYER_GROUPS:
        yield (
            f"training.layer_decay: this network has {groups} layer groups, too few for rates "
            "that fall from layer to layer; leave it out, and choose head_lr and backbone_lr."
        )


def _normalisation_faults(backbone: Any, study: Study) -> Iterator[str]:
    living = any(isinstance(module, _BatchNorm) for module in backbone.modules())
    if study.backbone.normalisation == "local" and not living:
        yield (
            "backbone.normalisation: this network has no batch normalisation that a site could "
            "keep to itself; leave it out."
        )
