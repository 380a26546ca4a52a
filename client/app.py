"""The courier: Flower's ClientApp, which carries orders to the vault and its replies back.

It travels in the coordinator's bundle and runs at the hospital as a user who may read nothing
there, in a new process for each message: no torch, no data, no decision. It always replies (to a
ClientApp that returns nothing, Flower's SuperNode waits for ever), and it sends codes alone.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from common.bodies import read_body, write_body

WAIT_SECONDS = 900.0
"""How long a vault may be away or busy; node config ``vault-wait`` says otherwise."""
MAX_BROKEN = 3
"""How often a vault may break off in the middle of one order."""
_PAUSES = (0.2, 5.0)
_CHUNK = 1024 * 1024

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Carry an order of the kind ``check``."""
    return carry(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Carry an order of the kind ``train``."""
    return carry(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Carry an order of the kind ``evaluate``."""
    return carry(message, context)


def carry(message: Message, context: Context) -> Message:
    """Bring an order to the vault and return its reply, or the code of why there is none."""
    head = dict(_head(message.content))
    try:
        reply = _exchange(message.content, context.node_config)
    except _NoOrderError:
        reply = _refusal(head, context, "order")
    except Exception as error:  # noqa: BLE001 - the coordinator is to learn a code, not the words
        print(f"The vault did not answer: {error!r}")  # noqa: T201 - stays in the SuperNode's log
        reply = _refusal(head, context, "vault")
    return Message(reply, reply_to=message)


class _NoOrderError(Exception):
    """What came is no order, as the vault says or as it can be seen here."""


def _exchange(record: RecordDict, node_config: dict[str, Any]) -> RecordDict:
    folder = Path(tempfile.mkdtemp(prefix="courier-"))
    try:
        try:
            write_body(record, folder / "order")
        except ValueError as error:
            raise _NoOrderError from error
        record.clear()  # Flower keeps the message: its arrays go, before the reply's come
        _post(folder, str(node_config["vault"]), float(node_config.get("vault-wait", WAIT_SECONDS)))
        (folder / "order").unlink()
        return read_body(folder / "reply")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _post(folder: Path, socket: str, wait: float) -> None:
    """Post the order until the vault has answered it.

    A training may take as long as it takes. Only a vault that is away, or busy with another
    order, is given up in the end.
    """
    broken, pause, deadline = 0, _PAUSES[0], time.monotonic() + wait
    transport = httpx.HTTPTransport(uds=socket)
    with httpx.Client(transport=transport, timeout=httpx.Timeout(None, connect=10.0)) as client:
        while True:
            try:
                if _post_once(client, folder):
                    return
            except (httpx.ConnectError, httpx.ConnectTimeout):
                pass
            except httpx.TransportError:
                broken += 1
                if broken >= MAX_BROKEN:
                    raise
                deadline = time.monotonic() + wait  # it was there, and will start again
            if time.monotonic() + pause > deadline:
                raise TimeoutError(f"for {wait:.0f} s the vault was away or busy")
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])


def _post_once(client: httpx.Client, folder: Path) -> bool:
    """Post the order and write down the reply; return False where the vault is busy."""
    order = folder / "order"
    headers = {"Content-Length": str(order.stat().st_size)}
    with client.stream("POST", "http://vault/order", content=_pieces(order), headers=headers) as r:
        if r.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return False
        if r.status_code in {httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE}:
            raise _NoOrderError
        if r.status_code != httpx.codes.OK:
            raise RuntimeError(f"status {r.status_code}")
        with (folder / "reply").open("wb") as file:
            for piece in r.iter_raw(_CHUNK):
                file.write(piece)
    return True


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _head(record: RecordDict) -> ConfigRecord:
    head = record.get("order")
    return head if isinstance(head, ConfigRecord) else ConfigRecord()


def _refusal(head: dict[str, Any], context: Context, code: str) -> RecordDict:
    """Return a reply that says no, about the order that came."""
    from common.messages import Reply, reply_to_record  # noqa: PLC0415 - pydantic: seldom needed

    site = str(context.node_config.get("site", "unknown"))
    digest, number = head.get("digest"), head.get("round")
    if isinstance(digest, str) and isinstance(number, int):
        with suppress(ValueError):  # pydantic's own is one: what came was no order
            return reply_to_record(Reply(site, digest, number, refusal=code))
    return reply_to_record(Reply(site, "0" * 64, 0, refusal=code))
