"""What is under way between the coordinator and the sites, over Flower's ``Grid``.

It outlives a round: a reply that comes after its round has closed is still recognised.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.arrays import Arrays
from common.errors import ReplyError
from common.messages import (
    MESSAGE_TYPES,
    Kind,
    Order,
    Reply,
    order_to_record,
    reply_from_record,
    size_in_bytes,
)
from common.packed_arrays import PackedArrays
from common.seals import Sealer

POLL_SECONDS = 0.02
"""First pause between two looks for replies; it doubles up to ``LONGEST_POLL_SECONDS``."""
LONGEST_POLL_SECONDS = 1.0
LOST = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
"""Flower's errors of an order or a reply that was lost with a machine or a process."""


class Letter(NamedTuple):
    """One order to one site."""

    node: int
    site: str
    """The name that the site was enrolled under; empty where the grid knows no names."""
    order: Order


class Sent(NamedTuple):
    """What is remembered of a letter until its answer has come."""

    node: int
    kind: Kind
    round: int


class Arrived(NamedTuple):
    """What came back for one letter."""

    sent: Sent
    reply: Reply | ReplyError
    lost: bool
    """The order or its reply was lost; to send it again may help."""
    size: int
    """Bytes of content."""


class Mail:
    """Letters out, replies in.

    Args:
        grid: Flower's way to the sites.
        sealer: Seals each order for its site; None where the sites ask for no seal.
    """

    def __init__(self, grid: Grid, sealer: Sealer | None = None) -> None:
        self._grid = grid
        self._sealer = sealer
        self._under_way: dict[str, Sent] = {}
        self._pause = POLL_SECONDS

    @property
    def seals(self) -> bool:
        """Whether orders are sealed, each for the site that its node was enrolled as."""
        return self._sealer is not None

    def present(self) -> dict[int, str]:
        """Return the sites that are connected now: the enrolled name by node."""
        return {node.node_id: node.name for node in self._grid.get_nodes()}

    def under_way(self, kind: Kind, number: int) -> set[int]:
        """Return the nodes whose answer to such an order of a round is still missing."""
        wanted = (kind, number)
        return {s.node for s in self._under_way.values() if (s.kind, s.round) == wanted}

    def push(self, letters: Sequence[Letter], *, lifetime: float) -> dict[int, int]:
        """Send letters; arrays that several have in common are encoded once.

        Args:
            letters: At most one a node.
            lifetime: Seconds after which a letter that nobody fetched is void.

        Returns:
            Bytes of content by node.
        """
        messages = self._messages(letters, lifetime)
        sizes = {letter.node: size_in_bytes(m.content) for letter, m in messages}
        # Flower gives None for a message it could not push, and nothing where all are too large.
        ids = list(self._grid.push_messages([message for _, message in messages]))
        for message_id, (letter, _) in zip(ids, messages, strict=False):
            if message_id is not None:
                order = letter.order
                self._under_way[message_id] = Sent(letter.node, order.kind, order.round)
        return sizes

    def pull(self) -> Iterator[Arrived]:
        """Yield what has come; a reply is in memory until the next one is asked for.

        Replies are asked for one at a time: asked for together, Flower would hand over
        together, and hold in memory, all that are there.
        """
        found = False
        for message_id, sent in list(self._under_way.items()):
            replies = list(self._grid.pull_messages([message_id]))
            while replies:
                found = True
                self._under_way.pop(message_id, None)
                yield _open(sent, replies.pop())  # popped, so that nothing here still holds it
        self._pause = POLL_SECONDS if found else self._pause

    def wait(self) -> None:
        """Wait before the next look, the longer the longer nothing came."""
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_POLL_SECONDS)

    def _messages(self, letters: Sequence[Letter], lifetime: float) -> list[tuple[Letter, Message]]:
        encoded: dict[str, PackedArrays] = {}

        def once(name: str, arrays: Arrays) -> PackedArrays:
            if name not in encoded:
                encoded[name] = PackedArrays.of(arrays)
            return encoded[name]

        result = []
        for letter in letters:
            order = letter.order
            groups = {group: once(group, arrays) for group, arrays in order.groups.items()}
            base = None if order.base is None else once("base", order.base)
            record = order_to_record(order._replace(groups=groups, base=base))
            if self._sealer is not None:
                self._sealer.seal(record, letter.site)
            kind = MESSAGE_TYPES[order.kind]
            message = Message(record, dst_node_id=letter.node, message_type=kind, ttl=lifetime)
            result.append((letter, message))
        if self._sealer is not None:
            self._sealer.forget()
        return result


def _open(sent: Sent, message: Message) -> Arrived:
    if message.has_error():
        code = message.error.code
        error = ReplyError(f"The site's client failed (Flower's error {code}).")
        return Arrived(sent, error, code in LOST, 0)
    size = size_in_bytes(message.content)
    try:
        return Arrived(sent, reply_from_record(message.content), lost=False, size=size)
    except ReplyError as error:
        return Arrived(sent, error, lost=False, size=size)
