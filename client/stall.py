"""Restarts a SuperNode that waits for ever.

Where Flower's ClientApp process is killed while it hands its reply over, SuperNode has been told
of a reply whose arrays never come, and waits for them without end: it looks online, and takes no
message any more. That is seen from outside: it says that it is sending, no ClientApp is left, and
nothing waits in its sockets to be sent. A restart costs nothing, as the vault keeps the reply.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.process_table import group
from common.processes import read_status

LOOK_SECONDS = 5.0
STALL_SECONDS = 60.0
"""How long all signs must hold; a slow line has bytes in its sockets all the while."""
ENDING_SECONDS = 20.0
"""From SIGTERM to SIGKILL."""
_TAIL_BYTES = 64 * 1024
_ENDS = ("Sent successfully", "Ignoring reply message", "Failed to send message", "Starting Flower")


@dataclass
class StallWatch:
    """Looks after one courier's SuperNode; call it again and again.

    Args:
        status_file: What the supervisor says of its processes.
        log: SuperNode's log.
    """

    status_file: Path
    log: Path
    _look_at: float = 0.0
    _since: float = 0.0
    """When the signs began to hold; 0 while they do not."""
    _told: int = 0
    """The process that was asked to end."""

    def __call__(self) -> None:
        """Look, at most every five seconds, and end a SuperNode that has stalled."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        found = read_status(self.status_file)
        node, runner = (found.get(name, {}).get("pid") for name in ("supernode", "superexec"))
        if not node or not runner or not self._stalls(node, runner):
            self._since = 0.0
            return
        self._since = self._since or now
        if now - self._since < STALL_SECONDS:
            return
        again = self._told == node and now - self._since >= STALL_SECONDS + ENDING_SECONDS
        if again or self._told != node:
            self._told = node
            with suppress(ProcessLookupError):
                os.kill(node, signal.SIGKILL if again else signal.SIGTERM)

    def _stalls(self, node: int, runner: int) -> bool:
        alone = set(group(runner)) <= {runner}
        return alone and is_sending(self.log) and not any(queued(node))


def is_sending(log: Path) -> bool:
    """Tell whether the last that SuperNode's log says is that a reply is being sent."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return False
    return text.rfind("Sending: ") > max(text.rfind(end) for end in _ENDS)


def queued(pid: int) -> Iterator[int]:
    """Yield how many bytes wait to be sent in each TCP socket of a process (proc(5), net/tcp)."""
    own = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                own.add(str(entry.readlink()))
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
            for line in lines:
                fields = line.split()
                if f"socket:[{fields[9]}]" in own:
                    yield int(fields[4].split(":")[0], 16)
