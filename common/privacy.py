"""The tables ``[privacy]`` and ``[central_privacy]`` of a study."""

from typing import Annotated, Literal

from pydantic import Field

from common.section import Positive, Section


class Privacy(Section):
    """Differential privacy of the training patients, at each site by itself.

    Two data sets are neighbours when one has all images of one patient more. DP-SGD (Abadi et al.
    2016): each step draws every patient with the same probability, bounds the gradient of each,
    and adds Gaussian noise to the sum.
    """

    epsilon: Annotated[float, Field(gt=0, le=100)]
    """What the whole study may cost a patient; each site calibrates its noise to it."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Below one in the number of patients; by default 1 / patients^1.1 at each site."""
    clip_norm: Positive = 1.0
    """Bound on the L2 norm of one patient's gradient."""
    images_per_patient: Annotated[int, Field(ge=1, le=64)] = 1
    """Images that a drawn patient gives to a step, at most; their mean gradient is bounded."""
    spare_rounds: Annotated[int, Field(ge=0, le=1000)] = 0
    """Trainings beyond ``rounds`` that epsilon has room for, should rounds be made again."""


class CentralPrivacy(Section):
    """Noise that the coordinator adds, so that what it publishes tells of no single site.

    The unit is a site's change of the network in a round: bounded, and hidden in Gaussian noise on
    the sum of the changes. Sites have to trust the coordinator for it.
    """

    noise_multiplier: Annotated[float, Field(ge=1e-9, le=1000)]
    """Standard deviation of a round's noise, over what one site can change."""
    clip_norm: Positive = 1.0
    """Bound on the L2 norm of a site's change; the first one, if it adapts."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """Whether the bound follows a quantile of the changes' norms (Andrew et al. 2021)."""
    target_quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the sites whose change is to lie within the adaptive bound."""
    clip_learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.2
    """How fast an adaptive bound moves: by exp of so much times what the share is off."""
    count_noise: Positive | None = None
    """Standard deviation of the noise on the number of sites within an adaptive bound; above half
    the noise multiplier, and equal to it by default."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """At which epsilon is stated."""
