"""One network: a backbone that all tasks share, and one linear head per task.

The network of an ensemble has several backbones, and a head of each for every task.

Shapes: B batch, C channels, H height, W width, D features, K classes of a task, M members of an
ensemble.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Self, cast

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import common.plain_networks
import common.torchvision_models  # noqa: F401 - as above
from common.backbone_faults import (
    division_faults,
    normalisation_faults,
    refuse,
    stage_faults,
)
from common.discriminator import make_discriminator
from common.ensemble import Colours, MemberHeads, Members
from common.errors import StudyError, UnknownBackboneError
from common.seeds import stream
from common.stages import (
    Stage,
    freeze_stages,
    joined_stages,
    stages_of,
)
from common.study import Study

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FederatedModel(nn.Module):
    """The network of a study.

    ``mean`` and ``std`` (each three numbers) are what the backbone's weights expect of an image
    whose channels lie in [0, 1].

    Args:
        backbone: From images to features.
        heads: A layer for each task, from features to logits.
        dropout: Share of the features that is dropped before the heads, in training mode.
    """

    def __init__(self, backbone: nn.Module, heads: nn.ModuleDict, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.heads = heads
        self.discriminator: nn.Module | None = None
        """From features to logits of the sites, of a study that makes their features alike."""
        settings = getattr(backbone, "pretrained_cfg", {})
        self.mean: tuple[float, ...] = settings.get("mean", IMAGENET_MEAN)
        self.std: tuple[float, ...] = settings.get("std", IMAGENET_STD)
        self.stages: tuple[Stage, ...] = ()
        """The backbone's, from the first to the last, where the study freezes some of them."""
        self.resting: tuple[nn.Module, ...] = ()
        """What stays in evaluation mode while the rest of the network trains."""

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's own signature
        """Set the mode of every module; those of ``resting`` stay in evaluation mode."""
        super().train(mode)
        for module in self.resting:
            module.eval()
        return self

    @property
    def backbones(self) -> tuple[nn.Module, ...]:
        """The backbone of each member of an ensemble; else the one that there is."""
        backbone = self.backbone
        return tuple(backbone.members) if isinstance(backbone, Members) else (backbone,)

    @property
    def members(self) -> int:
        """How many networks it is made of: 1, unless it is an ensemble."""
        return len(self._widths)

    @property
    def _widths(self) -> list[int]:
        # The heads tell it even where the backbone is left aside, its features being kept.
        head = next(iter(self.heads.values()))
        return head.widths if isinstance(head, MemberHeads) else [-1]

    def by_member(self, features_BD: Tensor) -> tuple[Tensor, ...]:
        """Return the features of each member of an ensemble; else all of them as one."""
        return features_BD.split(self._widths, dim=1) if self.members > 1 else (features_BD,)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the pooled features of normalised images, shape (B, D)."""
        return cast("Tensor", self.backbone(x_BCHW))

    def classify(self, features_BD: Tensor, task: str) -> Tensor:
        """Return the logits of one task's classes, shape (B, K), of pooled features.

        Those of an ensemble are of its members' mean probability.
        """
        return cast("Tensor", self.heads[task](self.dropout(features_BD)))

    def classify_apart(self, features_BD: Tensor, task: str) -> Tensor:
        """Return the logits that a loss is of: each member of an ensemble is to have its own.

        Returns:
            Of one member after the other, shape (M * B, K); else (B, K), as of ``classify``.
        """
        head, kept_BD = self.heads[task], self.dropout(features_BD)
        return (
            head.apart(kept_BD) if isinstance(head, MemberHeads) else cast("Tensor", head(kept_BD))
        )

    def forward(self, x_BCHW: Tensor, task: str) -> Tensor:
        """Return the logits of one task's classes, shape (B, K)."""
        return self.classify(self.features(x_BCHW), task)


