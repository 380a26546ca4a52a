"""The one door out: a reply leaves only if it is what was asked for, and nothing else.

This is the thin form. It knows names, shapes, dtypes, finiteness, metric states and codes; budgets,
counts and the audit log come with the privacy ledger.
"""

import math
from collections.abc import Iterator

import numpy as np

from common import errors, metrics
from common.errors import EgressError, RarefedError, ReplyError
from common.messages import Order, Reply

HELD_OUT = ("validation", "test")
"""The splits that a site reports metrics of."""
REFUSALS = frozenset(
    value.code
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RarefedError)
)
"""Every code that a site may give as its reason; no other words leave it."""


def release(reply: Reply, order: Order) -> Reply:
    """Return ``reply`` if it may leave.

    Raises:
        EgressError: It carries something that the order did not ask for; all is listed.
    """
    if faults := list(_faults(reply, order)):
        raise EgressError(
            "The reply was held back:\n" + "\n".join(f"  - {fault}" for fault in faults)
        )
    return reply


def refusal(site: str, order_digest: str, number: int, error: RarefedError) -> Reply:
    """Return the reply that says no: the code of the error's class, and none of its words."""
    return Reply(site=site, digest=order_digest, round=number, refusal=error.code)


def _faults(reply: Reply, order: Order) -> Iterator[str]:
    if reply.refusal and reply.refusal not in REFUSALS:
        yield "the reason is no known code"
    if reply.declaration is not None and order.kind != "check":
        yield "a declaration, where none was asked for"
    if reply.training is not None and order.kind == "check":
        yield "figures of a training, where none was asked for"
    yield from _group_faults(reply, order)
    yield from _metrics_faults(reply, order)


def _group_faults(reply: Reply, order: Order) -> Iterator[str]:
    expected = set(order.groups) if order.kind == "train" else set()
    if set(reply.groups) != expected or set(reply.weights) != expected:
        yield f"groups {sorted(reply.groups)}, where {sorted(expected)} were asked for"
        return
    dtype = np.dtype(order.study.federation.update_dtype)
    for group, change in reply.groups.items():
        asked = order.groups[group]
        if not math.isfinite(reply.weights[group]):
            yield f"{group}: its weight is not finite"
        if set(change) != set(asked):
            yield f"{group}: other arrays than were asked for"
            continue
        for name, value in change.items():
            if value.dtype != dtype or value.shape != asked[name].shape:
                yield f"{group}: {name} is {value.dtype}{value.shape}"
            elif not np.isfinite(value).all():
                yield f"{group}: {name} is not finite"


def _metrics_faults(reply: Reply, order: Order) -> Iterator[str]:
    """Yield what is no metric state of a task's held-out patients, down to the last array."""
    tasks = order.study.tasks if order.kind != "check" else {}
    for (name, split), state in reply.metrics.items():
        if name not in tasks or split not in HELD_OUT:
            yield "metrics of a task or split that were not asked for"
            continue
        try:
            metrics.from_arrays(state, len(tasks[name].classes), tasks[name].positive_index)
        except ReplyError as error:
            yield f"{name}, {split}: {error.message}"
