"""Laws of the watch over a SuperNode that waits for ever."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from client import stall
from client.stall import StallWatch, is_sending, queued
from common.process_table import Identity

RECEIVED = "INFO : Receiving: train message (ID: 1)\nINFO : Received successfully\n"
SENDING = RECEIVED + "INFO : Sending: train message (ID: 2)\n"


@pytest.mark.parametrize(
    ("text", "sending"),
    [
        ("", False),
        (RECEIVED, False),
        (SENDING, True),
        (SENDING + "INFO : Sent successfully\n", False),
        (
            SENDING + "INFO : Run ID 3 is not in `RUNNING` status. Ignoring reply message 4.\n",
            False,
        ),
        (SENDING + "ERROR : Failed to send message 2: no line\n", False),
        (SENDING + "INFO : Starting Flower SuperNode\n", False),
        ("x" * 100_000 + SENDING, True),
    ],
)
def test_the_log_says_whether_a_reply_is_being_sent(
    text: str, *, sending: bool, tmp_path: Path
) -> None:
    """A reply is on its way from the line that says so to any line that ends it."""
    (tmp_path / "log").write_text(text, encoding="utf-8")
    assert is_sending(tmp_path / "log") is sending
    assert not is_sending(tmp_path / "none")


def test_what_waits_in_a_socket_is_seen() -> None:
    """Bytes that the other side does not take wait in the socket, and count."""
    code = (
        "import socket, sys;"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
        "s.setblocking(False);"
        "print('idle', flush=True); sys.stdin.readline();"
        "exec('try:\\n while True: s.send(bytes(65536))\\nexcept BlockingIOError: pass');"
        "print('full', flush=True); sys.stdin.readline()"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with subprocess.Popen(
            [sys.executable, "-c", code, port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            assert child.stdin
            assert child.stdout
            peer, _ = server.accept()
            with peer:
                assert child.stdout.readline() == "idle\n"
                assert list(queued(child.pid)) == [0]
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "full\n"
                assert max(queued(child.pid)) > 0
            child.kill()


@pytest.mark.parametrize("sending", [True, False])
def test_only_a_supernode_that_stalls_is_ended(
    *, sending: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says it sends, with no ClientApp and nothing to send, is asked to end; no other."""
    monkeypatch.setattr(stall, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(stall, "STALL_SECONDS", 0.0)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    (tmp_path / "log").write_text(SENDING if sending else RECEIVED, encoding="utf-8")
    node = subprocess.Popen(sleep, start_new_session=True)
    runner = subprocess.Popen(sleep, start_new_session=True)
    try:
        entries = {"supernode": node, "superexec": runner}
        status = {name: Identity.of(child.pid).entry() for name, child in entries.items()}
        (tmp_path / "status").write_text(json.dumps(status), encoding="utf-8")
        watch = StallWatch(tmp_path / "status", tmp_path / "log")
        watch()
        if sending:
            assert node.wait(10) == -15
        else:
            assert node.poll() is None
        assert runner.poll() is None
    finally:
        for child in (node, runner):
            child.kill()
            child.wait()
