"""Laws of the vault's socket: an order in, a reply out, and nothing else for anybody."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, RecordDict

from client import daemon
from client.config import SiteConfig
from client.daemon import MAX_CONNECTIONS, run
from client.socket_file import only_one
from client.vault import Vault
from common.arrays import digest
from common.bodies import read_body, write_body
from common.chained_log import ChainedLog
from common.errors import EnrolmentError, ServiceError
from common.messages import Order, Reply, reply_from_record
from common.study import Study

MakeStudy = Callable[..., Study]
MakeJoined = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
Sealed = Callable[..., RecordDict]
Serve = Callable[[SiteConfig], Vault]

SERVER = """
import sys
from pathlib import Path
from client.config import SiteConfig
from client.daemon import run
run(SiteConfig.load(Path(sys.argv[1])))
"""


@pytest.fixture
def joined(make_joined: MakeJoined, make_study: MakeStudy) -> SiteConfig:
    """A hospital whose vault takes orders of three megabytes."""
    config = make_joined(make_study())
    return config.model_copy(
        update={"limits": config.limits.model_copy(update={"max_order_mb": 3})}
    )


def client(config: SiteConfig) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(config.socket))
    return httpx.Client(transport=transport, base_url="http://vault", timeout=60)


def body_of(record: RecordDict, folder: Path) -> bytes:
    write_body(record, folder / "body")
    return (folder / "body").read_bytes()


def reply_of(content: bytes, folder: Path) -> Reply:
    (folder / "reply").write_bytes(content)
    return reply_from_record(read_body(folder / "reply"))


def audited(config: SiteConfig) -> list[dict[str, Any]]:
    return ChainedLog(config.state / "audit.jsonl").entries()


def rejections(config: SiteConfig) -> list[tuple[int, str, str]]:
    return [
        (entry["status"], entry.get("method", ""), entry.get("path", ""))
        for entry in audited(config)
        if entry["event"] == "rejected"
    ]


@contextlib.contextmanager
def connected(config: SiteConfig) -> Iterator[socket.socket]:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as raw:
        raw.connect(str(config.socket))
        raw.settimeout(30)
        yield raw


def received(raw: socket.socket) -> bytes:
    """Return all that comes until the vault hangs up."""
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: raw.recv(65536), b""))
    return b""


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Orders


def test_an_order_is_answered(
    joined: SiteConfig,
    serve: Serve,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """Every kind gets its reply, sent with its length; the spool is empty afterwards."""
    vault, study = serve(joined), make_study()
    with client(joined) as http:
        for kind in ("check", "train", "evaluate"):
            body = body_of(sealed(make_order(study, kind)), tmp_path)
            answer = http.post("/order", content=body)
            assert answer.status_code == 200
            assert int(answer.headers["content-length"]) == len(answer.content)
            reply = reply_of(answer.content, tmp_path)
            assert reply.refusal == ""
            assert (reply.declaration is not None) == (kind == "check")
        again = http.post("/order", content=body)
        assert again.content == answer.content
    assert list(vault.spool.iterdir()) == []


def test_a_refusal_is_an_answer(
    joined: SiteConfig,
    serve: Serve,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """Once an order was read, its courier gets a reply, if only a code."""
    vault = serve(joined)
    body = body_of(sealed(make_order(make_study()), site="site-b"), tmp_path)
    with client(joined) as http:
        answer = http.post("/order", content=body)
    assert answer.status_code == 200
    assert reply_of(answer.content, tmp_path).refusal == "seal"
    assert list(vault.spool.iterdir()) == []


# All else


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/order", 405),
        ("HEAD", "/order", 405),
        ("PUT", "/order", 405),
        ("DELETE", "/order", 405),
        ("OPTIONS", "/order", 405),
        ("TRACE", "/order", 405),
        ("POST", "/order/", 404),
        ("POST", "/order/../state/site.key", 404),
        ("POST", "//order", 404),
        ("GET", "/", 404),
        ("GET", "/state/site.key", 404),
        ("GET", "/../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("CONNECT", "/order", 405),
    ],
)
def test_there_is_nothing_else(
    method: str, path: str, status: int, joined: SiteConfig, serve: Serve
) -> None:
    """Any other request gets a number and not a word, and stands in the audit log."""
    serve(joined)
    with connected(joined) as raw:
        raw.sendall(f"{method} {path} HTTP/1.1\r\nHost: vault\r\n\r\n".encode())
        head, _, body = received(raw).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert body == b""
    assert b"server:" not in head.lower()
    assert [(found, how) for found, how, _ in rejections(joined)] == [(status, method)]


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}", b"{}" * 5000, os.urandom(9999)],
)
def test_what_is_no_order_gets_a_number(
    content: bytes, joined: SiteConfig, serve: Serve, tmp_path: Path
) -> None:
    """A body that is no record, or one without an order, is turned away without a word."""
    vault = serve(joined)
    other = body_of(RecordDict({"reply": ConfigRecord({})}), tmp_path)
    with client(joined) as http:
        for body in (content, other):
            answer = http.post("/order", content=body)
            assert (answer.status_code, answer.content) == (400, b"")
    assert list(vault.spool.iterdir()) == []
    assert rejections(joined) == [(400, "POST", "/order")] * 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 600,
        b"nonsense\r\n\r\n",
        b"POST /order HTTP/9.9\r\n\r\n",
        b"POST /order HTTP/1.1\r\n\r\n",
        b"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: -1\r\n\r\n",
        b"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /order HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: v\r\nX: " + b"x" * 200_000,
    ],
)
def test_what_is_no_http_ends_the_connection(
    garbage: bytes, joined: SiteConfig, serve: Serve
) -> None:
    """Garbage gets no more than a number, is noted, and the vault lives on."""
    vault = serve(joined)
    with connected(joined) as raw:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(garbage)
        assert received(raw)[:12] in {b"HTTP/1.1 400", b""}
    assert {status for status, _, _ in rejections(joined)} == {400}
    with client(joined) as http:
        assert http.get("/").status_code == 404
    assert list(vault.spool.iterdir()) == []


@pytest.mark.parametrize("announced", [False, True])
def test_an_order_too_large_is_turned_away(
    announced: bool,  # noqa: FBT001 - a parameter of the test
    joined: SiteConfig,
    serve: Serve,
) -> None:
    """It is cut off at the limit, whether its length was said or not, and leaves no file."""
    vault = serve(joined)

    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(65536)

    headers = {"Content-Length": str(64 * 65536)} if announced else {}
    with client(joined) as http:
        answer = http.post("/order", content=pieces(), headers=headers)
    assert (answer.status_code, answer.content) == (413, b"")
    assert list(vault.spool.iterdir()) == []


def test_one_order_at_a_time(
    joined: SiteConfig,
    serve: Serve,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """While one comes in, another is told when to come back, before it has sent its arrays."""
    serve(joined)
    body = body_of(sealed(make_order(make_study(), "check")), tmp_path)
    with connected(joined) as slow, client(joined) as http:
        head = f"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body[:100])
        until(lambda: any((joined.state / "spool").iterdir()))
        answer = http.post("/order", content=bytes(900_000))
        assert (answer.status_code, answer.content) == (503, b"")
        assert int(answer.headers["retry-after"]) > 0
        slow.sendall(body[100:])
        _, _, content = received(slow).partition(b"\r\n\r\n")
    assert reply_of(content, tmp_path).refusal == ""


def test_who_is_too_slow_is_cut_off(
    joined: SiteConfig, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that stops coming, and a connection that says nothing, make room for others."""
    monkeypatch.setattr(daemon, "UPLOAD_SECONDS", 0.3)
    monkeypatch.setattr(daemon, "SILENCE_SECONDS", 0.3)
    vault = serve(joined)
    with connected(joined) as slow, connected(joined) as silent, connected(joined) as half:
        slow.sendall(b"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: 9999\r\n\r\nxxx")
        half.sendall(b"POST /order HTTP/1.1\r\nHost:")
        assert received(slow).startswith(b"HTTP/1.1 408 ")
        assert received(silent) == b""
        assert received(half) == b""
    assert list(vault.spool.iterdir()) == []
    assert rejections(joined) == [(408, "POST", "/order")]


