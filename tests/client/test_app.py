"""Laws of the courier: it carries an order to the vault, and always replies."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import MAX_BROKEN, app
from client.config import SiteConfig
from client.vault import Vault
from common.arrays import digest
from common.bodies import read_body, write_body
from common.chained_log import ChainedLog
from common.messages import MESSAGE_TYPES, Kind, Order, Reply, reply_from_record
from common.study import Study

MakeStudy = Callable[..., Study]
MakeJoined = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
Sealed = Callable[..., RecordDict]
Serve = Callable[[SiteConfig], Vault]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let the courier's own files be in a folder, which must be empty in the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def carried(
    record: RecordDict, socket_path: Path, kind: Kind = "train", *, wait: float = 10.0
) -> RecordDict:
    """Return what Flower would carry back."""
    return called(record, {"vault": str(socket_path), "site": "site-a", "vault-wait": wait}, kind)


def called(record: RecordDict, node_config: dict[str, Any], kind: Kind = "train") -> RecordDict:
    """Call the ClientApp as Flower does, in a task of the run and node 1."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(record, dst_node_id=1, message_type=MESSAGE_TYPES[kind])
    reply = app(message, Context(1, 1, node_config, RecordDict(), {}))
    assert not reply.has_error()
    return reply.content


def refused(study: Study, code: str) -> Reply:
    return Reply("site-a", study.digest(), 1, refusal=code)


@pytest.mark.parametrize("kind", ["check", "train", "evaluate"])
def test_an_order_goes_to_the_vault_and_its_reply_comes_back(
    kind: Kind,
    make_study: MakeStudy,
    make_joined: MakeJoined,
    make_order: MakeOrder,
    sealed: Sealed,
    serve: Serve,
    tmp_path: Path,
) -> None:
    """What comes back is what the vault answers, to the byte."""
    study = make_study()
    vault = serve(make_joined(study))
    record = sealed(make_order(study, kind))
    write_body(record, tmp_path / "body")
    found = carried(record, vault.config.socket, kind)
    assert len(record) == 0  # Flower keeps the message: its arrays would be in memory for nothing
    expected = read_body(vault.answer(tmp_path / "body"))
    assert reply_from_record(found).refusal == ""
    assert list(found) == list(expected)
    if kind != "check":
        assert dict(found) == dict(expected)


def test_a_refusal_of_the_vault_is_carried_like_any_reply(
    make_study: MakeStudy,
    make_joined: MakeJoined,
    make_order: MakeOrder,
    sealed: Sealed,
    serve: Serve,
) -> None:
    """The courier adds nothing to it."""
    study = make_study()
    vault = serve(make_joined())
    found = carried(sealed(make_order(study)), vault.config.socket)
    assert reply_from_record(found) == refused(study, "not_approved")


def test_a_vault_that_comes_late_is_waited_for(
    make_study: MakeStudy,
    make_joined: MakeJoined,
    make_order: MakeOrder,
    sealed: Sealed,
    serve: Serve,
) -> None:
    """The order waits until the vault has started."""
    study = make_study()
    config = make_joined(study)
    replies: list[RecordDict] = []
    record = sealed(make_order(study, "check"))
    courier = threading.Thread(target=lambda: replies.append(carried(record, config.socket)))
    courier.start()
    time.sleep(0.5)
    serve(config)
    courier.join()
    assert reply_from_record(replies[0]).declaration is not None


def test_a_busy_vault_is_waited_for(
    make_study: MakeStudy,
    make_joined: MakeJoined,
    make_order: MakeOrder,
    sealed: Sealed,
    serve: Serve,
) -> None:
    """Three couriers at once each get the reply, one after the other, of one training."""
    study = make_study()
    vault = serve(make_joined(study))
    order, replies = make_order(study), list[RecordDict]()

    def carry() -> None:
        replies.append(carried(sealed(order), vault.config.socket))

    couriers = [threading.Thread(target=carry) for _ in range(3)]
    for courier in couriers:
        courier.start()
    for courier in couriers:
        courier.join()
    assert [reply_from_record(reply).refusal for reply in replies] == [""] * 3
    changes = {digest(reply_from_record(reply).groups["shared"]) for reply in replies}
    assert len(changes) == 1
    assert len(ChainedLog(vault.config.state / "ledger.jsonl").entries()) == 1


