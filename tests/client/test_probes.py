"""Laws of what the doctor asks of the network, on a real TLS server and a real proxy."""

import http.server
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from client import probes
from client.courier import Connection
from client.probes import (
    MAX_AHEAD,
    MAX_BEHIND,
    greet,
    judge_clock,
    network_findings,
    probe_connection,
    probe_name,
    probe_proxy,
    probe_tls,
    proxy_for,
)
from server.certificates import Issued, issue_server_certificate, new_authority

AUTHORITY = new_authority("trial")
Serve = Callable[..., int]
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    file = tmp_path / "authority.pem"
    file.write_bytes(AUTHORITY.certificate_pem)
    return file


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return what starts an HTTPS server that refuses every page; its port."""
    running = []

    def start(issued: Issued | None = None, *, ahead: float = 0.0, names: Any = None) -> int:
        names = names or ["localhost", "127.0.0.1"]
        issued = issued or issue_server_certificate(AUTHORITY, names)

        class Front(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response_only(403)
                stamp = datetime.now(UTC).timestamp() - ahead
                self.send_header("Date", formatdate(stamp, usegmt=True))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        (tmp_path / "server.pem").write_bytes(issued.key_pem + issued.certificate_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that refuse
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return int(server.server_address[1])

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


class Proxy:
    """A proxy that knows CONNECT alone, and writes down what it was asked."""

    def __init__(self, *, status: str = "200 OK", hosts: dict[str, str] | None = None) -> None:
        self.asked: list[str] = []
        self.heads: list[str] = []
        self._status, self._hosts = status, hosts or {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:  # noqa: D102 - says it all
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._tunnel, args=[client], daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (more := client.recv(4096)):
                    return
                head += more
            line = head.decode().splitlines()[0]
            self.asked.append(line.removesuffix(" HTTP/1.1").removesuffix(" HTTP/1.0"))
            self.heads.append(head.decode())
            client.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
            if not self._status.startswith("200"):
                return
            host, port = line.split()[1].rsplit(":", 1)
            with socket.create_connection((self._hosts.get(host, host), int(port))) as server:
                back = threading.Thread(target=_copy, args=[server, client], daemon=True)
                back.start()
                _copy(client, server)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Return the maker of a proxy that the environment then names."""
    made = []

    def make(**settings: Any) -> Proxy:
        made.append(Proxy(**settings))
        monkeypatch.setenv("HTTPS_PROXY", made[-1].url)
        return made[-1]

    yield make
    for one in made:
        one.close()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_good_chain_is_green(serve: Serve, authority: Path) -> None:
    """A certificate of the site's own authority is trusted, and its end is told in days."""
    issued = issue_server_certificate(AUTHORITY, ["localhost"], days=90.5)
    finding, greeting = probe_tls(f"localhost:{serve(issued)}", authority)
    assert finding.ok
    assert not finding.remedy
    assert "in 90 days" in finding.message
    assert greeting is not None
    assert greeting.expires == issued.certificate.not_valid_after_utc


def test_a_certificate_near_its_end_is_told_of(serve: Serve, authority: Path) -> None:
    """Below thirty days the line stays green, and says who must do what."""
    issued = issue_server_certificate(AUTHORITY, ["localhost"], days=29)
    finding, _ = probe_tls(f"localhost:{serve(issued)}", authority)
    assert finding.ok
    assert "rotate" in finding.remedy


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("issued", "message", "remedy"),
    [
        (
            issue_server_certificate(
                AUTHORITY, ["localhost"], days=1, start=NOW - timedelta(days=9)
            ),
            "expired",
            "rotate",
        ),
        (
            issue_server_certificate(AUTHORITY, ["localhost"], start=NOW + timedelta(days=9)),
            "not yet valid",
            "clock",
        ),
        (issue_server_certificate(AUTHORITY, ["elsewhere.test"]), "ostname mismatch", "the name"),
        (issue_server_certificate(new_authority("foe"), ["localhost"]), "certificate", "authority"),
    ],
    ids=["expired", "not yet valid", "other name", "other authority"],
)
def test_a_bad_chain_is_red(
    issued: Issued, message: str, remedy: str, serve: Serve, authority: Path
) -> None:
    """What is wrong with a certificate has a remedy of its own, and nothing more is asked."""
    finding, greeting = probe_tls(f"localhost:{serve(issued)}", authority)
    assert not finding.ok
    assert message in finding.message
    assert remedy in finding.remedy
    assert greeting is None


def test_what_is_no_tls_is_red(authority: Path) -> None:
    """A port that answers without TLS is told as that."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    finding, _ = probe_tls(f"localhost:{server.server_address[1]}", authority)
    server.shutdown()
    server.server_close()
    assert not finding.ok
    assert "no TLS connection" in finding.message


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bad_authority_is_red(content: str | None, serve: Serve, authority: Path) -> None:
    """Without a readable authority there is nothing to trust."""
    if content is None:
        authority.unlink()
    else:
        authority.write_text(content)
    finding, _ = probe_tls(f"localhost:{serve()}", authority)
    assert not finding.ok
    assert finding.remedy


def test_the_limits_of_the_clock_are_those_of_flower() -> None:
    """Flower's own constants, and no guess, decide when a clock is red."""
    assert SYSTEM_TIME_TOLERANCE == MAX_AHEAD
    assert TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE == MAX_BEHIND


