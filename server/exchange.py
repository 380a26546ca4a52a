"""Sending orders over Flower's ``Grid`` and pulling what the sites answer."""

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from common.arrays import Arrays
from common.errors import ReplyError
from common.messages import (
    MESSAGE_TYPES,
    Order,
    Reply,
    order_to_record,
    reply_from_record,
    size_in_bytes,
)
from common.study import Study
from common.wire_arrays import WireArrays
from server.history import RoundRecord
from server.roster import Member, check_roster

POLL_SECONDS = 0.02
"""First pause between two looks for replies; it doubles up to ``LONGEST_POLL_SECONDS``."""
LONGEST_POLL_SECONDS = 1.0


def enrol(
    study: Study, grid: Grid, sites: int, refused: dict[str, str] | None = None
) -> list[Member]:
    """Ask every site what it holds, and check that the study can begin with the answers.

    Args:
        study: What is to be trained.
        grid: Flower's way to the sites.
        sites: How many are expected; fewer are asked only once the study's deadline has passed.
        refused: Filled with the reason of each site that answered but does not take part.

    Returns:
        The sites that take part, by name.

    Raises:
        FederationError: The study cannot begin; see ``check_roster``.
    """
    deadline = time.monotonic() + study.federation.deadline_s
    pause = _Pause()
    while len(nodes := sorted(grid.get_node_ids())) < sites and time.monotonic() < deadline:
        pause()
    order = Order("check", study, 0, {}, "", None)
    messages = {node: _message(order, node) for node in nodes}
    members = []
    refusals = {} if refused is None else refused
    for node, reply in _replies(grid, messages, study):
        if isinstance(reply, ReplyError):
            refusals[f"node {node}"] = reply.message
        elif reply.refusal or reply.declaration is None:
            refusals[reply.site] = reply.refusal or "no declaration"
        elif reply.digest != study.digest() or not set(reply.declaration.tasks) <= set(study.tasks):
            refusals[reply.site] = "it answers for another study"
        elif not reply.declaration.tasks:
            refusals[reply.site] = "it has none of the study's tasks"
        else:
            members.append(Member(node, reply.site, reply.declaration, reply.declaration.base))
    check_roster(study, members, refusals)
    return sorted(members, key=lambda member: member.name)


def exchange(
    grid: Grid,
    orders: Mapping[str, tuple[Member, Order]],
    study: Study,
    record: RoundRecord,
) -> Iterator[tuple[Member, Reply]]:
    """Send the orders and yield replies as they come, one in memory at a time.

    The exchange closes when all have answered, or at the deadline. Who stays silent, and whose
    reply is malformed, is noted in ``record``.
    """
    by_node = {member.node_id: member for member, _ in orders.values()}
    messages = _messages(orders)
    record.asked = sorted(orders)
    down = {by_node[node].name: size_in_bytes(m.content) for node, m in messages.items()}
    record.bytes = {name: {"down": size, "up": 0} for name, size in down.items()}
    heard = set()
    for node, reply in _replies(grid, messages, study, record.bytes, by_node):
        member = by_node[node]
        heard.add(member.name)
        if isinstance(reply, ReplyError):
            record.refused[member.name] = reply.message
            member.base = ""
        else:
            yield member, reply
        del reply  # or it would stay in memory until the next one has come
    record.answered.sort()
    record.silent = sorted(set(orders) - heard)


def _replies(
    grid: Grid,
    messages: dict[int, Message],
    study: Study,
    sizes: Mapping[str, dict[str, int]] | None = None,
    names: Mapping[int, Member] | None = None,
) -> Iterator[tuple[int, Reply | ReplyError]]:
    """Push one message a node, and pull what comes back until the deadline.

    Replies are asked for one message at a time: asked for together, Flower would hand over
    together, and hold in memory, all that are there.
    """
    deadline = time.monotonic() + study.federation.deadline_s
    nodes = list(messages)
    # Flower gives None for a message that it could not push, and nothing where all are too large.
    ids = zip(grid.push_messages(messages.values()), nodes, strict=False)
    waiting = {message_id: node for message_id, node in ids if message_id is not None}
    messages.clear()
    pause = _Pause()
    while waiting and time.monotonic() < deadline:
        before = len(waiting)
        for message_id, node in list(waiting.items()):
            replies = list(grid.pull_messages([message_id]))
            while replies:
                del waiting[message_id]
                if sizes and names and replies[0].has_content():
                    sizes[names[node].name]["up"] = size_in_bytes(replies[0].content)
                yield node, _decode(replies.pop())  # popped, so that nothing here still holds it
        if len(waiting) == before:
            pause()
        else:
            pause = _Pause()


def _decode(message: Message) -> Reply | ReplyError:
    if message.has_error():
        return ReplyError(f"The site's client failed (Flower's error {message.error.code}).")
    try:
        return reply_from_record(message.content)
    except ReplyError as error:
        return error


def _messages(orders: Mapping[str, tuple[Member, Order]]) -> dict[int, Message]:
    """Write one message a node; the same arrays are encoded once and shared by all messages."""
    encoded: dict[str, WireArrays] = {}

    def once(name: str, arrays: Arrays) -> WireArrays:
        if name not in encoded:
            encoded[name] = WireArrays.of(arrays)
        return encoded[name]

    messages = {}
    for member, order in orders.values():
        groups = {group: once(group, arrays) for group, arrays in order.groups.items()}
        base = None if order.base is None else once("base", order.base)
        packed = order._replace(groups=groups, base=base)
        messages[member.node_id] = _message(packed, member.node_id)
    return messages


def _message(order: Order, node: int) -> Message:
    return Message(order_to_record(order), dst_node_id=node, message_type=MESSAGE_TYPES[order.kind])


class _Pause:
    """A pause that doubles each time, up to a limit."""

    def __init__(self) -> None:
        self._seconds = POLL_SECONDS

    def __call__(self) -> None:
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, LONGEST_POLL_SECONDS)
