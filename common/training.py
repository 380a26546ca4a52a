"""The table ``[training]`` of a study: what a site does with its own images in one round."""

from typing import Annotated, Any, Literal

from pydantic import Field

from common.section import Positive, Section, Share

Trained = Annotated[str, Field(pattern="^(all|head|last:[1-9][0-9]?)$")]
"""``all`` layers, the ``head`` alone, or the ``last:k`` stages with the head."""
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


MOST_SITES = 256
"""Sites that a discriminator can be asked to tell apart."""


class Phase(Section):
    """Rounds in which fewer layers train than later."""

    rounds: Annotated[int, Field(ge=1, le=100_000)]
    train: Trained


class Schedule(Section):
    """How learning rates change over the rounds; they do not begin anew with a round."""

    kind: Literal["constant", "cosine", "restarts", "step", "plateau"] = "constant"
    """``restarts`` is SGDR (Loshchilov and Hutter 2017)."""
    warmup_rounds: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    """Rounds in which rates rise linearly to what the rest of the schedule says."""
    period: Annotated[float, Field(ge=0.01, le=100_000)] | None = None
    """Rounds of the first cycle of ``restarts``, or between two steps of ``step``."""
    growth: Annotated[float, Field(ge=1, le=100)] = 1.0
    """How many times longer each cycle of ``restarts`` is than the one before."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What rates are multiplied with at a step, or where the validation score stands still."""
    patience: Annotated[int, Field(ge=1, le=100_000)] = 3
    """Rounds without a better validation score before ``plateau`` lowers the rates."""
    floor: Share = 0.0
    """Least share of the rates that is left."""


class Training(Section):
    """What a site does with its own images in one round."""

    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adamw"
    momentum: Share = 0.9
    """Of ``sgd``."""
    head_lr: Positive = 1e-3
    backbone_lr: Positive = 1e-4
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What the rate of each layer of the backbone is multiplied with for every layer above it."""
    layer_decay_floor: Share = 0.01
    """Least share of ``backbone_lr`` that layer-wise decay leaves."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    schedule: Schedule = Schedule()
    loss: Literal["cross_entropy", "focal", "hybrid"] = "cross_entropy"
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Focusing exponent of the focal loss (Lin et al. 2017); 0 is cross-entropy."""
    hybrid_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the focal loss in ``hybrid``; the rest is cross-entropy."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced``: an image weighs in inverse proportion to the images of its class at the site,
    one on average."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """``balanced``: images are drawn with replacement, each class of a task equally often."""
    source_weighting: Literal["none", "similarity"] = "none"
    """``similarity``: training images that a site names a source of weigh by how like its own they
    are, one on average."""
    label_smoothing: Share = 0.0
    """Share of each label that is spread over all classes (Szegedy et al. 2016)."""
    anchor_weight: Weight = 0.0
    """Weight of half the squared distance to the initial backbone (L2-SP, Li et al. 2018)."""
    distillation_weight: Weight = 0.0
    """Weight of the mean squared difference to the initial backbone's features."""
    task_weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Weight of the loss itself beside those two."""
    dropout: Share = 0.0
    """Share of the features that is dropped before the heads."""
    train: Trained = "all"
    phases: Annotated[list[Phase], Field(max_length=100)] = Field(default_factory=list)
    """What trains first; afterwards ``train`` says it."""
    unfreeze_every: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Begin with the heads, and have one more stage train after so many rounds each (gradual
    unfreezing, Howard and Ruder 2018), until all that ``train`` says do."""
    clip_norm: Positive | None = None
    """Bound on the gradient's L2 norm at each step."""
    views: Annotated[int, Field(ge=0, le=64)] = 0
    """Variations of each image that are made once, for what does not train to look at; 0 varies an
    image anew each time."""
    adversarial_weight: Weight = 0.0
    """Weight of what hides from a discriminator at which site an image was made."""
    adversarial_sites: Annotated[int, Field(ge=2, le=MOST_SITES)] | None = None
    """Most sites that the discriminator tells apart."""

    @property
    def aligns(self) -> bool:
        """Say whether the objective makes the sites' features alike."""
        return self.adversarial_weight > 0

    @property
    def stays_near(self) -> bool:
        """Say whether the objective holds the backbone near the initial one."""
        return self.anchor_weight > 0 or self.distillation_weight > 0


FIRST_KEYS = (
    "local_epochs", "batch_size", "optimizer", "head_lr", "backbone_lr", "weight_decay", "loss",
    "focal_gamma", "train", "clip_norm",
)  # fmt: skip
"""Keys that the first studies had; of the others a study tells those that are not as by default."""


def agreed(training: Training) -> dict[str, Any]:
    """Return ``[training]`` as it counts for a study's digest."""
    values, defaults = training.model_dump(mode="json"), Training().model_dump(mode="json")
    return {k: v for k, v in values.items() if k in FIRST_KEYS or v != defaults[k]}
