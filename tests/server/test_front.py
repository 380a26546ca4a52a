"""Laws of the front, held by a real nginx before a small upstream: the couriers' calls, no more."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from flwr.superlink.routers.fleet.router import router
from starlette.routing import Route

from common.errors import ServiceError
from common.processes import Service, supervise
from server import front
from server.config import ServerConfig, init_folder
from server.rotation import rotate_server
from simulations.deployment import free_port

PULL = "/v1/fleet/pull-messages"
CALL = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n"


@dataclass
class Upstream:
    """Stands where SuperLink would, with its certificate, and notes what reaches it."""

    calls: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def serve(config: ServerConfig, seen: Upstream) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.calls.append(self.path)
            seen.headers.append(dict(self.headers))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", config.superlink_port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.loopback_certificate, config.loopback_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


@dataclass
class Running:
    """A front that runs."""

    config: ServerConfig
    upstream: Upstream
    service: Service

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.config.listen.rpartition(":")[2])

    def client(self) -> httpx.Client:
        """Give a client that trusts it as a site does."""
        trust = ssl.create_default_context(cafile=str(self.config.authorities))
        url = f"https://localhost:{self.port}"
        return httpx.Client(base_url=url, verify=trust, trust_env=False, timeout=10)

    def raw(self, text: str, version: ssl.TLSVersion | None = None, enough: int = 10_000) -> str:
        """Send exactly this text over TLS and return the answer, or the beginning of it."""
        context = ssl.create_default_context(cafile=str(self.config.authorities))
        if version is not None:
            context.minimum_version = context.maximum_version = version
            context.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection(("127.0.0.1", self.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(text.encode())
            return received(secure, enough)


def received(connection: socket.socket, enough: int = 10_000) -> str:
    data = b""
    with suppress(ConnectionError):
        while len(data) < enough and (part := connection.recv(enough - len(data))):
            data += part
    return data.decode(errors="replace")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if front.program() is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("front") / "coordinator"
    address = f"127.0.0.1:{free_port()}"
    config = init_folder(folder, "trial", address, superlink_port=free_port())
    config = config.model_copy(update={"max_body_mb": 8})
    upstream = Upstream()
    server = serve(config, upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service = front.front_service(config)
    assert service is not None
    stop = threading.Event()
    thread = threading.Thread(
        target=supervise,
        args=([service],),
        kwargs={"status_file": config.processes_file, "stop": stop},
    )
    thread.start()
    found = Running(config, upstream, service)
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                found.client().get("/").raise_for_status()
            except httpx.HTTPStatusError:
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield found
    finally:
        stop.set()
        thread.join()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> None:
    if "running" in request.fixturenames:
        request.getfixturevalue("running").upstream.calls.clear()


def test_the_list_of_calls_is_flowers_own() -> None:
    """What passes is every call of Flower's Fleet API but the two that change who takes part."""
    calls = {
        route.path.removeprefix("/v1/fleet/") for route in router.routes if isinstance(route, Route)
    }
    assert set(front.FLEET_CALLS) == calls - {"register-node", "unregister-node"}


