"""The table ``[federation]`` of a study: how the sites' changes become one model."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from common.section import Positive, Section

STRATEGY_OPTIONS: Mapping[str, Mapping[str, float]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": 0.01},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadam": {"eta": 1e-3, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedyogi": {"eta": 1e-3, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedadagrad": {"eta": 1e-3, "tau": 1e-3},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 0.0},
}
"""The strategies that a study may name, each with its settings and their defaults."""

OPTION_RANGES: Mapping[str, tuple[float, float]] = {
    "proximal_mu": (0, 1e6),
    "server_learning_rate": (1e-9, 1e3),
    "server_momentum": (0, 1),
    "eta": (1e-9, 1e3),
    "beta_1": (0, 1),
    "beta_2": (0, 1),
    "tau": (1e-12, 1e3),
    "beta": (0, 0.5),
    "num_malicious_nodes": (0, 1000),
}
"""Least value of each setting, and the value that it must stay below."""

MEAN_STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that step along the mean change: all that they make of a noisy mean is as private."""

LEAST_SITES: Mapping[str, int] = {"fedmedian": 3, "fedtrimmedavg": 3, "krum": 3}
"""Strategies that mean nothing with fewer sites."""


class EarlyStopping(Section):
    """When the rounds end before their number."""

    patience: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Rounds without a better validation score after which the study ends."""
    least_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """By how much a score must be better to count."""


class Federation(Section):
    """How the sites' changes become one model."""

    strategy: str = "fedavg"
    options: dict[str, float] = Field(default_factory=dict)
    """Settings of the strategy, by the names in ``STRATEGY_OPTIONS``."""
    weighting: Literal["patients", "images", "equal"] = "patients"
    """What a site's change weighs: its training patients, its training images, or the same."""
    personal: Literal["none", "head"] = "none"
    """``head``: each site keeps heads of its own (FedPer, Arivazhagan et al. 2019)."""
    update_dtype: Literal["float32", "float16"] = "float32"
    """How a site's change travels; ``float16`` halves what a site sends, at 11 bits a number."""
    update_norm: Positive | None = None
    """Bound on the L2 norm of a site's change in a round; a longer one is shortened to it."""
    quorum: Annotated[int, Field(ge=1)] = 2
    """A round with fewer usable replies is not combined."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sites that are asked to train in each round."""
    deadline_s: Positive = 3600.0
    """Seconds after which a round closes without those who have not answered."""
    score: Literal["auroc", "loss"] = "auroc"
    """The validation figure, pooled over the sites and averaged over the tasks, by which rounds are
    compared."""
    keep: Literal["last", "best"] = "last"
    """Which round's model the study ends with."""
    average_last: Annotated[int, Field(ge=1, le=1000)] = 1
    """Rounds at the end whose models are averaged into the one that the study ends with."""
    votes: Literal["equal", "validation"] = "equal"
    """What the members of an ensemble weigh in the end: the same, or by the validation score of
    each."""
    early_stopping: EarlyStopping | None = None
    """Left out, all rounds are made."""

    def option(self, name: str) -> float:
        """Return a setting of the strategy: the study's, else the strategy's default."""
        return self.options.get(name, STRATEGY_OPTIONS[self.strategy][name])


LATER_KEYS = (
    "update_norm", "personal", "score", "keep", "average_last", "votes", "early_stopping",
)  # fmt: skip
"""Keys that the first studies did not have; a study tells those that are not as by default."""


def agreed(federation: Federation) -> dict[str, Any]:
    """Return ``[federation]`` as it counts for a study's digest, all options written out."""
    values, defaults = federation.model_dump(mode="json"), Federation().model_dump(mode="json")
    options = {**STRATEGY_OPTIONS[federation.strategy], **federation.options}
    kept = {k: v for k, v in values.items() if k not in LATER_KEYS or v != defaults[k]}
    return kept | {"options": options}
