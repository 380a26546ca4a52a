"""The one door out: a reply leaves only if it is what was asked for, and nothing else.

It is the last code that touches a reply, and is closed by default: what is not named here stays.
Whether too few patients stand behind a figure is asked of ``client/suppression.py`` once more.

Exactly the arrays leave that were asked for, by group, name, shape and type of number. What their
numbers say is bounded by what training does and by its noise, not by this file: bits could be
hidden in them, as in the seconds, by whoever can change the site's own software.
"""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from client.attention_suppression import Looked, may_report, withheld_attention
from client.config import Limits
from client.suppression import Behind, Key, stated, withheld
from common import attention as attention_sums
from common import errors, metrics_wire
from common.arrays import Arrays, form_of, pieces_of, size_in_bytes
from common.attention import ATTENTION, Table
from common.errors import EgressError, RarefedError, ReplyError
from common.held_out import HELD_OUT, MEMBERS, SPLIT_OF, members_of
from common.messages import Order, Reply
from common.metrics import MetricState
from common.statements import Counted, Declaration, Training, rounded
from common.update_norm import is_within
from common.versions import software_version

REFUSALS = frozenset(
    value.code
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RarefedError)
)
"""Every code that a site may give as its reason; no other words leave it."""
_NUMBER_BYTES = 8
_SHOWN = 5


class Own(NamedTuple):
    """What the site knows of itself, beside the reply; none of it leaves by this way."""

    site: str
    declaration: Declaration
    """As the site states it: exact, or rounded."""
    behind: Mapping[Key, Behind]
    """Who stands behind the figures of each task and split."""
    looked: Looked = MappingProxyType({})
    """Who stands behind the sums of attention of each task."""


def release(reply: Reply, order: Order, limits: Limits, own: Own) -> Reply:
    """Return ``reply`` if it may leave.

    Args:
        reply: What the site would answer, after ``suppression.suppress``.
        order: What was asked.
        limits: The hospital's.
        own: What the site knows of itself.

    Raises:
        EgressError: It carries something that the order did not ask for, or figures of too few
            patients; all is listed, and no value is quoted.
    """
    faults: list[str] = []
    try:
        faults.extend(_faults(reply, order, limits, own))  # those before an error stay
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        faults.append(f"the rest is of no form that is known here ({type(error).__name__})")
    if faults:
        raise EgressError(
            "The reply was held back:\n" + "\n".join(f"  - {fault}" for fault in faults),
            remedy="Nothing but a code has left. This is a fault of the software: report it.",
        )
    return reply


def refusal(site: str, order_digest: str, number: int, error: RarefedError) -> Reply:
    """Return the reply that says no: the code of the error's class, and none of its words."""
    return Reply(site=site, digest=order_digest, round=number, refusal=error.code)


def _faults(reply: Reply, order: Order, limits: Limits, own: Own) -> Iterator[str]:
    yield from _text_faults(reply, order, own)
    if reply.refusal:
        return
    yield from _declaration_faults(reply.declaration, order, limits, own)
    yield from _training_faults(reply.training, order, limits)
    yield from _group_faults(reply, order)
    yield from _weight_faults(reply, order, own)
    yield from _metrics_faults(reply, order, limits, own)
    yield from _attention_faults(reply, order, limits, own)
    yield from _size_faults(reply, limits)


def _text_faults(reply: Reply, order: Order, own: Own) -> Iterator[str]:
    """Yield what is wrong with the words of a reply; there are four, and all are known."""
    if reply.site != own.site:
        yield "it is not under this site's name"
    if reply.digest != order.study.digest():
        yield "it is for another study"
    if type(reply.round) is not int or reply.round != order.round:
        yield "it is for another round"
    if reply.audit is not None:
        yield "a head of the audit log, which the log alone may tell"
    if reply.refusal and reply.refusal not in REFUSALS:
        yield "the reason is no known code"
    if reply.refusal and reply != Reply(reply.site, reply.digest, reply.round, reply.refusal):
        yield "more than a reason, where it refuses"


