"""The arrays of an order: into the model before a training, and the changes out of it after."""

import numpy as np

from client.alignment import check_place
from client.prepared import Prepared
from common.arrays import Array, Arrays
from common.ensemble import check_votes, vote_alike
from common.errors import OrderError
from common.layout import STATISTICS, split_sent_once, votes_group, votes_name
from common.messages import Order
from common.update_norm import factor_within
from common.weights import check_fit, put


def load_order(prepared: Prepared, order: Order) -> None:
    """Put the order's arrays into the model, and beneath them the base and what is local.

    The members of an ensemble weigh the same where the order does not say what they weigh.

    Raises:
        OrderError: The base is missing or not the one that was announced, groups are not those
            of this site's tasks, an array does not fit, votes are no shares of one, or an order
            to train does not say which site this is, where the study needs it.
    """
    if order.kind == "train":
        check_place(order.study, order.place)
    expected = prepared.layout.groups_of(prepared.tasks, trained=order.kind == "train")
    if set(order.groups) != set(expected):
        raise OrderError(
            f"The order has the groups {sorted(order.groups)}, not {sorted(expected)}."
        )
    try:
        if order.base is not None:
            prepared.store.save_base(order.base, order.base_digest)
        arrays = prepared.store.load_local(order.round)
        untrained = bool(prepared.layout.local) and not arrays  # a first round, perhaps redone
        if prepared.base != order.base_digest or untrained:
            _put_sent_once(prepared, order.base_digest)
            prepared.features.forget()
            prepared.base = order.base_digest
        put(prepared.model, arrays)
        vote_alike(prepared.model.heads.values())
        for group, found in order.groups.items():
            if set(found) != set(prepared.layout.groups[group]):
                raise OrderError(f"The order's group {group} has other arrays than the network.")
            put(prepared.model, found)
        _check_votes(prepared, order)
        prepared.features.refresh()
    except ValueError as error:
        prepared.base = ""
        raise OrderError(f"The order's arrays do not fit the network: {error}") from error


def _check_votes(prepared: Prepared, order: Order) -> None:
    """Refuse what the members of an ensemble cannot weigh; a ValueError then."""
    for task in prepared.tasks:
        votes: Arrays = order.groups.get(votes_group(task), {})
        if votes:
            check_votes(votes[votes_name(task)])


def initial_backbone(prepared: Prepared) -> dict[str, Array]:
    """Return all arrays of the backbone as they were at the study's beginning, by their names.

    They are those that came with the base, in this order or an earlier one; none where the study's
    objective does not ask for them.
    """
    if not prepared.layout.initial:
        return {}
    sent = prepared.store.load_base(prepared.store.base_digest())
    return split_sent_once(sent, prepared.layout)[1]


def _put_sent_once(prepared: Prepared, base_digest: str) -> None:
    """Put into the model what came once, and see that the initial arrays, if any, would fit too."""
    own, initial = split_sent_once(prepared.store.load_base(base_digest), prepared.layout)
    check_fit(prepared.model, initial)
    put(prepared.model, own)


def changes_of(
    prepared: Prepared, order: Order
) -> tuple[dict[str, dict[str, Array]], dict[str, float]]:
    """Return local minus global by group, in the study's type of number, and what each weighs."""
    declared, federation = prepared.declare(), prepared.study.federation
    state = prepared.model.state_dict()
    groups: dict[str, dict[str, Array]] = {
        group: {name: state[name].cpu().numpy() - old for name, old in current.items()}
        for group, current in order.groups.items()
    }
    factor = np.float32(factor_within(groups, federation.update_norm))
    dtype = np.dtype(federation.update_dtype)
    for group, arrays in groups.items():
        by = np.float32(1.0) if group == STATISTICS else factor
        groups[group] = {n: (change * by).astype(dtype, copy=False) for n, change in arrays.items()}
    return groups, {group: declared.weight(group, federation.weighting) for group in groups}
