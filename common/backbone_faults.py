"""What a study asks of a backbone that has no place for it; the network itself has to tell."""

from collections.abc import Iterator, Sequence
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import StudyError
from common.phases import last_patience, last_phase_begins, width
from common.study import Study

LEAST_LAYER_GROUPS = 3
"""Fewest layer groups whose rates can fall from each to the one before: two are two rates."""


def refuse(study: Study, faults: Sequence[str]) -> None:
    """Raise one error for all that was found.

    Raises:
        StudyError: Lists every fault, with what to do instead.
    """
    if faults:
        raise StudyError(
            f"{study.backbone.name} cannot be trained as the study asks:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="Correct each, or take another backbone; docs/methods.md tells what each has.",
        )


def division_faults(backbone: Any, study: Study) -> Iterator[str]:
    """Yield which keys need parts that timm does not divide this network into.

    Args:
        backbone: The network as it was created, nothing of it frozen yet.
        study: The study.
    """
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


def stage_faults(study: Study, stages: int) -> Iterator[str]:
    """Yield what would freeze nothing, or trains too late.

    Args:
        study: What trains when.
        stages: How many stages the backbone has; 0 where nobody asks for them.
    """
    if not stages:
        return
    training, most = study.training, f"last:k with k from 1 to {stages - 1}"
    wide = [
        p.train for p in training.phases if p.train != "all" and width(p.train, stages) >= stages
    ]
    for train in dict.fromkeys(wide):
        yield (
            f"training.phases: this network has {stages} stages, and a phase with train = "
            f"{train!r} would freeze nothing; use 'all' there, or {most}."
        )
    if training.train != "all" and width(training.train, stages) >= stages:
        yield (
            f"training.train: this network has {stages} stages, and {training.train!r} would "
            f"freeze nothing; use 'all', or {most}."
        )
    stopping, begins = study.federation.early_stopping, last_phase_begins(training, stages)
    if stopping is not None and stopping.patience > last_patience(study.rounds, begins):
        yield (
            f"federation.early_stopping: all of this network that is to train does so from round "
            f"{begins} on, and {study.rounds} rounds end before {stopping.patience} of those are "
            "known to bring nothing; leave it out, make its patience or training.unfreeze_every "
            "smaller, or have more rounds."
        )


def normalisation_faults(backbone: nn.Module, study: Study) -> Iterator[str]:
    """Yield what cannot be done with the batch normalisation that the network has.

    Args:
        backbone: The network, frozen as the study says.
        study: What becomes of batch normalisation.
    """
    living = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    if study.backbone.normalisation == "local" and not living:
        yield (
            "backbone.normalisation: what trains of this network has no batch normalisation that "
            "a site could keep to itself; let more of the backbone train, or leave it out."
        )
    if study.evaluation.adapted and not living:
        yield (
            "evaluation.normalisation: this network has no living batch normalisation whose "
            "statistics could be those of the images at hand; leave it out, or freeze none."
        )
    if study.backbone.normalisation != "frozen":
        partly = study.training.train != "all"
        living = [m for m in living if partly and not any(p.requires_grad for p in m.parameters())]
    if living:  # timm freezes that of images alone
        kinds = ", ".join(sorted({type(module).__name__ for module in living}))
        yield (
            f"backbone.normalisation: {len(living)} layers of {kinds} cannot be frozen; use "
            "training.train = 'all' with normalisation = 'average' or 'local'."
        )