def _declaration_faults(
    declared: Declaration | None, order: Order, limits: Limits, own: Own
) -> Iterator[str]:
    if declared is None:
        return
    if order.kind != "check":
        yield "a declaration, where none was asked for"
    if not _is_sound(declared, Declaration):
        yield "the declaration is not of its form"
        return
    if declared != own.declaration:
        yield "the declaration is not that of this site's data"
    if declared.software != software_version():
        yield "the declaration names another software"
    if not set(declared.tasks) <= set(order.study.tasks):
        yield "the declaration has tasks that are none of the study's"
    if not set(declared.unreadable) <= set(declared.tasks):
        yield "the declaration has unreadable images of other tasks"
    if not set(declared.each_image) <= set(declared.tasks):
        yield "the declaration names other tasks, whose patients are not known"
    if any(stated(number, limits) != number for number in _numbers(declared)):
        yield "the declaration has numbers that are not rounded"


def _numbers(declared: Declaration) -> Iterator[int]:
    yield from (declared.patients, *declared.unreadable.values())
    for splits in declared.tasks.values():
        for counted in (splits.train, splits.validation, splits.test):
            yield from (counted.patients, counted.images)


def _training_faults(training: Training | None, order: Order, limits: Limits) -> Iterator[str]:
    if training is None:
        return
    if not _is_sound(training, Training):
        yield "the figures of the training are not of their form"
        return
    if order.kind == "check" or (order.kind != "train" and (training.steps or training.loss)):
        yield "figures of a training, where none was asked for"
    elif order.kind == "train" and order.study.privacy is not None and training.loss is not None:
        yield "the training loss, in a study with privacy"
    if stated(training.steps, limits) != training.steps:
        yield "the number of steps is not rounded"


def _is_sound(part: Any, form: type[Declaration | Training]) -> bool:
    """Say whether the coordinator would read a part as what it is: its type may be bypassed."""
    if type(part) is not form:
        return False
    try:
        return bool(form.model_validate_json(part.model_dump_json(warnings=False)) == part)
    except ValueError:
        return False


def _group_faults(reply: Reply, order: Order) -> Iterator[str]:
    expected = _groups(order)
    if set(reply.groups) != expected:
        yield f"groups {_listed(reply.groups)}, where {sorted(expected)} were asked for"
        return
    for group, change in reply.groups.items():
        asked = order.groups[group]
        if set(change) != set(asked):
            yield f"{group}: other arrays than were asked for"
            continue
        for name in asked:
            yield from _array_faults(group, name, change, asked, order)
    if not is_within(reply.groups, order.study.federation.update_norm):
        yield "the change is longer than the study allows"


def _array_faults(
    group: str, name: str, change: Arrays, asked: Arrays, order: Order
) -> Iterator[str]:
    wanted = np.dtype(order.study.federation.update_dtype), form_of(asked, name)[1]
    if not _is_plain(change[name]):
        yield f"{group}: {name} is no plain array"
    elif (found := form_of(change, name)) != wanted:
        yield f"{group}: {name} is {found[0]}{found[1]}, not {wanted[0]}{wanted[1]}"
    elif not all(np.isfinite(piece).all() for piece in pieces_of(change, name)):
        yield f"{group}: {name} is not finite"


def _is_plain(value: Any) -> bool:
    """Say whether a value is an array or a number of NumPy's own; a masked one hides values."""
    return type(value) is np.ndarray or isinstance(value, np.generic)


def _weight_faults(reply: Reply, order: Order, own: Own) -> Iterator[str]:
    if set(reply.weights) != _groups(order):
        yield "other weights than of the groups that were asked for"
        return
    weighting = order.study.federation.weighting
    for group, weight in reply.weights.items():
        if type(weight) is not float or not (math.isfinite(weight) and weight > 0):
            yield f"{group}: its weight is no number above zero"
        elif weight != own.declaration.weight(group, weighting):
            yield f"{group}: its weight is not what the site has declared"


