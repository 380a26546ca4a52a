"""The groups' combiners in a round: begun, given the replies, and finished.

What a combiner does is its strategy's (``server/strategies.py``).
"""

from collections.abc import Mapping, Sequence

from common.arrays import Array, Arrays
from common.layout import Layout
from common.messages import Reply
from common.study import Study
from server.central_privacy import SiteNoise
from server.checkpoint import States
from server.history import RoundRecord
from server.noisy_mean import with_noise
from server.roster import Member
from server.strategies import Combiner, make_combiner


def make_combiners(
    study: Study, layout: Layout, states: States, noise: SiteNoise | None
) -> dict[str, Combiner]:
    """Return each group's combiner, as it was when the last round was done."""
    federation = study.federation
    combiners = {g: with_noise(make_combiner(g, federation), noise) for g in layout.groups}
    for group, combiner in combiners.items():
        combiner.restore(states.get(group, {}), layout.groups[group])
    return combiners


def begin(
    combiners: Mapping[str, Combiner],
    current: Mapping[str, Arrays],
    study: Study,
    number: int,
    asked: Sequence[Member],
) -> None:
    """Start the round in every group, each with the weights that its sites declared."""
    for group, combiner in combiners.items():
        weights = [
            member.declaration.weight(group, study.federation.weighting)
            for member in asked
            if not group.startswith("head:") or group.removeprefix("head:") in member.tasks
        ]
        combiner.begin(number, current[group], sum(weights))


def accept(
    combiners: Mapping[str, Combiner], reply: Reply, record: RoundRecord, noise: SiteNoise | None
) -> None:
    """Hand an admitted reply to the combiners, and note what it says of the training."""
    record.answered.append(reply.site)
    if record.trained:
        factor = 1.0 if noise is None else noise.factor_for(reply.groups)
        for group, change in reply.groups.items():
            combiners[group].accept(reply.site, change, factor * reply.weights[group])
    if reply.training is not None:
        training = reply.training
        if record.trained:
            record.training[reply.site] = {"steps": training.steps, "loss": training.loss}
        for name, seconds in (
            ("training", training.seconds),
            ("evaluation", training.evaluation_seconds),
        ):
            record.seconds[name] = record.seconds.get(name, 0.0) + seconds


def finish(combiners: Mapping[str, Combiner], kept: Arrays) -> dict[str, Array]:
    """Return all arrays of the next model: those that are kept, and the groups as they are now."""
    arrays = dict(kept)
    for combiner in combiners.values():
        arrays |= combiner.finish()
    return arrays
