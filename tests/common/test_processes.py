"""Laws of supervised processes: restarted when they end, and gone with their supervisor."""

import itertools
import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common import processes
from common.errors import ServiceError
from common.process_table import Identity
from common.processes import Service, read_status, supervise

ROOT = Path(__file__).resolve().parents[2]
FAST = (0.05, 0.4)


@pytest.fixture(autouse=True)
def _fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TICK_SECONDS", 0.02)


def shell(folder: Path, name: str, script: str, grace: float = 1.0) -> Service:
    env = {"PATH": os.environ["PATH"], "HERE": str(folder)}
    return Service(name, ["sh", "-c", script], env, folder / f"{name}.log", grace=grace)


def python(folder: Path, name: str, script: str) -> Service:
    argv = [sys.executable, "-I", "-S", "-c", script]
    return Service(name, argv, {"HERE": str(folder)}, folder / f"{name}.log", grace=1.0)


def run_until(services: list[Service], folder: Path, done: Callable[[], bool]) -> None:
    """Supervise until ``done`` holds, at most ten seconds."""
    stop = threading.Event()
    began = time.monotonic()

    def tick() -> None:
        if done() or time.monotonic() - began > 10:
            stop.set()

    supervise(
        services, status_file=folder / "processes.json", stop=stop, on_tick=tick, backoff=FAST
    )
    assert time.monotonic() - began < 10


def alive(pid: int) -> bool:
    return Identity.of(pid).is_running()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_service_that_ends_is_started_again(tmp_path: Path) -> None:
    """A program that ends runs again, and the status file counts it and keeps its exit status."""
    service = shell(tmp_path, "short", "echo $$ >> $HERE/pids; exit 3")
    run_until([service], tmp_path, lambda: len(numbers(tmp_path / "pids")) >= 3)
    entry = json.loads((tmp_path / "processes.json").read_text())["short"]
    assert entry["restarts"] >= 2
    assert entry["last_exit"] == 3
    assert entry["pid"] is None


def test_the_wait_doubles_up_to_its_bound(tmp_path: Path) -> None:
    """The wait before a restart doubles from the first to the longest."""
    service = shell(tmp_path, "short", "date +%s%N >> $HERE/times; exit 1")
    run_until([service], tmp_path, lambda: len(numbers(tmp_path / "times")) >= 8)
    times = numbers(tmp_path / "times")
    waits = [(later - earlier) / 1e9 for earlier, later in itertools.pairwise(times)]
    for wait, expected in zip(waits, [0.05, 0.1, 0.2, *[0.4] * 4], strict=False):
        assert wait >= expected - 0.02
    assert min(waits[3:]) < 0.7  # a busy machine makes one longer, but not all of them


def test_one_service_does_not_disturb_another(tmp_path: Path) -> None:
    """A program that keeps ending leaves the others with the process that they have."""
    steady = shell(tmp_path, "steady", "echo $$ >> $HERE/steady; exec sleep 60")
    short = shell(tmp_path, "short", "echo $$ >> $HERE/short; exit 0")
    run_until([steady, short], tmp_path, lambda: len(numbers(tmp_path / "short")) >= 3)
    assert len(numbers(tmp_path / "steady")) == 1


def test_a_stop_lets_a_service_end_by_itself(tmp_path: Path) -> None:
    """At a stop SIGTERM comes first, and what the program does about it is waited for."""
    script = (
        "trap 'sleep 0.2; echo 1 > $HERE/tidy; exit 0' TERM; echo 1 > $HERE/up; sleep 60 & wait"
    )
    run_until([shell(tmp_path, "tidy", script)], tmp_path, (tmp_path / "up").exists)
    assert (tmp_path / "tidy").exists()


def test_a_service_that_ignores_the_stop_is_killed(tmp_path: Path) -> None:
    """After its grace a program is killed, with everything that it started."""
    script = "trap '' TERM; sleep 60 & echo $! > $HERE/child; echo $$ > $HERE/own; wait; sleep 60"
    service = shell(tmp_path, "stubborn", script, grace=0.2)
    run_until([service], tmp_path, (tmp_path / "own").exists)
    pids = numbers(tmp_path / "child") + numbers(tmp_path / "own")
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_killed_service_takes_its_children_along(tmp_path: Path) -> None:
    """Before a program is started again, what the one before had started is gone."""
    script = "sleep 60 & echo $! >> $HERE/child; echo $$ >> $HERE/own; wait"
    own, child = tmp_path / "own", tmp_path / "child"

    def done() -> bool:
        if len(numbers(own)) == 1 and alive(numbers(own)[0]):
            os.kill(numbers(own)[0], signal.SIGKILL)
        return len(numbers(own)) >= 2 and not alive(numbers(child)[0])

    run_until([shell(tmp_path, "parent", script)], tmp_path, done)


