"""The coordinator's door: what a reply must be before any of it is used.

A refused reply costs its site the round and nothing else.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from common import attention as attention_sums
from common import metrics_wire
from common.arrays import Array, Arrays, form_of, pieces_of
from common.attention import ATTENTION, Table
from common.chained_log import Head
from common.errors import ReplyError
from common.held_out import HELD_OUT, OF_PATIENTS, SPLIT_OF, members_of
from common.messages import Order, Reply
from common.metrics import MetricState
from common.statements import Counted, rounded
from common.study import Study
from common.update_norm import is_within
from server.exact_sum import largest_change, magnitude
from server.roster import Member

States = dict[tuple[str, str], MetricState]
"""By task and name of the state."""


def admit(reply: Reply, order: Order, member: Member) -> States:
    """Check a reply against its order and against what the site declared.

    Returns:
        The metric states; a site leaves out those with too few patients.

    Raises:
        ReplyError: Lists everything that is wrong: a site that refused, another study or
            round, groups, names, shapes, dtypes, values that are not finite or too large,
            weights, metric states, sums of attention.
    """
    if reply.refusal:
        raise ReplyError(f"{member.name} refused: {reply.refusal}.")
    faults = [*_identity_faults(reply, order, member)]
    if order.kind == "train":
        faults += _group_faults(reply, order)
        faults += _weight_faults(reply, order, member)
    states, metric_faults = _states(reply, order, member)
    faults += metric_faults
    faults += _attention_faults(reply, order, member)
    if faults:
        raise ReplyError(
            f"The reply of {member.name} has {len(faults)} faults:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="The site is left out of this round; its own log should say more.",
        )
    return states


def attention_of(reply: Reply) -> dict[str, Table]:
    """Return the sums of attention of a reply that was admitted, by task."""
    return {
        task: attention_sums.from_arrays(_decoded(arrays))
        for (task, name), arrays in reply.metrics.items()
        if name == ATTENTION
    }


def head_fault(reply: Reply, known: Head | None) -> str:
    """Return why the head of a site's audit log does not follow from the last one that came.

    It costs the site nothing: a hospital may have had to restore a backup of its log.

    Args:
        reply: A reply that was admitted.
        known: The last head of this site in this study; None for none.

    Returns:
        Words for the record; empty where the log has grown, or stands where it stood.
    """
    if known is None or reply.audit == known:
        return ""
    if reply.audit is None:
        return f"it no longer tells of its audit log, which had {known.entries} lines"
    if reply.audit.entries < known.entries:
        return f"its audit log went back from {known.entries} lines to {reply.audit.entries}"
    if reply.audit.entries == known.entries:
        return f"line {known.entries} of its audit log has another hash than before"
    return ""


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


def _states(reply: Reply, order: Order, member: Member) -> tuple[States, list[str]]:
    study = order.study
    asked = (*SPLIT_OF, *(members_of(study) if order.kind == "evaluate" else ()))
    expected = {(task, name) for task in member.tasks for name in asked}
    sent = {key: arrays for key, arrays in reply.metrics.items() if key[1] != ATTENTION}
    if not set(sent) <= expected:  # what is missing the site has suppressed
        return {}, ["its metrics are not those of the site's tasks"]
    states: States = {}
    faults = []
    for (name, split), arrays in sent.items():
        task = study.tasks[name]
        try:
            state = metrics_wire.from_arrays(
                _decoded(arrays), len(task.classes), task.positive_index
            )
        except (ReplyError, ValueError, TypeError, EOFError) as error:
            text = error.message if isinstance(error, ReplyError) else type(error).__name__
            faults.append(f"metrics of {name} on {split}: {text}")
            continue
        states[name, split] = state
        if split not in HELD_OUT:
            continue
        declared: Counted = getattr(member.declaration.tasks[name], split)
        found = Counted(patients=state.n_patients, images=state.n_images)
        if not _declared_as(found, declared):
            faults.append(f"metrics of {name} on {split}: not on the images that were declared")
    faults += _patient_faults(reply, states, study)
    return states, [*faults, *_member_faults(reply, states, study)]


def _patient_faults(reply: Reply, states: States, study: Study) -> Iterator[str]:
    """Yield which states of patients cannot be of the patients of their images."""
    for name, split in product(study.tasks, HELD_OUT):
        of_patients = (name, OF_PATIENTS[split])
        if of_patients not in reply.metrics:
            continue
        where = f"metrics of {name} on {of_patients[1]}"
        if (name, split) not in reply.metrics:
            yield f"{where}: without those of their images"
        elif (name, split) in states and of_patients in states:  # or their own fault is told
            positive = study.tasks[name].positive_index
            if not _may_be_patients_of(states[name, split], states[of_patients], positive):
                yield f"{where}: not of the patients of their images"


def _member_faults(reply: Reply, states: States, study: Study) -> Iterator[str]:
    """Yield which states of an ensemble's members are missing, or of other patients than its."""
    names = members_of(study)
    for task in study.tasks:
        sent = [name for name in names if (task, name) in reply.metrics]
        if not sent:  # the site has suppressed them, or was not asked for them
            continue
        if missing := [name for name in names if name not in sent]:
            yield f"metrics of {task}: without those of {', '.join(missing)}"
        several = (task, OF_PATIENTS["validation"])
        whole = several if several in reply.metrics else (task, "validation")
        if whole not in reply.metrics:
            yield f"metrics of {task}: those of members without those of the ensemble"
        elif whole in states:  # or its own fault is told
            found = [(name, states[task, name]) for name in sent if (task, name) in states]
            once = whole == several or states[whole].n_images == states[whole].n_patients
            for name, state in found:
                if not once or _counts(state) != _counts(states[whole]):
                    yield f"metrics of {task} on {name}: not of the patients of the ensemble's"


