"""Laws of letters and replies over Flower's grid."""

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.common.constant import ErrorCode

from common.arrays import Array, digest
from common.errors import ReplyError
from common.messages import Order, Reply, order_to_record, size_in_bytes
from common.seals import Sealer
from common.study import Study
from server.mail import LONGEST_POLL_SECONDS, LOST, POLL_SECONDS, Letter, Mail

Make = Callable[..., Any]
GROUPS: dict[str, dict[str, Array]] = {"shared": {"w": np.arange(1000, dtype=np.float32)}}
BASE: dict[str, Array] = {"counter": np.array(3, np.int64)}


@pytest.fixture
def study(make_small_study: Make) -> Study:
    found: Study = make_small_study()
    return found


@pytest.fixture
def train(study: Study) -> Order:
    return Order("train", study, 1, GROUPS, digest(BASE), BASE)


def letters(order: Order, count: int) -> list[Letter]:
    return [Letter(node, "", order) for node in range(1, count + 1)]


def pushed_by(mail: Mail, grid: Any, sent: list[Letter], lifetime: float = 60.0) -> list[Message]:
    """Push letters, and return the messages that the grid was given."""
    seen: list[Message] = []
    push = grid.push_messages

    def note(messages: Iterable[Message]) -> list[str]:
        seen.extend(messages)
        return list(push(seen))

    grid.push_messages = note
    mail.push(sent, lifetime=lifetime)
    return seen


def test_who_is_connected_is_known_by_its_enrolled_name(make_site: Make, make_grid: Make) -> None:
    """Nodes that are away are not among them; a grid without names gives empty ones."""
    sites = [make_site(n, enrolled=n) for n in ("a", "b")] + [make_site("c"), make_site("d")]
    mail = Mail(make_grid(sites))
    assert mail.present() == {1: "a", 2: "b", 3: "", 4: ""}
    sites[1].away = True
    assert mail.present() == {1: "a", 3: "", 4: ""}


def test_a_letter_goes_to_its_node_and_lives_as_long_as_it_is_told(
    train: Order, make_site: Make, make_grid: Make
) -> None:
    """Its message has the order's type, the node's id and the lifetime in seconds."""
    grid = make_grid([make_site("a"), make_site("b")])
    messages = pushed_by(Mail(grid), grid, letters(train, 2), lifetime=17.0)
    found = [(m.metadata.dst_node_id, m.metadata.message_type) for m in messages]
    assert found == [(1, "train"), (2, "train")]
    assert {m.metadata.ttl for m in messages} == {17.0}


@pytest.mark.parametrize("sealed", [False, True])
def test_what_letters_have_in_common_is_encoded_once(
    *, sealed: bool, train: Order, make_site: Make, make_grid: Make
) -> None:
    """However many sites there are, and sealed or not, they share one copy of the arrays."""
    grid = make_grid([make_site(name) for name in "abcd"])
    mail = Mail(grid, Sealer(Ed25519PrivateKey.generate()) if sealed else None)
    messages = pushed_by(mail, grid, letters(train, 4))
    for name in ("shared", "base"):
        assert len({id(message.content[name]) for message in messages}) == 1
    assert all(("seal" in message.content) == sealed for message in messages)


def test_the_size_is_that_of_the_content(train: Order, make_site: Make, make_grid: Make) -> None:
    """Each node's letter is counted as it is sent: with the base where it has one."""
    mail = Mail(make_grid([make_site("a"), make_site("b")]))
    small = train._replace(base=None)
    sizes = mail.push([Letter(1, "", train), Letter(2, "", small)], lifetime=60.0)
    assert sizes == {
        1: size_in_bytes(order_to_record(train)),
        2: size_in_bytes(order_to_record(small)),
    }