def build_model(study: Study) -> FederatedModel:
    """Build the network of ``study`` with random weights that depend on its seed alone.

    What the study freezes is frozen, batch normalisation included: a frozen layer changes
    neither its weights nor its statistics, in training mode too. Each member of an ensemble is
    built as its study by itself would have it.

    Raises:
        UnknownBackboneError: timm knows no such model.
        StudyError: The backbone cannot be what the study asks of it.
    """
    if study.ensemble:
        return _joined([build_model(member) for member in study.members], study)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(study.seed, "backbone"))
        backbone = _create_backbone(study)
        faults = list(division_faults(backbone, study))
        heads = nn.ModuleDict()
        for name, task in study.tasks.items():
            torch.manual_seed(stream(study.seed, "head", name))
            heads[name] = _create_head(backbone.head_hidden_size, len(task.classes))
        discriminator = None
        if study.training.aligns and study.training.adversarial_sites is not None:
            torch.manual_seed(stream(study.seed, "discriminator"))
            discriminator = make_discriminator(
                backbone.head_hidden_size, study.training.adversarial_sites
            )
    stages = stages_of(backbone, study)
    freeze_stages(backbone, study, stages)
    if study.backbone.normalisation == "frozen":
        backbone = freeze_batch_norm_2d(backbone)
    faults += [*stage_faults(study, len(stages)), *normalisation_faults(backbone, study)]
    refuse(study, faults)
    model = FederatedModel(backbone, heads, study.training.dropout)
    model.mean = study.backbone.mean or model.mean
    model.std = study.backbone.std or model.std
    model.stages = stages
    model.discriminator = discriminator
    return model


def build_without_discriminator(study: Study) -> FederatedModel:
    """Build the network of ``study`` as it is asked about images; else as ``build_model``."""
    model = build_model(study)
    model.discriminator = None
    return model


def _joined(members: Sequence[FederatedModel], study: Study) -> FederatedModel:
    colours = [Colours(member.mean, member.std) for member in members]
    backbone = Members([member.backbone for member in members], colours)
    weighted = study.federation.votes == "validation"
    heads = {
        task: MemberHeads(
            [cast("nn.Linear", member.heads[task]) for member in members], weighted=weighted
        )
        for task in study.tasks
    }
    model = FederatedModel(backbone, nn.ModuleDict(heads), study.training.dropout)
    model.mean, model.std = colours[0]
    model.stages = joined_stages([member.stages for member in members])
    return model


def normalisation_of(study: Study, model: FederatedModel) -> str:
    """Say in one word what happens to batch normalisation; ``absent`` where there is none."""
    if study.backbone.normalisation == "frozen":
        return "frozen"
    living = any(isinstance(module, _BatchNorm) for module in model.modules())
    if living:
        return study.backbone.normalisation
    return "frozen" if study.training.train == "head" else "absent"


def _create_backbone(study: Study) -> Any:
    name, size = study.backbone.name, study.backbone.image_size
    try:
        known, settings = timm.is_model(name), timm.get_pretrained_cfg(name)
    except RuntimeError:  # such a model, but no such tag behind the dot
        known, settings = False, None
    if not known:
        names = timm.list_models() + timm.list_pretrained()
        close = difflib.get_close_matches(name, names, n=3)
        raise UnknownBackboneError(
            f"timm {timm.__version__} knows no backbone {name!r}.",
            remedy=f"Did you mean {', '.join(close)}?" if close else "See timm.list_models().",
        )
    extra: dict[str, Any] = {"img_size": size} if settings and settings.fixed_input_size else {}
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **extra)
        _probe(backbone, size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise StudyError(
            f"The backbone {name} cannot take images of {size} x {size} pixels: {error}",
            remedy="Change backbone.image_size; most networks want a multiple of 32.",
        ) from error
    return backbone


def _probe(backbone: nn.Module, size: int) -> None:
    """Push one empty image through, so that a wrong size shows now and not in round 1."""
    backbone.eval()
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, size, size))


def _create_head(features: int, classes: int) -> nn.Linear:
    head = nn.Linear(features, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
