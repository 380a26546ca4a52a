"""Keep the processes of a service running: start, watch, restart, stop (Linux).

A service is one program and everything that it starts: it gets a session of its own, so that
what it leaves behind can be found by its process group and ended with it. Nothing survives its
supervisor: the kernel ends each program when the supervisor dies (``prctl(2)``,
``PR_SET_PDEATHSIG``), and what a program killed so leaves behind is ended at the next start.
"""

import ctypes
import json
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import process_table
from common.errors import ServiceError
from common.files import write_json
from common.process_table import Identity

TICK_SECONDS = 0.2
STEADY_SECONDS = 60.0
"""A program that was up for so long starts again without having to wait longer."""
MAX_LOG_BYTES = 32 * 1024 * 1024
GIVE_MEMORY_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024)}
"""Environment of processes that models pass through: glibc (``mallopt(3)``) then takes each large
block from the kernel and gives it back. By itself it soon stops doing so, and keeps the gaps."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded here, as the child between fork and exec should do nothing but the call.
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Service:
    """A program to keep running.

    Args:
        name: What people call it; unique among those that are supervised together.
        argv: Program and arguments. Every local user can read them: no secrets.
        env: The whole environment of the program.
        log: Its standard output and error are appended here (mode 0600).
        user: Run it as this user; only root can.
        cwd: Its working folder; the supervisor's own when it is not given.
        grace: Seconds between SIGTERM and SIGKILL when it is stopped.
        orphaned: The signal that it gets when the supervisor dies. SIGKILL is certain; a program
            with workers that would go on without it (nginx) needs SIGTERM.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    user: str | None = None
    cwd: Path | None = None
    grace: float = 5.0
    orphaned: signal.Signals = signal.SIGKILL


@dataclass
class _Child:
    """One service at run time."""

    service: Service
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    """Reading of the monotonic clock."""
    since: str | None = None
    restarts: int = 0
    last_exit: int | None = None
    """Exit status of the last end; minus the signal when a signal ended it."""
    wait: float = 0.0
    """Seconds to wait before the next start."""
    due: float = field(default_factory=time.monotonic)
    """When to start it, by the monotonic clock."""


def supervise(
    services: Sequence[Service],
    *,
    status_file: Path,
    stop: threading.Event,
    on_tick: Callable[[], None] | None = None,
    backoff: tuple[float, float] = (1.0, 20.0),
) -> None:
    """Run all services until ``stop`` is set, and restart whichever ends.

    Call it from the main thread: the kernel ties the children to the thread that starts them.

    Args:
        services: What to run; started in this order, stopped in the reverse order.
        status_file: JSON by service name, written on every change: ``pid`` (null while it is
            down), ``since`` (UTC), ``restarts``, ``last_exit``. What a killed supervisor
            left running is found in it, so it must be the same file at every start.
        stop: Ends the supervision.
        on_tick: Called about five times a second in between; what it raises ends everything.
        backoff: First and longest wait in seconds before a restart; doubled at every end, and
            the first again once the program was up for a minute.

    Raises:
        ServiceError: A program does not exist or may not be run.
    """
    children = [_Child(service) for service in services]
    end_orphans(status_file)
    # Orphans of a program become our children, so that they can be waited for below.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        while not stop.is_set():
            # No short cut through any(): every child is looked at, at every tick.
            if sum([_tend(child, backoff) for child in children]):
                _write_status(status_file, children)
            if on_tick is not None:
                on_tick()
            stop.wait(TICK_SECONDS)
    finally:
        for child in reversed(children):
            _end(child)
        _write_status(status_file, children)


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; for the main thread of a daemon."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def read_status(status_file: Path) -> dict[str, dict[str, Any]]:
    """Return the status file's content; processes that are no longer there have ``pid`` null."""
    # After a hard kill or a power cut the file still names processes that are gone.
    return {
        name: entry if Identity.of_entry(entry).is_running() else {**entry, "pid": None}
        for name, entry in _entries(status_file).items()
    }


