"""The one door out: a reply leaves only if it is what was asked for, and nothing else.

This is the thin form. It knows names, shapes, dtypes, finiteness and codes; budgets, counts and
the audit log come with the privacy ledger.
"""

from collections.abc import Iterator

import numpy as np

from common import errors
from common.errors import EgressError, RarefedError
from common.messages import Order, Reply

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
    expected = set(order.groups) if order.kind == "train" else set()
    if set(reply.groups) != expected or set(reply.weights) != expected:
        yield f"groups {sorted(reply.groups)}, where {sorted(expected)} were asked for"
        return
    for group, change in reply.groups.items():
        asked = order.groups[group]
        if set(change) != set(asked):
            yield f"{group}: other arrays than were asked for"
            continue
        for name, value in change.items():
            if value.dtype != np.float32 or value.shape != asked[name].shape:
                yield f"{group}: {name} is {value.dtype}{value.shape}"
            elif not np.isfinite(value).all():
                yield f"{group}: {name} is not finite"
    allowed = {(task, split) for task in order.study.tasks for split in ("validation", "test")}
    if not set(reply.metrics) <= allowed:
        yield "metrics of a task or split that the study does not report"