@pytest.mark.parametrize("call", front.FLEET_CALLS)
def test_a_couriers_call_passes_unchanged(running: Running, call: str) -> None:
    """A courier's call reaches SuperLink with its body, and the answer comes back."""
    body = bytes(range(256)) * 64
    answer = running.client().post(f"/v1/fleet/{call}", content=body)
    assert (answer.status_code, answer.content) == (200, body)
    assert running.upstream.calls == [f"/v1/fleet/{call}"]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/health", "/docs", "/openapi.json", "/v1", "/v1/fleet", "/v1/fleet/"),
        *("/v1/control/list-runs", "/v1/control/start-run", "/v1/control/register-node"),
        *("/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/v2/fleet/pull-messages"),
        *("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/anything"),
        *("/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs"),
        *("/v1/fleet/%2E%2E%2Fcontrol/list-runs", "/v1/fleet/%252e%252e/control/list-runs"),
        *("/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet/..;/control/list-runs"),
        *("/v1/fleet/..\\control\\list-runs", "/v1/control/../fleet/pull-messages"),
        *("//v1/control/list-runs", "/v1//control/list-runs", "/v1/fleet//pull-messages"),
        *("//v1/fleet/pull-messages", "/./v1/fleet/pull-messages", "/v1/fleet/./pull-messages"),
        *("/v1/fleet/register%2dnode", "/v1/fleet/pull%2dmessages", "/v1/fleet/pull-messages/"),
        *("/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages?", "/v1/fleet/Pull-Messages"),
        *(
            "/V1/CONTROL/list-runs",
            "/v1/fleet/pull-messages%00",
            "/v1/fleet/pull-messages/../get-fab",
        ),
        *("/v1/fleet/pull-messages#/../../control", "/v1/fleet/pull-messages;a=b"),
        *("http://localhost/v1/control/list-runs", "https://127.0.0.1/v1/runtime/acquire-task"),
        *("http://localhost/v1/fleet/../control/list-runs", "*", "v1/fleet/pull-messages"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_nothing_else_passes(running: Running, path: str, method: str) -> None:
    """Every other path, however it is spelled, is refused and never reaches SuperLink."""
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
    answer = running.raw(f"{request}Connection: close\r\n\r\n")
    assert answer.split(" ", 2)[1] in ("400", "403")
    assert running.upstream.calls == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "post"])
def test_only_a_post_passes(running: Running, method: str) -> None:
    """Another method on a courier's path is refused."""
    request = f"{method} {PULL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
    answer = running.raw(f"{request}Connection: close\r\n\r\n")
    assert answer.split(" ", 2)[1] in ("400", "403", "405")
    assert running.upstream.calls == []


@pytest.mark.parametrize(
    "request_text",
    [
        f"{CALL}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{CALL}\r\n",
        f"{CALL}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        f"{CALL}Content-Length: 0\r\nContent-Length: 5\r\n\r\nabcde",
        f"{CALL}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "\x16\x03\x01garbage",
        "NONSENSE\r\n\r\n",
        f"POST {PULL} HTTP/1.1\r\n\r\n",
    ],
)
def test_a_smuggled_request_is_refused(running: Running, request_text: str) -> None:
    """A request whose end two servers could see in two places never reaches SuperLink as two."""
    answer = running.raw(request_text, enough=16)
    assert answer.split(" ", 2)[1] in ("400", "411", "501")
    assert running.upstream.calls == []


def test_an_oversized_body_is_refused(running: Running) -> None:
    """A body above the limit is refused by its announced length; one of the limit is not."""
    size = running.config.max_body_mb * 2**20
    assert running.raw(f"{CALL}Content-Length: {size + 1}\r\n\r\n", enough=12)[9:] == "413"
    assert running.upstream.calls == []
    assert running.client().post(PULL, content=bytes(size)).status_code == 200


