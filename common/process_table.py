"""What the kernel says of processes (proc(5)): which one it is, who is in its group, end them."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

KILL_SECONDS = 5.0
"""How long to wait for killed processes to be gone."""


@dataclass(frozen=True)
class Identity:
    """One process and no other: numbers of processes come again, with another start."""

    pid: int | None
    boot: str
    """The kernel's name of this boot."""
    ticks: str
    """When the process started, in clock ticks since boot."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the identity of the process that has this number now."""
        fields = _stat(pid)
        return cls(pid, _boot(), fields[19] if fields else "")

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> Self:
        """Return what ``entry`` wrote down."""
        return cls(entry.get("pid"), entry.get("boot", ""), entry.get("ticks", ""))

    def entry(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"pid": self.pid, "boot": self.boot, "ticks": self.ticks}

    def exists(self) -> bool:
        """Say whether the process still has its number; a zombie has."""
        return self.pid is not None and bool(self.ticks) and Identity.of(self.pid) == self

    def is_running(self) -> bool:
        """Say whether the process exists and is no zombie."""
        return self.pid is not None and self.exists() and _stat(self.pid)[0] != "Z"


def group(pid: int) -> list[int]:
    """Return the processes of a group that are no zombies."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields and fields[0] != "Z" and fields[2] == str(pid):
            members.append(int(folder.name))
    return members


def kill_group(pid: int) -> None:
    """Kill every process of a group, and wait until they are gone."""
    until = time.monotonic() + KILL_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(pid, signal.SIGKILL)
            reap(pid)
            if not group(pid):
                return
            time.sleep(0.01)


def reap(pid: int) -> None:
    """Take note of the ended orphans of a group, whose leader has been waited for."""
    with suppress(ChildProcessError):
        while os.waitpid(-pid, os.WNOHANG)[0]:
            pass


def kill_orphans(leader: Identity) -> None:
    """Kill what is left of the group and session that ``leader`` once opened.

    A group keeps its number for as long as one process is in it, and the kernel gives the number
    to no other process meanwhile. So it is the leader's while the leader exists, and also when
    nothing has the leader's number but a session of that number does.
    """
    if leader.pid is None or leader.boot != _boot():
        return
    taken_by_another = Path(f"/proc/{leader.pid}").exists() and not leader.exists()
    sessions = {_stat(member)[3:4] == [str(leader.pid)] for member in group(leader.pid)}
    if not taken_by_another and True in sessions:
        kill_group(leader.pid)


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on, none when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold spaces


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