def end_orphans(status_file: Path) -> None:
    """Kill what a supervisor that was itself killed has left running."""
    for entry in _entries(status_file).values():
        process_table.kill_orphans(Identity.of_entry(entry))


def _entries(status_file: Path) -> dict[str, dict[str, Any]]:
    try:
        entries: dict[str, dict[str, Any]] = json.loads(status_file.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return entries


def _tend(child: _Child, backoff: tuple[float, float]) -> bool:
    """Start the program when it is due, and note when it has ended; True after a change."""
    now = time.monotonic()
    if child.process is None:
        if now < child.due:
            return False
        _start(child)
        return True
    status = child.process.poll()
    if status is None:
        _trim(child.service.log)
        return False
    process_table.kill_group(
        child.process.pid
    )  # what it started may hold a port, or still answer for it
    first, longest = backoff
    steady = now - child.started >= STEADY_SECONDS
    child.wait = first if steady or not child.wait else min(2 * child.wait, longest)
    child.due = now + child.wait
    child.restarts += 1
    child.last_exit, child.since, child.process = status, None, None
    return True


def _start(child: _Child) -> None:
    service = child.service
    service.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = os.open(service.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.fchmod(log, 0o600)
        child.process = subprocess.Popen(  # noqa: S603 - argv is the caller's, without a shell
            list(service.argv),
            env=dict(service.env),
            cwd=service.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=True,
            start_new_session=True,
            umask=0o077,
            user=service.user,
            **_groups_of(service.user),
            preexec_fn=_die_with(os.getpid(), service.orphaned),  # noqa: PLW1509 - see there
        )
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        raise ServiceError(
            f"{service.name} cannot be started: {error}",
            remedy=f"See that {service.argv[0]} is installed and may be run by this user.",
        ) from error
    finally:
        os.close(log)
    child.started = time.monotonic()
    child.since = datetime.now(UTC).isoformat(timespec="seconds")


def _die_with(parent: int, number: signal.Signals) -> Callable[[], None]:
    """Return what a child does between fork and exec, so that it cannot outlive its parent.

    Python warns of this hook where threads run: the child could wait for a lock that another
    thread held. The call below takes none, and daemons of ours have no other thread.
    """

    def tie() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return tie


def _end(child: _Child) -> None:
    """Ask the program to end, and after its grace kill it and all that it has started."""
    process = child.process
    if process is None:
        return
    until = time.monotonic() + child.service.grace
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(child.service.grace)
    # The rest of the grace is for what it started: a ServerApp of Flower's ends by itself
    # within a second of its SuperExec.
    while time.monotonic() < until and process_table.group(process.pid):
        time.sleep(TICK_SECONDS / 4)
        process_table.reap(process.pid)
    process_table.kill_group(process.pid)
    child.last_exit, child.since, child.process = process.wait(), None, None


def _trim(log: Path) -> None:
    """Keep a log within bounds: two files, the older one with ``.1`` at its end."""
    try:
        if log.stat().st_size < MAX_LOG_BYTES:
            return
    except FileNotFoundError:
        return
    # Copied and emptied, as the program holds the file open; it appends, so nothing is torn.
    older = log.with_name(f"{log.name}.1")
    shutil.copy(log, older)
    os.truncate(log, 0)


def _groups_of(user: str | None) -> dict[str, Any]:
    """Return the groups to run with: with the user, the supervisor's own are lost too."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}


def _write_status(path: Path, children: Sequence[_Child]) -> None:
    status = {}
    for child in children:
        pid = child.process.pid if child.process else None
        status[child.service.name] = {
            "pid": None,
            "since": child.since,
            "restarts": child.restarts,
            "last_exit": child.last_exit,
            **(Identity.of(pid).entry() if pid is not None else {}),
        }
    write_json(path, status, mode=0o600)