def test_no_answer_without_tls(running: Running) -> None:
    """Plain HTTP on the port gets no answer at all."""
    with socket.create_connection(("127.0.0.1", running.port), 10) as plain:
        plain.sendall(f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert received(plain) == ""
    with socket.create_connection(("127.0.0.1", running.port), 10) as plain:
        plain.sendall(b"\x00\xff garbage \r\n\r\n" * 10)
        assert "200" not in received(plain)
    assert running.upstream.calls == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(running: Running, version: ssl.TLSVersion) -> None:
    """TLS 1.0 and 1.1 end in the handshake; 1.2 and 1.3 do not."""
    with pytest.raises(ssl.SSLError):
        running.raw(f"POST {PULL} HTTP/1.1\r\n\r\n", version)
    for good in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        request = f"{CALL}Content-Length: 0\r\nConnection: close\r\n\r\n"
        assert " 200 " in running.raw(request, good)


def test_a_stranger_is_not_trusted(running: Running) -> None:
    """A site of another federation does not take the front for its own."""
    other = ssl.create_default_context(cafile=str(running.config.loopback_authority))
    url = f"https://localhost:{running.port}"
    with (
        httpx.Client(base_url=url, verify=other, trust_env=False) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.post(PULL)


def test_the_front_says_who_called(running: Running) -> None:
    """What a caller claims about where it comes from is replaced by what the front sees."""
    claim = {"x-forwarded-for": "10.0.0.1", "forwarded": "for=10.0.0.1", "x-forwarded-proto": "a"}
    running.client().post(PULL, headers=claim)
    headers = {name.lower(): value for name, value in running.upstream.headers[-1].items()}
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert "forwarded" not in headers


def test_logs_hold_calls_but_no_bodies(running: Running) -> None:
    """A call and a refusal stand in the log, with neither body nor question."""
    running.client().post(PULL, content=b"SECRET-BODY")
    running.client().post("/v1/control/list-runs?SECRET-QUESTION", content=b"SECRET-BODY")
    time.sleep(0.2)
    text = running.service.log.read_text()
    assert f'"POST {PULL}" 200' in text
    assert '"POST /v1/control/list-runs" 403' in text
    assert "SECRET" not in text
    assert running.service.log.stat().st_mode & 0o077 == 0


def test_a_reload_takes_over_a_new_certificate(running: Running) -> None:
    """After new certificates were written, a reload shows the new one, and calls go on."""

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", running.port))

    before = shown()
    rotate_server(running.config)
    assert front.reload(running.config)
    seen, until = before, time.monotonic() + 60
    while seen == before and time.monotonic() < until:
        time.sleep(0.05)
        seen = shown()  # once: for a moment the old workers of nginx accept calls as well
    assert seen != before
    assert running.client().post(PULL).status_code == 200


def test_a_flood_is_slowed_and_refused(running: Running) -> None:
    """Connections beyond an address's share are refused with a status that couriers try again."""
    context = ssl.create_default_context(cafile=str(running.config.authorities))
    held = []
    try:
        for _ in range(running.config.connections_per_address + 3):
            plain = socket.create_connection(("127.0.0.1", running.port), 10)
            secure = context.wrap_socket(plain, server_hostname="localhost")
            held.append(secure)
            # Headers without the body that they announce: the connection stays in use.
            request = f"{CALL}Content-Length: 5\r\n\r\n"
            secure.sendall(request.encode())
        held[-1].settimeout(5)
        assert held[-1].recv(64).split(b" ", 2)[1] == b"503"
    finally:
        for connection in held:
            connection.close()


def test_a_flood_of_requests_is_refused(tmp_path: Path) -> None:
    """The configuration bounds the rate of one address, and what waits beyond it."""
    config = init_folder(tmp_path / "c", "trial", "127.0.0.1:21002")
    text = front.configuration(config.model_copy(update={"requests_per_second": 7}))
    assert "rate=7r/s" in text
    assert "burst=70 delay=7" in text


def test_without_nginx_only_loopback_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nginx a coordinator for others is refused, and a trial on this machine is not."""
    monkeypatch.setattr(front, "program", lambda: None)
    public = init_folder(tmp_path / "public", "trial", "fl.example.org:8443")
    with pytest.raises(ServiceError, match="start runs at every site"):
        front.front_service(public)
    other_port = init_folder(tmp_path / "other", "trial", "127.0.0.1:8443")
    with pytest.raises(ServiceError, match="SuperLink's own port"):
        front.front_service(other_port)
    trial = init_folder(tmp_path / "trial", "trial", "127.0.0.1:18443", superlink_port=18443)
    assert front.front_service(trial) is None


def test_a_front_that_does_not_run_is_not_told(tmp_path: Path) -> None:
    """A reload without a front says so, and harms no other process."""
    config = init_folder(tmp_path / "c", "trial", "127.0.0.1:21002")
    assert not front.reload(config)


def test_a_folder_that_nginx_would_misread_is_refused(tmp_path: Path) -> None:
    """A folder whose name would mean something in nginx's configuration is refused."""
    config = init_folder(tmp_path / "a folder;", "trial", "127.0.0.1:21002")
    with pytest.raises(ServiceError, match="nginx cannot be told"):
        front.configuration(config)
