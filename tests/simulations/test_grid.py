"""Laws of the grid within one process."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.grid import LocalGrid

SITES = 3


@pytest.fixture
def grid() -> LocalGrid:
    """A grid of sites that answer with their number and fail when they are told to."""
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.content.config_records["order"]["fails"] == number:
            raise ValueError("this site fails")
        content = RecordDict({"reply": ConfigRecord({"number": number})})
        return Message(content, reply_to=message)

    return LocalGrid(app, SITES)


def orders(grid: LocalGrid, *, fails: int = -1) -> list[Message]:
    content = RecordDict({"order": ConfigRecord({"fails": fails})})
    return [
        Message(content, dst_node_id=node, message_type="query") for node in grid.get_node_ids()
    ]


def number_of(reply: Message) -> object:
    return reply.content.config_records["reply"]["number"]


def test_every_site_is_a_node_of_its_own(grid: LocalGrid) -> None:
    """There is one node a site, and a message to it is answered by that site alone."""
    nodes = list(grid.get_node_ids())
    assert len(set(nodes)) == SITES
    replies = list(grid.send_and_receive(orders(grid)))
    assert [number_of(reply) for reply in replies] == list(range(SITES))
    assert [reply.metadata.src_node_id for reply in replies] == nodes


def test_ids_are_unique(grid: LocalGrid) -> None:
    """No two messages share an id, and every reply names the message that it answers."""
    ids = [*grid.push_messages(orders(grid)), *grid.push_messages(orders(grid))]
    replies = [reply for one in ids for reply in grid.pull_messages([one])]
    assert len(set(ids)) == 2 * SITES
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 4 * SITES


def test_an_unknown_id_gives_nothing(grid: LocalGrid) -> None:
    """Nothing comes for an id that was never pushed, nor twice for one that was."""
    (first, *_) = grid.push_messages(orders(grid))
    assert list(grid.pull_messages(["unknown"])) == []
    assert len(list(grid.pull_messages([first, "unknown"]))) == 1
    assert list(grid.pull_messages([first])) == []


def test_a_failing_site_loses_no_reply(grid: LocalGrid) -> None:
    """A site that raises is an error reply; the others' replies come all the same."""
    replies = list(grid.send_and_receive(orders(grid, fails=1)))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "this site fails" in str(replies[1].error.reason)
    assert [number_of(replies[0]), number_of(replies[2])] == [0, 2]


def test_nothing_runs_before_it_is_pulled(grid: LocalGrid) -> None:
    """A pushed message waits, so that one reply at a time is in memory."""
    ids = list(grid.push_messages(orders(grid)))
    assert [number_of(next(iter(grid.pull_messages([one])))) for one in reversed(ids)] == [2, 1, 0]


def test_the_run_is_always_the_same(grid: LocalGrid) -> None:
    """What Flower asks of a grid besides messages is answered with constants."""
    message = grid.create_message(RecordDict(), "query", 2, "group")
    assert (message.metadata.dst_node_id, message.metadata.message_type) == (2, "query")
    assert grid.run.run_id == 1
