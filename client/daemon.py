"""Serves the vault on a Unix socket: an order in, a reply out, and nothing else.

    POST /order   200  the reply, also where it is a refusal
                  400  no order     408  too slow     413  too large
                  503  busy with another order; ``Retry-After`` says when to come back
    all else      404 or 405

No answer but 200 has a body. Whoever may open the socket may be hostile: connections, sizes,
times and lines in the log are bounded, and one order is followed at a time.
"""

import asyncio
import contextlib
import logging
import os
import tempfile
from asyncio import wait_for
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from client.approvals import approved, load_pin
from client.config import SiteConfig
from client.socket_file import listen, only_one
from common.errors import OrderError, RarefedError, ServiceError

if TYPE_CHECKING:
    from client.vault import Vault

MAX_CONNECTIONS = 32
SILENCE_SECONDS = 10.0
"""A connection whose request has not begun by then is closed."""
UPLOAD_SECONDS = 60.0
"""Longest pause within an order that arrives."""
REPLY_SECONDS = 900.0
"""Longest time to take a reply away."""
RETRY_SECONDS = 2
_SETTLE_SECONDS = 10.0
_CHUNK = 1024 * 1024
_MEGABYTE = 1_000_000


def run(config: SiteConfig) -> None:
    """Serve the vault until the process is told to stop; the socket is there once it can answer.

    Raises:
        EnrolmentError: The hospital has not joined a coordinator under this name.
        DataError: The log cannot be written, there is no such device, or the list of approved
            studies cannot be read.
        ChainError: Ledger or audit log are damaged.
        ServiceError: The socket or the state folder cannot be used, or a vault runs already.
    """
    load_pin(config)
    approved(config)
    with only_one(config):
        from client.vault import Vault  # noqa: PLC0415 - torch: first what can fail at once

        try:
            vault = Vault(config)
        except OSError as error:
            raise ServiceError(
                f"Cannot use the state folder {config.state}: {error}.",
                remedy="Let the user who runs the vault own it: chown -R USER " + str(config.state),
            ) from error
        with listen(config) as listener:
            server = make_server(vault)
            server.run(sockets=[listener])
            if not server.started:
                raise ServiceError(
                    "The vault could not begin to serve.",
                    remedy=f"Its log {config.state / 'site.log'} says why.",
                )


def make_server(vault: "Vault") -> uvicorn.Server:
    """Return the server, which listens where its ``run`` is told to."""
    counter = _Counter(vault)
    app = Starlette(
        routes=[Route("/order", counter.order, methods=["POST"])],
        exception_handlers={HTTPException: counter.rejected, Exception: counter.failed},
        lifespan=counter.lifespan,
    )
    app.router.redirect_slashes = False
    log = logging.getLogger("uvicorn.error")
    log.handlers, log.propagate = [_ToLogs(vault)], False
    log.setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_BoundedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,  # a training is cut short: to redo it is safe
        )
    )


class _Counter:
    """Where orders are handed in, one at a time."""

    def __init__(self, vault: "Vault") -> None:
        self._vault = vault
        self._busy = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vault")

    async def order(self, request: Request) -> Response:
        """Take an order in, have it answered, and send the reply."""
        if self._busy:
            raise HTTPException(503, "busy", {"Retry-After": str(RETRY_SECONDS)})
        self._busy = True
        try:
            with _spool_file(self._vault.spool) as body:
                await self._take_in(request, body)
                loop = asyncio.get_running_loop()
                reply = await loop.run_in_executor(self._worker, self._vault.answer, body)
            return self._sent(reply)
        except OrderError as error:
            raise HTTPException(400, error.message) from error
        finally:
            self._busy = False

    async def _take_in(self, request: Request, body: Path) -> None:
        """Write the order to a file as it arrives.

        Raises:
            HTTPException: It is too large or too slow, or its sender went away.
        """
        limit = self._vault.config.limits.max_order_mb * _MEGABYTE
        missing = limit - int(request.headers.get("content-length", "0"))
        stream = request.stream()
        with body.open("wb") as file:
            try:
                while missing >= 0 and (chunk := await wait_for(anext(stream), UPLOAD_SECONDS)):
                    missing = limit - file.tell() - len(chunk)
                    file.write(chunk)
            except TimeoutError as error:
                raise HTTPException(408, "too slow") from error
            except ClientDisconnect as error:
                raise HTTPException(400, "broken off") from error
        if missing < 0:
            raise HTTPException(413, "too large")

    def _sent(self, reply: Path) -> Response:
        """Return a response that holds the reply's file open; one of the spool needs no name."""
        file = reply.open("rb")
        if reply.parent == self._vault.spool:
            reply.unlink()
        return _FileReply(file, _size(file))

    async def rejected(self, request: Request, error: Exception) -> Response:
        """Answer with the number alone, and note what was tried."""
        if not isinstance(error, HTTPException):
            raise error
        self._vault.audit.note_free(
            "rejected",
            status=error.status_code,
            method=request.method,
            path=request.url.path,
            why=error.detail,
        )
        headers = {**(error.headers or {}), "Connection": "close"}
        return Response(status_code=error.status_code, headers=headers)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer what nobody foresaw with a number; the words stay in the site's log."""
        self._vault.site.log.error("a request failed", exc_info=error)
        return await self.rejected(request, HTTPException(500, "failed"))

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Note the vault's begin and end, and now and then how much was left out of the log."""
        audit = self._vault.audit
        audit.note("started")
        settling = asyncio.create_task(self._settle())
        yield
        self._vault.config.socket.unlink(missing_ok=True)  # a signal may leave no other time
        settling.cancel()
        audit.settle(now=True)
        audit.note("stopped")

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE_SECONDS)
            with contextlib.suppress(OSError, RarefedError):
                self._vault.audit.settle()


@contextlib.contextmanager
def _spool_file(spool: Path) -> Iterator[Path]:
    """Give a new file, and remove it at the end."""
    handle, name = tempfile.mkstemp(dir=spool, prefix="order-")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink()


class _FileReply(Response):
    """A file as it lies on disk, piece by piece; it is closed whatever happens."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(
            headers={"Content-Length": str(size), "Connection": "close"},
            media_type="application/octet-stream",
        )
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        with self._file as file:
            async with asyncio.timeout(REPLY_SECONDS):
                start = {"status": self.status_code, "headers": self.raw_headers}
                await send({"type": "http.response.start", **start})
                while chunk := file.read(_CHUNK):
                    part = {"body": chunk, "more_body": True}
                    await send({"type": "http.response.body", **part})
                await send({"type": "http.response.body", "body": b""})


class _BoundedProtocol(H11Protocol):
    """HTTP/1.1 for few connections at once, none of which may be silent for long."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(SILENCE_SECONDS, self._hang_up)

    def send_400_response(self, msg: str) -> None:
        """Answer garbage with the number alone, as everything else is."""
        del msg
        super().send_400_response("")

    def _hang_up(self) -> None:
        if not self.cycle:  # no request has begun
            self.transport.abort()


class _ToLogs(logging.Handler):
    """Notes what never became a request, such as garbage; faults go to the site's own log."""

    def __init__(self, vault: "Vault") -> None:
        super().__init__()
        self._vault = vault

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.WARNING:
            self._vault.site.log.handle(record)
            return
        try:
            self._vault.audit.note_free("rejected", status=400, why=record.getMessage())
        except Exception:  # noqa: BLE001 - as the standard library's own handlers do
            self.handleError(record)


def _size(file: BinaryIO) -> int:
    """Return the length of an open file, and go to its begin."""
    size = file.seek(0, 2)
    file.seek(0)
    return size
