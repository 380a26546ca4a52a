"""The coordinator's door: what a reply must be before any of it is used.

A refused reply costs its site the round and nothing else.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from common import metrics
from common.arrays import Array, Arrays, form_of, pieces_of
from common.errors import ReplyError
from common.messages import Counted, Order, Reply, rounded
from common.metrics import MetricState
from common.study import Study
from common.update_norm import is_within
from server.exact_sum import largest_change, magnitude
from server.roster import Member

EVALUATED = ("validation", "test")
States = dict[tuple[str, str], MetricState]


def admit(reply: Reply, order: Order, member: Member) -> States:
    """Check a reply against its order and against what the site declared.

    Returns:
        The metric states by task and split; a site leaves out those with too few patients.

    Raises:
        ReplyError: Lists everything that is wrong: a site that refused, another study or
            round, groups, names, shapes, dtypes, values that are not finite or too large,
            weights, metric states.
    """
    if reply.refusal:
        raise ReplyError(f"{member.name} refused: {reply.refusal}.")
    faults = [*_identity_faults(reply, order, member)]
    if order.kind == "train":
        faults += _group_faults(reply, order)
        faults += _weight_faults(reply, order, member)
    states, metric_faults = _states(reply, order.study, member)
    faults += metric_faults
    if faults:
        raise ReplyError(
            f"The reply of {member.name} has {len(faults)} faults:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="The site is left out of this round; its own log should say more.",
        )
    return states


def _identity_faults(reply: Reply, order: Order, member: Member) -> Iterator[str]:
    if reply.site != member.name:
        yield "it comes under another site's name"
    if reply.digest != order.study.digest():
        yield "it is for another study"
    if reply.round != order.round:
        yield f"it is for round {reply.round}, not {order.round}"


def _group_faults(reply: Reply, order: Order) -> Iterator[str]:
    if set(reply.groups) != set(order.groups):
        yield f"it has the groups {sorted(reply.groups)}, not {sorted(order.groups)}"
        return
    for group, current in order.groups.items():
        change = reply.groups[group]
        if set(change) != set(current):
            odd = sorted(set(change) ^ set(current))
            yield f"{group}: names missing or unknown: {', '.join(odd[:10])}"
            continue
        yield from _array_faults(group, change, current, order.study.federation.update_dtype)
    if not is_within(reply.groups, bound := order.study.federation.update_norm):
        yield f"the change is longer than the study's {bound:g}"


def _array_faults(group: str, change: Arrays, current: Arrays, dtype: str) -> Iterator[str]:
    for name in current:
        shape, limit = _asked(current[name])
        was = form_of(change, name)
        if was != (np.dtype(dtype), shape):
            yield f"{group}: {name} is {was[0]}{was[1]}, not {dtype}{shape}"
            continue
        magnitudes = [magnitude(piece) for piece in pieces_of(change, name)]
        if not all(math.isfinite(found) for found in magnitudes):
            yield f"{group}: {name} has values that are not finite"
        elif max(magnitudes, default=0.0) > limit:
            yield f"{group}: {name} changed by more than {limit:g}"


def _asked(current: Array) -> tuple[tuple[int, ...], float]:
    """Return the shape and the largest change of an array; the array itself is let go of."""
    return current.shape, largest_change(current)


def _weight_faults(reply: Reply, order: Order, member: Member) -> Iterator[str]:
    if set(reply.weights) != set(order.groups):
        yield "its weights are not those of the groups"
        return
    for group, weight in reply.weights.items():
        most = member.declaration.weight(group, order.study.federation.weighting)
        if not (math.isfinite(weight) and 0 < weight <= most):
            yield f"{group}: the weight {weight} is not above 0 and at most {most} as declared"


def _states(reply: Reply, study: Study, member: Member) -> tuple[States, list[str]]:
    expected = {(task, split) for task in member.tasks for split in EVALUATED}
    if not set(reply.metrics) <= expected:  # what is missing the site has suppressed
        return {}, ["its metrics are not those of the site's tasks"]
    states: States = {}
    faults = []
    for (name, split), arrays in reply.metrics.items():
        task = study.tasks[name]
        try:
            state = metrics.from_arrays(_decoded(arrays), len(task.classes), task.positive_index)
        except (ReplyError, ValueError, TypeError, EOFError) as error:
            text = error.message if isinstance(error, ReplyError) else type(error).__name__
            faults.append(f"metrics of {name} on {split}: {text}")
            continue
        declared: Counted = getattr(member.declaration.tasks[name], split)
        found = Counted(patients=state.n_patients, images=state.n_images)
        if not _declared_as(found, declared):
            faults.append(f"metrics of {name} on {split}: not on the images that were declared")
        states[name, split] = state
    return states, faults


def _declared_as(found: Counted, declared: Counted) -> bool:
    """Say whether the numbers behind a state are those declared, exactly or rounded."""
    return declared.patients in (found.patients, rounded(found.patients)) and (
        declared.images in (found.images, rounded(found.images))
    )


def _decoded(arrays: Arrays) -> Mapping[str, np.ndarray]:
    return {name: arrays[name] for name in arrays}