def test_a_vault_that_stays_away_is_told_by_a_code(
    make_study: MakeStudy, make_order: MakeOrder, sealed: Sealed, tmp_path: Path
) -> None:
    """After its time, which the node's configuration gives, the reply is the code ``vault``."""
    study = make_study()
    began = time.monotonic()
    found = carried(sealed(make_order(study)), tmp_path / "none.sock", wait=0.5)
    assert time.monotonic() - began < 5
    assert reply_from_record(found) == refused(study, "vault")


@contextlib.contextmanager
def peer(path: Path, answer: bytes) -> Iterator[list[int]]:
    """Be a vault that reads a little of each order, answers anything and hangs up."""
    calls: list[int] = []
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    calls.append(len(connection.recv(100)))
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield calls
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    ("answer", "times", "code"),
    [
        (b"", MAX_BROKEN, "vault"),
        (b"nonsense", MAX_BROKEN, "vault"),
        (OK + b"1000\r\n\r\nhalf", MAX_BROKEN, "vault"),
        (OK + b"4\r\n\r\nbody", 1, "vault"),
        (OK + b"0\r\n\r\n", 1, "vault"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\nPATIENT-1", 1, "vault"),
        (b"HTTP/1.1 302 Oh\r\nLocation: /etc\r\nContent-Length: 0\r\n\r\n", 1, "vault"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\nPATIENT-1", 1, "order"),
        (b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", 1, "order"),
    ],
)
def test_a_vault_that_breaks_off_is_told_by_a_code(
    answer: bytes,
    times: int,
    code: str,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """It is tried a few times, not for ever; nothing that it said is in the reply."""
    study = make_study()
    with peer(tmp_path / "peer.sock", answer) as calls:
        found = carried(sealed(make_order(study)), tmp_path / "peer.sock")
    assert reply_from_record(found) == refused(study, code)
    assert len(calls) == times


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (RecordDict(), "order"),
        (RecordDict({"order": ConfigRecord({"digest": "x", "round": "y"})}), "seal"),
        (RecordDict({"shared": ArrayRecord({"a": Array(np.array(["text"]))})}), "order"),
        (RecordDict({"a\nb": ConfigRecord({})}), "order"),
    ],
)
def test_what_is_no_order_is_told_by_a_code(
    record: RecordDict, code: str, make_joined: MakeJoined, serve: Serve
) -> None:
    """Whether the courier sees it or the vault."""
    vault = serve(make_joined())
    reply = reply_from_record(carried(record, vault.config.socket))
    assert reply == Reply("site-a", "0" * 64, 0, refusal=code)


def test_a_courier_without_configuration_replies_too(
    make_study: MakeStudy, make_order: MakeOrder, sealed: Sealed
) -> None:
    """Even then Flower's node goes on, and the coordinator learns a code."""
    study = make_study()
    reply = reply_from_record(called(sealed(make_order(study)), {}))
    assert reply == refused(study, "vault")._replace(site="unknown")


def test_the_courier_loads_neither_torch_nor_the_data_code() -> None:
    """What the bundle imports at the hospital is Flower, httpx and common files."""
    code = "import sys, client.app\n"
    code += "heavy = {'torch', 'pydicom', 'PIL', 'timm', 'pydantic', 'safetensors', 'starlette'}\n"
    code += "print(sorted(heavy & set(sys.modules)))\n"
    code += "print(sorted(n for n in sys.modules if n.split('.')[0] in ('client', 'common')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert done[0] == "[]"
    assert done[1] == str(
        [
            "client",
            "client.app",
            "common",
            "common.arrays",
            "common.bodies",
            "common.safetensors_form",
            "common.wire_arrays",
        ]
    )
