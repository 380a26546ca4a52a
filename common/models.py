"""One network: a backbone that all tasks share, and one linear head per task.

Shapes: B batch, C channels, H height, W width, D features, K classes of a task.
"""

import difflib
from typing import Any, cast

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import group_modules, group_parameters
from timm.utils.model import freeze
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import common.torchvision_models  # noqa: F401 - enters its networks in timm's list
from common.errors import StudyError, UnknownBackboneError
from common.seeds import stream
from common.study import Study

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FederatedModel(nn.Module):
    """The network of a study.

    ``mean`` and ``std`` (each three numbers) are what the backbone's weights expect of an image
    whose channels lie in [0, 1].
    """

    def __init__(self, backbone: nn.Module, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        settings = getattr(backbone, "pretrained_cfg", {})
        self.mean: tuple[float, ...] = settings.get("mean", IMAGENET_MEAN)
        self.std: tuple[float, ...] = settings.get("std", IMAGENET_STD)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the pooled features of normalised images, shape (B, D)."""
        return cast("Tensor", self.backbone(x_BCHW))

    def forward(self, x_BCHW: Tensor, task: str) -> Tensor:
        """Return the logits of one task's classes, shape (B, K)."""
        return cast("Tensor", self.heads[task](self.features(x_BCHW)))


def build_model(study: Study) -> FederatedModel:
    """Build the network of ``study`` with random weights that depend on its seed alone.

    What the study freezes is frozen, batch normalisation included: a frozen layer changes
    neither its weights nor its statistics, in training mode too.

    Raises:
        UnknownBackboneError: timm knows no such model.
        StudyError: The backbone cannot be what the study asks of it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(study.seed, "backbone"))
        backbone = _create_backbone(study)
        heads = nn.ModuleDict()
        for name, task in study.tasks.items():
            torch.manual_seed(stream(study.seed, "head", name))
            heads[name] = _create_head(backbone.head_hidden_size, len(task.classes))
    _freeze(backbone, study)
    if study.backbone.normalisation == "frozen":
        backbone = freeze_batch_norm_2d(backbone)
    _check_frozen(backbone, study)
    model = FederatedModel(backbone, heads)
    model.mean = study.backbone.mean or model.mean
    model.std = study.backbone.std or model.std
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


def _freeze(backbone: Any, study: Study) -> None:
    """Freeze all stages but the last ``k``, as timm itself divides the network into stages."""
    train = study.training.train
    if train == "all":
        return
    matcher = backbone.group_matcher(coarse=True)
    modules, parameters = group_modules(backbone, matcher), group_parameters(backbone, matcher)
    stages = len(parameters)
    trained = 0 if train == "head" else int(train.removeprefix("last:"))
    if trained >= stages:
        raise StudyError(
            f"{study.backbone.name} has {stages} stages; training the last {trained} of them "
            "would freeze nothing.",
            remedy=f"Use training.train = 'all', or last:k with k from 1 to {stages - 1}.",
        )
    frozen = sorted(parameters)[: stages - trained]
    # Parameters first: freezing a module turns those of its batch norm into buffers.
    for stage in frozen:
        for name in parameters[stage]:
            backbone.get_parameter(name).requires_grad_(requires_grad=False)
    freeze(backbone, [name for stage in frozen for name in modules.get(stage, [])])


def _check_frozen(backbone: nn.Module, study: Study) -> None:
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