@pytest.mark.parametrize(
    ("ahead", "ok", "advice"),
    [
        (0.4, True, False),
        (-2.0, True, False),
        (3.0, True, True),
        (-200.0, True, True),
        (5.5, False, True),
        (-306.0, False, True),
    ],
)
def test_the_clock(ahead: float, *, ok: bool, advice: bool) -> None:
    """A clock beyond Flower's limits is red, one that drifts towards them is told of."""
    finding = judge_clock(ahead)
    assert finding.ok == ok
    assert bool(finding.remedy) == advice


def test_a_coordinator_without_a_date_is_no_fault() -> None:
    """Where nothing can be compared, nothing is red."""
    assert judge_clock(None).ok


@pytest.mark.parametrize("ahead", [-100.0, 0.0, 40.0])
def test_the_clock_is_measured_to_a_second(ahead: float, serve: Serve) -> None:
    """The difference is found within a second: a date has no fractions."""
    found = greet(f"localhost:{serve(ahead=ahead)}", AUTHORITY.certificate_pem.decode()).ahead
    assert found == pytest.approx(ahead, abs=1.0)


def test_a_closed_port_is_red() -> None:
    """A port where nobody listens is told with what to ask for."""
    finding = probe_connection("127.0.0.1", port := closed_port(), None)
    assert not finding.ok
    assert str(port) in finding.remedy


def test_a_name_is_looked_up() -> None:
    """A name that is there is told with its address, one that cannot be is red."""
    assert "127.0.0.1" in probe_name("localhost", None).message
    assert not probe_name("a" * 64 + ".test", None).ok


def test_all_goes_through_the_proxy(
    serve: Serve, authority: Path, proxy: Callable[..., Proxy]
) -> None:
    """With a proxy in the environment nothing goes another way, not even the look-up of a name."""
    port = serve(names=["coordinator.test"])
    way = proxy(hosts={"coordinator.test": "127.0.0.1"})
    found = proxy_for("coordinator.test")
    assert probe_proxy(found).ok
    assert "proxy" in probe_name("coordinator.test", found).message
    assert probe_connection("coordinator.test", port, found).ok
    assert probe_tls(f"coordinator.test:{port}", authority)[0].ok
    assert set(way.asked) == {f"CONNECT coordinator.test:{port}"}
    assert len(way.asked) == 2


def test_a_proxy_that_refuses_is_red(proxy: Callable[..., Proxy]) -> None:
    """A proxy that will not connect is told with its own words."""
    proxy(status="403 Not allowed here")
    finding = probe_connection("coordinator.test", 443, proxy_for("coordinator.test"))
    assert not finding.ok
    assert "Not allowed here" in finding.message
    assert "proxy" in finding.message


def test_a_dead_proxy_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not answer is told, and the rest is not asked for."""
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{closed_port()}")
    connection = Connection(address="coordinator.test:443", site="site-a")
    findings = network_findings(connection, Path("/nowhere"))
    assert [(finding.name, finding.ok) for finding in findings] == [("proxy", False)]


def test_a_proxy_of_another_kind_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's client speaks to proxies by HTTP alone."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    assert not probe_proxy(proxy_for("coordinator.test")).ok


def test_a_password_of_the_proxy_is_used_and_never_shown(
    proxy: Callable[..., Proxy], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor logs in at the proxy (RFC 7617), and no line of it holds the password."""
    way, port = proxy(), serve()
    monkeypatch.setenv("HTTPS_PROXY", way.url.replace("//", "//anna:s%40cret@"))
    found = proxy_for("127.0.0.1")
    findings = [probe_proxy(found), probe_connection("127.0.0.1", port, found)]
    assert all(finding.ok for finding in findings)
    # base64 of "anna:s@cret"
    assert "Proxy-Authorization: Basic YW5uYTpzQGNyZXQ=" in way.heads[-1]
    assert not re.search("anna|cret", repr(findings))


@pytest.mark.parametrize(
    ("variables", "direct"),
    [
        ({"HTTPS_PROXY": "http://p:1"}, False),
        ({"https_proxy": "p:1"}, False),
        ({"ALL_PROXY": "http://p:1"}, False),
        ({"HTTP_PROXY": "http://p:1"}, True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "coordinator.test"}, True),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": ".test"}, True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "elsewhere.test"}, False),
        ({}, True),
    ],
)
def test_the_environment_is_read_as_httpx_reads_it(
    variables: dict[str, str], *, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor and Flower's client, which is httpx's, find the same proxy or none."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (proxy_for("coordinator.test") is None) == direct
    with httpx.Client() as client:
        own = client._transport_for_url(httpx.URL("https://coordinator.test:443/"))
        assert (own is client._transport) == direct


def test_the_doctor_stops_where_the_way_ends(authority: Path) -> None:
    """After the first red line nothing is asked that could not be answered."""
    connection = Connection(address=f"localhost:{closed_port()}", site="site-a")
    names = [finding.name for finding in network_findings(connection, authority.parent)]
    assert names == ["proxy", "name", "connection"]


def test_a_probe_ends_in_seconds(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts and says nothing does not hold the doctor up."""
    monkeypatch.setattr(probes, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = datetime.now(UTC)
        finding, _ = probe_tls(f"localhost:{silent.getsockname()[1]}", authority)
        assert not finding.ok
        assert datetime.now(UTC) - began < timedelta(seconds=3)
