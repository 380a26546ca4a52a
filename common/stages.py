"""The stages of a backbone, and which of them are frozen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.models import group_modules, group_parameters
from timm.utils.model import freeze
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import StudyError
from common.phases import check_phases, has_phases, last_phase_begins, width
from common.schedule_faults import last_patience
from common.study import Study


class Stage(NamedTuple):
    """One of the parts into which timm divides a backbone, by names within the backbone."""

    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    """Those that hold parameters."""


def stages_of(backbone: Any, study: Study) -> tuple[Stage, ...]:
    """Return the stages into which timm divides the network; none where nobody asks for them."""
    if study.training.train == "all" and not has_phases(study.training):
        return ()
    matcher = backbone.group_matcher(coarse=True)
    modules, parameters = group_modules(backbone, matcher), group_parameters(backbone, matcher)
    stages = tuple(
        Stage(tuple(parameters[number]), tuple(modules.get(number, ())))
        for number in sorted(parameters)
    )
    check_phases(study.training, study.backbone.name, len(stages))
    check_stopping(study, len(stages))
    return stages


def freeze_stages(backbone: Any, study: Study, stages: tuple[Stage, ...]) -> None:
    """Freeze all stages but the last ``k``."""
    if study.training.train == "all":
        return
    trained = width(study.training.train, len(stages))
    if trained >= len(stages):
        raise StudyError(
            f"{study.backbone.name} has {len(stages)} stages; training the last {trained} of them "
            "would freeze nothing.",
            remedy=f"Use training.train = 'all', or last:k with k from 1 to {len(stages) - 1}.",
        )
    frozen = stages[: len(stages) - trained]
    # Parameters first: freezing a module turns those of its batch norm into buffers.
    for stage in frozen:
        for name in stage.parameters:
            backbone.get_parameter(name).requires_grad_(requires_grad=False)
    freeze(backbone, [name for stage in frozen for name in stage.modules])


def check_frozen(backbone: nn.Module, study: Study) -> None:
    """Refuse a network with batch normalisation that timm left alive: it freezes 2D alone."""
    living = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    if study.backbone.normalisation != "frozen":
        partly = study.training.train != "all"
        living = [m for m in living if partly and not any(p.requires_grad for p in m.parameters())]
    if living:
        kinds = ", ".join(sorted({type(module).__name__ for module in living}))
        raise StudyError(
            f"{study.backbone.name} has {len(living)} layers of {kinds} that cannot be frozen.",
            remedy="Use training.train = 'all' and normalisation = 'average' or 'local', or "
            "another backbone.",
        )


def check_stopping(study: Study, stages: int) -> None:
    """Refuse an early end that cannot come, since all stages train too late for it."""
    stopping, begins = study.federation.early_stopping, last_phase_begins(study.training, stages)
    if stopping is not None and stopping.patience > last_patience(study.rounds, begins):
        raise StudyError(
            f"All of {study.backbone.name} that is to train does so from round {begins} on: "
            f"{study.rounds} rounds end before {stopping.patience} of those are known to bring "
            "nothing.",
            remedy="Leave federation.early_stopping out, make its patience or "
            "training.unfreeze_every smaller, or have more rounds.",
        )


def check_local(backbone: nn.Module, study: Study) -> None:
    """Refuse to keep batch normalisation at the sites where all of it is frozen."""
    wanted = study.backbone.normalisation == "local"
    if wanted and not any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise StudyError(
            f"{study.backbone.name} has no batch normalisation that a site could keep to itself in "
            f"what training.train = {study.training.train!r} trains.",
            remedy="Let more of the backbone train, or leave backbone.normalisation out.",
        )


def check_adapted(backbone: nn.Module, study: Study) -> None:
    """Refuse to re-estimate the statistics of batch normalisation where none lives."""
    if study.evaluation.adapted and not any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise StudyError(
            f"{study.backbone.name} has no batch normalisation whose statistics could be those of "
            "the images at hand.",
            remedy="Leave evaluation.normalisation out, or take a backbone with batch "
            "normalisation that is not frozen.",
        )


def joined_stages(of_members: Sequence[tuple[Stage, ...]]) -> tuple[Stage, ...]:
    """Return stages of which each has one of each member, counted from the members' last ones."""
    joined = []
    for back in range(max(map(len, of_members)), 0, -1):
        parameters: list[str] = []
        modules: list[str] = []
        for number, stages in enumerate(of_members):
            if back <= len(stages):
                stage, within = stages[-back], f"members.{number}."
                parameters += [within + name for name in stage.parameters]
                modules += [within + name for name in stage.modules]
        joined.append(Stage(tuple(parameters), tuple(modules)))
    return tuple(joined)
