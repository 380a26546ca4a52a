"""A Flower ``Grid`` within this process: no Ray, no network, the same messages."""

import uuid
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Hands each message to a ClientApp when its reply is pulled, one site after the other.

    Args:
        app: The ClientApp that plays every site.
        sites: How many sites there are; ``node_config["partition-id"]`` counts them from 0.
    """

    def __init__(self, app: ClientApp, sites: int) -> None:
        self._app = app
        self._contexts = {number + 1: _context(number) for number in range(sites)}
        self._pushed: dict[str, Message] = {}
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """An empty run."""
        return Run.create_empty(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message, as Flower's own grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the sites' node ids: 1, 2, ..."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites' nodes; they have no names here."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are asked for."""
        ids = []
        for message in messages:
            ids.append(_name(message))
            self._pushed[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the sites work, and return their replies."""
        return [self._answer(self._pushed.pop(i)) for i in message_ids if i in self._pushed]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull in one; nothing here can time out."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - as a SuperNode does, whatever the app raised
            reason = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error))
            reply = Message(reason, reply_to=message)
        _name(reply)
        return reply


def _name(message: Message) -> str:
    """Give a message the id that Flower's transport would give it."""
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return str(message.metadata.message_id)


def _context(number: int) -> Context:
    config: Mapping[str, int] = {"partition-id": number}
    return Context(
        run_id=1, node_id=number + 1, node_config=dict(config), state=RecordDict(), run_config={}
    )