def _counts(state: MetricState) -> tuple[int, ...]:
    return state.n_patients, state.n_images, *state.confusion.sum(axis=1).tolist()


def _attention_faults(reply: Reply, order: Order, member: Member) -> Iterator[str]:
    """Yield what is no sum of attention that was asked for, over patients that were declared."""
    asked = order.kind == "evaluate" and order.study.evaluation.attention != "none"
    for (name, what), arrays in reply.metrics.items():
        if what != ATTENTION:
            continue
        if not asked or name not in member.tasks:
            yield "attention that was not asked for"
            continue
        try:
            table = attention_sums.from_arrays(_decoded(arrays))
        except (ReplyError, ValueError, TypeError, EOFError) as error:
            text = error.message if isinstance(error, ReplyError) else type(error).__name__
            yield f"attention of {name}: {text}"
            continue
        if (name, "test") not in reply.metrics:
            yield f"attention of {name}: without the metrics of its images"
        if table[:, 0].max() > member.declaration.tasks[name].test.patients:
            yield f"attention of {name}: of more patients than were declared"


def _may_be_patients_of(images: MetricState, patients: MetricState, positive: int | None) -> bool:
    """Say whether one state may count the patients of the images that the other counts.

    A patient with images of several classes is a case of each, unless one class is positive.
    """
    in_class, cases = images.confusion.sum(axis=1), patients.confusion.sum(axis=1)
    once = positive is None or patients.n_images == patients.n_patients
    return once and patients.n_patients == images.n_patients and bool(np.all(cases <= in_class))


def _declared_as(found: Counted, declared: Counted) -> bool:
    """Say whether the numbers behind a state are those declared, exactly or rounded."""
    return declared.patients in (found.patients, rounded(found.patients)) and (
        declared.images in (found.images, rounded(found.images))
    )


def _decoded(arrays: Arrays) -> Mapping[str, np.ndarray]:
    return {name: arrays[name] for name in arrays}