def test_a_flood_leaves_the_vault_alive_and_the_disk_empty(
    joined: SiteConfig,
    serve: Serve,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """Hundreds of connections, requests and bad orders later, an order is answered as ever."""
    vault = serve(joined)
    unsealed = sealed(make_order(make_study()))
    del unsealed["seal"]
    bad = body_of(unsealed, tmp_path)
    with contextlib.ExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                stack.enter_context(connected(joined))
    with client(joined) as http:
        for _ in range(100):
            assert http.get("/" + "x" * 5000).status_code == 404
            assert http.post("/order", content=bad).status_code == 200
        good = http.post("/order", content=body_of(sealed(make_order(make_study())), tmp_path))
    assert reply_of(good.content, tmp_path).refusal == ""
    assert list(vault.spool.iterdir()) == []
    assert len(audited(joined)) < 40
    assert audited(joined)[-1]["event"] == "answered"
    sizes = [(joined.state / name).stat().st_size for name in ("audit.jsonl", "site.log")]
    assert max(sizes) < 50_000


@pytest.mark.parametrize("sent", [0.5, 1.0])
def test_a_courier_that_goes_away_breaks_nothing(
    sent: float,
    joined: SiteConfig,
    serve: Serve,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """Gone within its order or before its reply, it finds one training when it is back."""
    vault = serve(joined)
    body = body_of(sealed(make_order(make_study())), tmp_path)
    with connected(joined) as gone:
        head = f"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: {len(body)}\r\n\r\n"
        gone.sendall(head.encode() + body[: int(sent * len(body))])
        until(lambda: any(vault.spool.iterdir()))
    until(lambda: not any(vault.spool.iterdir()))
    with client(joined) as http:
        answer = http.post("/order", content=body)
        while answer.status_code == 503:
            answer = http.post("/order", content=body)
    assert reply_of(answer.content, tmp_path).refusal == ""
    assert len(ChainedLog(joined.state / "ledger.jsonl").entries()) == 1


# A second user


PROBE = """
import os, socket, sys
os.setgid(int(sys.argv[3])); os.setgroups([int(sys.argv[3])]); os.setuid(int(sys.argv[4]))
found = []
for path in (sys.argv[2], sys.argv[2] + "/site.key", "/root", "/etc/shadow"):
    try:
        found.append(str(os.listdir(path) if os.path.isdir(path) else open(path).read()))
    except OSError as error:
        found.append(type(error).__name__)
try:
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    s.sendall(b"GET / HTTP/1.1\\r\\nHost: v\\r\\n\\r\\n"); found.append(s.recv(12).decode())
except OSError as error:
    found.append(type(error).__name__)
print(*found)
"""


@pytest.mark.parametrize(
    ("group", "answer"), [("nogroup", "HTTP/1.1 404"), ("", "PermissionError")]
)
def test_a_second_user_gets_to_the_socket_at_most(
    group: str, answer: str, make_joined: MakeJoined, make_study: MakeStudy, serve: Serve
) -> None:
    """In the socket's group it may ask; the state and its key it may not read either way."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        config = make_joined(make_study())
        config = config.model_copy(
            update={"socket": Path(folder) / "run/vault.sock", "socket_group": group}
        )
        state = Path(folder) / "state"
        shutil.copytree(config.state, state)
        (state / "site.key").write_text("secret")
        (state / "site.key").chmod(0o600)
        serve(config)
        arguments = [str(config.socket), str(state), str(nobody.pw_gid), str(nobody.pw_uid)]
        done = subprocess.run(
            ["/usr/bin/env", "-i", "/usr/bin/python3", "-c", PROBE, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split(maxsplit=4) == [*["PermissionError"] * 4, f"{answer}\n"]
        assert config.socket.stat().st_mode & 0o777 == (0o660 if group else 0o600)


# The process


def answers(config: SiteConfig) -> bool:
    try:
        with connected(config):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def process(config: SiteConfig) -> Iterator[subprocess.Popen[bytes]]:
    """Run the vault in a process of its own; give it once it answers."""
    command = [sys.executable, "-c", SERVER, str(config.state.parent)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        try:
            until(lambda: answers(config) or child.poll() is not None)
            assert child.poll() is None
            yield child
        finally:
            child.kill()


def stopped_while_training(config: SiteConfig, body: bytes, how: signal.Signals) -> None:
    """Start a vault, hand it an order, and stop it once the training stands in the ledger."""
    ledger = ChainedLog(config.state / "ledger.jsonl")
    before = len(ledger.entries())
    with process(config) as child, client(config) as http:
        thread = threading.Thread(target=failing, args=(http, body))
        thread.start()
        until(lambda: len(ledger.entries()) > before)
        began = time.monotonic()
        child.send_signal(how)
        assert child.wait(timeout=30) == -how
        assert time.monotonic() - began < 5
        thread.join()


@pytest.mark.slow  # torch is loaded twice over, in processes of their own
def test_a_vault_stopped_in_the_middle_of_a_training_redoes_it(
    make_joined: MakeJoined,
    make_study: MakeStudy,
    make_order: MakeOrder,
    sealed: Sealed,
    tmp_path: Path,
) -> None:
    """Killed or told to, it ends at once; the order gives later what it would have given."""
    study = make_study(training={"local_epochs": 50}, backbone={"normalisation": "local"})
    config = make_joined(study)
    body = body_of(sealed(make_order(study)), tmp_path)
    stopped_while_training(config, body, signal.SIGKILL)
    assert config.socket.exists()
    stopped_while_training(config, body, signal.SIGTERM)
    assert not config.socket.exists()
    events = [entry["event"] for entry in audited(config)]
    assert [event for event in events if event != "answered"] == ["started", "started", "stopped"]
    redone = reply_from_record(read_body(Vault(config).answer(tmp_path / "body")))
    assert redone.refusal == ""
    assert len(Vault(config).ledger.trainings(study.digest())) == 1
    undisturbed = config.model_copy(update={"state": config.state.with_name("undisturbed")})
    undisturbed.state.mkdir()
    for name in ("site.key", "coordinator.json", "approvals.json"):
        shutil.copy2(config.state / name, undisturbed.state / name)
    expected = reply_from_record(read_body(Vault(undisturbed).answer(tmp_path / "body")))
    assert digests(redone) == digests(expected)


def digests(reply: Reply) -> dict[Any, str]:
    return {name: digest(each) for name, each in (*reply.groups.items(), *reply.metrics.items())}


def failing(http: httpx.Client, body: bytes) -> None:
    with contextlib.suppress(httpx.TransportError):
        http.post("/order", content=body)


def test_what_can_fail_at_once_does(make_hospital: MakeJoined, make_joined: MakeJoined) -> None:
    """Not to have joined, or to run already, is told before anything heavy is loaded."""
    config = make_hospital("site-b")
    with pytest.raises(EnrolmentError, match="not joined"):
        run(config)
    config = make_joined()
    with only_one(config), pytest.raises(ServiceError, match="already runs"):
        run(config)
    command = "import sys; import client.daemon, client.approvals\n"
    command += "assert not {'torch', 'pydicom', 'client.site'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