def test_a_letter_is_under_way_until_its_answer_has_come(
    train: Order, make_site: Make, make_grid: Make
) -> None:
    """By kind and round of the order, so that rounds are not taken for one another."""
    grid = make_grid([make_site("a"), make_site("b")], deaf=["b"])
    mail = Mail(grid)
    mail.push(letters(train, 2), lifetime=60.0)
    mail.push([Letter(2, "", train._replace(round=2))], lifetime=60.0)
    assert mail.under_way("train", 1) == {1, 2}
    assert mail.under_way("train", 2) == {2}
    assert mail.under_way("evaluate", 1) == mail.under_way("train", 3) == set()
    (arrived,) = mail.pull()
    assert (arrived.sent.node, arrived.sent.kind, arrived.sent.round) == (1, "train", 1)
    assert mail.under_way("train", 1) == {2}
    grid.deaf = set()
    assert [(a.sent.node, a.sent.round) for a in mail.pull()] == [(2, 1), (2, 2)]
    assert mail.under_way("train", 1) == mail.under_way("train", 2) == set()
    assert list(mail.pull()) == []


@pytest.mark.parametrize("given", [[None], []])
def test_what_flower_did_not_take_is_not_under_way(
    given: list[None], train: Order, make_site: Make, make_grid: Make
) -> None:
    """None for one message, or nothing for all: nobody waits for an answer."""
    grid = make_grid([make_site("a")])
    grid.push_messages = lambda _messages: given
    mail = Mail(grid)
    assert set(mail.push(letters(train, 1), lifetime=60.0)) == {1}
    assert mail.under_way("train", 1) == set()
    assert list(mail.pull()) == []


@pytest.mark.parametrize("code", range(1, 9))
def test_flowers_error_is_a_reply_that_cannot_be_used(
    code: int, train: Order, make_site: Make, make_grid: Make
) -> None:
    """It is lost where order or reply went with a machine, and wrong where the client failed."""
    mail = Mail(make_grid([make_site("a", losses=[code])]))
    mail.push(letters(train, 1), lifetime=60.0)
    (arrived,) = mail.pull()
    assert isinstance(arrived.reply, ReplyError)
    assert str(code) in arrived.reply.message
    assert arrived.lost == (code in LOST)
    assert arrived.size == 0
    assert mail.under_way("train", 1) == set()


def test_exactly_what_is_gone_counts_as_lost() -> None:
    """A client that raised or cannot be loaded would do so again."""
    again = {ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION}
    gone = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE}
    killed = {ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED}
    assert gone | killed == set(LOST)
    assert not again & LOST


def test_a_malformed_reply_has_arrived_too(train: Order, make_site: Make, make_grid: Make) -> None:
    """It is no loss, and is counted with its bytes."""
    noise = order_to_record(train)
    mail = Mail(make_grid([make_site("a", base=BASE, spoil=lambda *_: noise)]))
    mail.push(letters(train, 1), lifetime=60.0)
    (arrived,) = mail.pull()
    assert isinstance(arrived.reply, ReplyError)
    assert not arrived.lost
    assert arrived.size == size_in_bytes(noise)


def test_a_reply_that_is_let_go_of_is_out_of_memory(
    train: Order, make_site: Make, make_grid: Make
) -> None:
    """When the next one comes, nothing here holds the one before."""
    mail = Mail(make_grid([make_site(name) for name in "abcd"]))
    mail.push(letters(train, 4), lifetime=60.0)
    held: list[weakref.ref[Any]] = []
    for arrived in mail.pull():
        assert all(reference() is None for reference in held)
        assert isinstance(arrived.reply, Reply)
        held.append(weakref.ref(arrived.reply.groups["shared"].record))  # type: ignore[attr-defined]
        del arrived
    assert len(held) == 4


def test_it_looks_the_less_often_the_longer_nothing_comes(
    train: Order, make_site: Make, make_grid: Make
) -> None:
    """The pause doubles with each look in vain, and is short again after a reply."""

    def pause() -> float:
        began = time.monotonic()
        mail.wait()
        return time.monotonic() - began

    grid = make_grid([make_site("a"), make_site("b")], deaf=["a", "b"])
    mail = Mail(grid)
    mail.push(letters(train, 2), lifetime=60.0)
    for number in range(3):
        assert list(mail.pull()) == []
        assert POLL_SECONDS * 2**number <= pause()
    grid.deaf = {"b"}
    assert len(list(mail.pull())) == 1
    assert pause() < POLL_SECONDS * 2**3
    assert POLL_SECONDS < LONGEST_POLL_SECONDS
