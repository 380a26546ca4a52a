"""The stages of a backbone, and which of them are frozen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.models import group_modules, group_parameters
from timm.utils.model import freeze

from common.phases import has_phases, width
from common.study import Study


class Stage(NamedTuple):
    """One of the parts into which timm divides a backbone, by names within the backbone."""

    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    """Those that hold parameters."""


def stages_of(backbone: Any, study: Study) -> tuple[Stage, ...]:
    """Return the stages into which timm divides the network; none where nobody asks for them.

    Nor where timm divides it into none.
    """
    is_whole = study.training.train == "all" and not has_phases(study.training)
    if is_whole or not hasattr(backbone, "group_matcher"):
        return ()
    matcher = backbone.group_matcher(coarse=True)
    modules, parameters = group_modules(backbone, matcher), group_parameters(backbone, matcher)
    return tuple(
        Stage(tuple(parameters[number]), tuple(modules.get(number, ())))
        for number in sorted(parameters)
    )


def freeze_stages(backbone: Any, study: Study, stages: tuple[Stage, ...]) -> None:
    """Freeze all stages but those that the study trains."""
    frozen = stages[: max(len(stages) - width(study.training.train, len(stages)), 0)]
    if not frozen:
        return  # timm takes no names for all of them
    # Parameters first: freezing a module turns those of its batch norm into buffers.
    for stage in frozen:
        for name in stage.parameters:
            backbone.get_parameter(name).requires_grad_(requires_grad=False)
    freeze(backbone, [name for stage in frozen for name in stage.modules])


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
