"""Which strategy combines the changes of a group of arrays.

FedAvg (McMahan et al. 2017) is folded in reply by reply, so that memory does not grow with the
number of sites. Every other strategy is Flower's own object, which needs all replies at once.
To add one: a line in ``STRATEGY_OPTIONS`` (``common/federation.py``) for its settings and one
in ``_FLOWER`` below. The contract test then covers it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from flwr.serverapp.strategy.fedopt import FedOpt

from common.arrays import Array as Values
from common.arrays import Arrays, pieces_of
from common.federation import Federation
from common.layout import STATISTICS
from server.exact_sum import ExactSum

_WEIGHT = "num-examples"
_MOMENTS = ("m_t", "v_t")
"""Where Flower's adaptive strategies (Reddi et al. 2021) keep their first and second moment."""


class Combiner(Protocol):
    """Makes one group's new arrays out of the old ones and the sites' changes."""

    def begin(self, server_round: int, current: Arrays, capacity: float) -> None:
        """Start a round.

        Args:
            server_round: 1, 2, ...
            current: The group's arrays as they were sent to the sites.
            capacity: Sum of the weights of all sites that were asked.
        """

    def accept(self, site: str, change: Arrays, weight: float) -> None:
        """Take one site's change (local minus global) with its weight, which is above zero."""

    def finish(self) -> dict[str, Values]:
        """Return the new arrays, float32; without a reply they are the old ones."""

    def state(self) -> dict[str, Values]:
        """Return what the combiner carries from round to round, to be kept on disk."""

    def restore(self, state: Arrays, names: Sequence[str]) -> None:
        """Go on from such a state.

        Args:
            state: What ``state`` returned.
            names: The group's arrays, in their order.
        """


class FoldingAverage:
    """FedAvg: the weighted mean of the changes, folded in as replies arrive."""

    def begin(self, server_round: int, current: Arrays, capacity: float) -> None:
        """Start a round with empty sums."""
        del server_round  # the mean does not depend on it
        self._current, self._capacity = current, capacity
        self._weights: list[float] = []
        self._sums = {name: ExactSum(value) for name, value in current.items()}

    def accept(self, site: str, change: Arrays, weight: float) -> None:
        """Fold one reply in; nothing of it is kept but its weight."""
        del site  # a sum does not ask who
        for name, total in self._sums.items():
            total.add(pieces_of(change, name), weight / self._capacity)
        self._weights.append(weight)

    def finish(self) -> dict[str, Values]:
        """Return old plus weighted mean change, giving each sum's memory back on the way."""
        if not self._weights:
            return {name: self._current[name] for name in self._sums}
        received = math.fsum(self._weights) / self._capacity  # the same in any order of arrival
        return {
            name: self._sums.pop(name).applied_to(self._current[name], received)
            for name in list(self._sums)
        }

    def state(self) -> dict[str, Values]:
        """Return nothing: each round's mean stands for itself."""
        return {}

    def restore(self, state: Arrays, names: Sequence[str]) -> None:
        """Do nothing."""


class FlowerStrategy:
    """Any strategy object of Flower, given every reply of the round in the order of the sites.

    The strategy is told that the current arrays are zero, is given the changes as the sites'
    weights, and so returns the step. Of whole weights the changes would be lost in rounding:
    Krum's distances, |x|^2 + |y|^2 - 2xy in float32, would say nothing about who is near whom.
    """

    def __init__(self, strategy: FedAvg) -> None:
        # No node is sampled and no grid used then. Set here, as the constructor would warn of it.
        strategy.fraction_train = 0.0
        self._strategy = strategy

    def begin(self, server_round: int, current: Arrays, capacity: float) -> None:
        """Tell the strategy where the round begins, as Flower's own loop does."""
        del capacity
        self._round, self._current = server_round, current
        self._replies: dict[str, Message] = {}
        zero = _record({name: np.zeros_like(current[name]) for name in current})
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = zero  # it would go on from its own last arrays
        no_grid = cast("Grid", None)
        self._strategy.configure_train(server_round, zero, ConfigRecord(), no_grid)

    def accept(self, site: str, change: Arrays, weight: float) -> None:
        """Keep the reply until the round is finished."""
        values = {name: np.asarray(change[name], np.float32) for name in self._current}
        arrays = _record(values)
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({_WEIGHT: weight})})
        self._replies[site] = Message(content, dst_node_id=1, message_type="train")

    def finish(self) -> dict[str, Values]:
        """Return old plus the strategy's step, cast back to float32."""
        replies = [self._replies[site] for site in sorted(self._replies)]
        self._replies = {}
        steps, _ = self._strategy.aggregate_train(self._round, replies)
        if steps is None:
            return dict(self._current)
        return {
            name: np.asarray(self._current[name] + steps[name].numpy(), np.float32)
            for name in self._current
        }

    def state(self) -> dict[str, Values]:
        """Return the strategy's moments, under ``MOMENT/ARRAY``."""
        found: dict[str, Values] = {}
        if isinstance(self._strategy, FedAvgM) and self._strategy.momentum_vector is not None:
            moments = zip(self._current, self._strategy.momentum_vector, strict=True)
            found = {f"momentum/{name}": value for name, value in moments}
        elif isinstance(self._strategy, FedOpt):
            for moment in _MOMENTS:
                values = getattr(self._strategy, moment) or {}
                found |= {f"{moment}/{name}": value for name, value in values.items()}
        return found

    def restore(self, state: Arrays, names: Sequence[str]) -> None:
        """Give the strategy its moments back; in the first round it has none."""
        if not state:
            return
        if isinstance(self._strategy, FedAvgM):
            self._strategy.momentum_vector = [state[f"momentum/{name}"] for name in names]
        elif isinstance(self._strategy, FedOpt):
            for moment in _MOMENTS:
                if any(key.startswith(f"{moment}/") for key in state):
                    values = {name: state[f"{moment}/{name}"] for name in names}
                    setattr(self._strategy, moment, values)


Make = Callable[[Federation], FedAvg]

_FLOWER: Mapping[str, Make] = {
    "fedavgm": lambda f: FedAvgM(
        server_learning_rate=f.option("server_learning_rate"),
        server_momentum=f.option("server_momentum"),
    ),
    "fedadam": lambda f: FedAdam(
        eta=f.option("eta"),
        beta_1=f.option("beta_1"),
        beta_2=f.option("beta_2"),
        tau=f.option("tau"),
    ),
    "fedyogi": lambda f: FedYogi(
        eta=f.option("eta"),
        beta_1=f.option("beta_1"),
        beta_2=f.option("beta_2"),
        tau=f.option("tau"),
    ),
    "fedadagrad": lambda f: FedAdagrad(eta=f.option("eta"), tau=f.option("tau")),
    "fedmedian": lambda _: FedMedian(),
    "fedtrimmedavg": lambda f: FedTrimmedAvg(beta=f.option("beta")),
    "krum": lambda f: Krum(num_malicious_nodes=int(f.option("num_malicious_nodes"))),
}

_FOLDED = ("fedavg", "fedprox")
"""FedProx (Li et al. 2020) differs from FedAvg at the sites alone: ``client/optim.py``."""

_OPTIMIZERS = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that step along the mean change as an optimizer does along a gradient."""


def make_combiner(group: str, federation: Federation) -> Combiner:
    """Return the combiner of one group; it lives as long as the study.

    Statistics of batch normalisation are averaged where the strategy is an optimizer.
    """
    name = federation.strategy
    if name in _FOLDED or (group == STATISTICS and name in _OPTIMIZERS):
        return FoldingAverage()
    return FlowerStrategy(_FLOWER[name](federation))


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