SUPERVISOR = """
import sys, threading
from pathlib import Path
from common.process_table import Identity
from common.processes import Service, supervise
folder = Path(sys.argv[1])
script = "sleep 60 & echo $! > $HERE/child; echo $$ > $HERE/own; wait"
env = {"PATH": "/usr/bin:/bin", "HERE": str(folder)}
service = Service("one", ["sh", "-c", script], env, folder / "one.log")
supervise([service], status_file=folder / "processes.json", stop=threading.Event())
"""


def test_a_killed_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    """The programs die with a supervisor that is killed hard; their children at the next start."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], cwd=ROOT)
    status = tmp_path / "processes.json"
    assert wait_for(lambda: (tmp_path / "own").exists() and "one" in read_status(status))
    assert read_status(status)["one"]["pid"] == numbers(tmp_path / "own")[0]
    supervisor.kill()
    supervisor.wait()
    (own,), (child,) = numbers(tmp_path / "own"), numbers(tmp_path / "child")
    assert wait_for(lambda: not alive(own))
    assert read_status(status)["one"]["pid"] is None

    run_until([], tmp_path, lambda: not alive(child))


def test_the_next_start_spares_a_stranger(tmp_path: Path) -> None:
    """A process that merely has the number of an old one is left alone."""
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        entry = {**Identity.of(stranger.pid).entry(), "ticks": "1"}
        (tmp_path / "processes.json").write_text(json.dumps({"old": entry}))
        processes.end_orphans(tmp_path / "processes.json")
        assert stranger.poll() is None
        assert read_status(tmp_path / "processes.json")["old"]["pid"] is None
    finally:
        stranger.kill()
        stranger.wait()


def test_children_inherit_no_descriptor(tmp_path: Path) -> None:
    """A program has its three standard descriptors and nothing of the supervisor's."""
    lent = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(lent, True)
    try:
        script = "ls /proc/self/fd > $HERE/fds.tmp; mv $HERE/fds.tmp $HERE/fds; exec sleep 60"
        run_until([shell(tmp_path, "one", script)], tmp_path, (tmp_path / "fds").exists)
    finally:
        os.close(lent)
    assert str(lent) not in (tmp_path / "fds").read_text().split()


def test_logs_and_files_are_private(tmp_path: Path) -> None:
    """Log, status and what a program writes are readable by their owner alone; logs append."""
    (tmp_path / "one.log").write_text("before\n")
    service = shell(tmp_path, "one", "echo out; echo err >&2; echo 1 > $HERE/made; exec sleep 60")
    run_until([service], tmp_path, (tmp_path / "made").exists)
    assert (tmp_path / "one.log").read_text() == "before\nout\nerr\n"
    for name in ("one.log", "made", "processes.json"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_a_long_log_is_cut_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that grows too long is moved aside, and the program goes on writing to a new one."""
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 1000)
    script = "while true; do echo 0123456789; sleep 0.002; done"
    older = tmp_path / "one.log.1"
    run_until([shell(tmp_path, "one", script)], tmp_path, older.exists)
    assert older.stat().st_size >= 1000
    assert older.stat().st_mode & 0o077 == 0


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A program that does not exist ends the supervision, and the others with it."""
    steady = shell(tmp_path, "steady", "exec sleep 60")
    missing = Service("missing", ["/no/such/program"], {}, tmp_path / "missing.log")
    with pytest.raises(ServiceError, match="missing cannot be started"):
        run_until([steady, missing], tmp_path, lambda: False)
    assert read_status(tmp_path / "processes.json")["steady"]["pid"] is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a program as another user")
def test_a_service_can_have_a_user_of_its_own() -> None:
    """A service with a user runs as that user, without the supervisor's groups."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o777)
        script = "id -u > $HERE/id; id -G >> $HERE/id; exec sleep 60"
        service = replace(shell(folder, "one", script), user="nobody")
        run_until([service], folder, lambda: len(numbers(folder / "id")) >= 2)
        entry = pwd.getpwnam("nobody")
        assert set(numbers(folder / "id")) == {entry.pw_uid, entry.pw_gid}