def _groups(order: Order) -> set[str]:
    return set(order.groups) if order.kind == "train" else set()


def _metrics_faults(reply: Reply, order: Order, limits: Limits, own: Own) -> Iterator[str]:
    """Yield what is no metric state of a task's held-out patients, down to the last array."""
    tasks = order.study.tasks if order.kind != "check" else {}
    asked = {*SPLIT_OF, *(members_of(order.study) if order.kind == "evaluate" else ())}
    states: dict[Key, MetricState] = {}
    for (name, split), arrays in reply.metrics.items():
        if split == ATTENTION:
            continue
        if name not in tasks or split not in asked or (name, split) not in own.behind:
            yield "metrics of a task or split that were not asked for"
            continue
        if not all(_is_plain(array) for array in arrays.values()):
            yield f"{name}, {split}: no plain array"
            continue
        task = tasks[name]
        try:
            state = metrics_wire.from_arrays(arrays, len(task.classes), task.positive_index)
        except ReplyError as error:
            yield f"{name}, {split}: {error.message}"
            continue
        states[name, split] = state
        held_out = "validation" if split in MEMBERS else SPLIT_OF[split]
        counted: Counted = getattr(own.declaration.tasks[name], held_out)
        of_images = split in HELD_OUT
        if not _agree(state, counted, own.behind[name, split], of_images=of_images):
            yield f"{name}, {split}: not of this site's patients and images"
    for (name, split), reason in withheld(states, order, limits, own.behind).items():
        yield f"{name}, {split}: {reason}"


def _agree(state: MetricState, declared: Counted, behind: Behind, *, of_images: bool) -> bool:
    """Say whether a state counts what the site has, class by class."""
    counts = [sum(group.values()) for group in behind.classes]
    return (
        declared.patients in (state.n_patients, rounded(state.n_patients))
        and (not of_images or declared.images in (state.n_images, rounded(state.n_images)))
        and state.n_patients == len(set().union(*behind.classes))
        and state.confusion.sum(axis=1).tolist() == counts
    )


def _attention_faults(reply: Reply, order: Order, limits: Limits, own: Own) -> Iterator[str]:
    """Yield what is no sum over enough of the patients whose maps the site has looked at."""
    tables: dict[str, Table] = {}
    for (name, what), arrays in reply.metrics.items():
        if what != ATTENTION:
            continue
        if name not in order.study.tasks or name not in own.looked:
            yield "attention of a task that was not looked at"
            continue
        if not all(_is_plain(array) for array in arrays.values()):
            yield f"{name}, {what}: no plain array"
            continue
        try:
            table = attention_sums.from_arrays(arrays)
        except ReplyError as error:
            yield f"{name}, {what}: {error.message}"
            continue
        tables[name] = table
        if not may_report(order, limits) or not table.any():
            yield f"{name}, {what}: not asked for, kept by the hospital, or of nobody"
        patients = [stated(len(behind), limits) for behind in own.looked[name]]
        if any(count not in (0, known) for count, known in zip(table[:, 0], patients, strict=True)):
            yield f"{name}, {what}: not of the patients who were looked at"
    found = withheld_attention(tables, reply.metrics, order, limits, own.behind, own.looked)
    for (name, figure), reason in found.items():
        yield f"{name}, {ATTENTION}, {figure}: {reason}"


def _size_faults(reply: Reply, limits: Limits) -> Iterator[str]:
    arrays = sum(size_in_bytes(part) for part in (*reply.groups.values(), *reply.metrics.values()))
    size = arrays + _NUMBER_BYTES * len(reply.weights)
    if size > limits.max_reply_mb * 10**6:
        yield f"{size} bytes, where limits.max_reply_mb allows {limits.max_reply_mb} MB"


def _listed(names: Mapping[str, Any]) -> str:
    """Return names for the site's own log, cut short: they may be anything."""
    shown = [str(name)[:40] for name in names]
    return f"{sorted(shown)[:_SHOWN]}" + (" and more" if len(shown) > _SHOWN else "")
