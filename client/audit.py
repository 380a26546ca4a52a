"""The site's audit log: what was asked of the vault, by whom it was sealed, and what went out.

Whoever speaks to the vault can make it write a line, so lines that cost the writer nothing are
bounded: so many a minute, and one that counts the rest.
"""

import threading
import time
from pathlib import Path
from typing import Any

from common.chained_log import ChainedLog

AUDIT_FILE = "audit.jsonl"
FREE_LINES = 30
"""Lines a minute of what anybody can cause who reaches the socket."""
_WINDOW_SECONDS = 60.0
_TEXT = 120


class Audit:
    """The audit log in a site's state folder; any thread may write to it.

    Args:
        state: The site's state folder.

    Raises:
        ChainError: The log's end is damaged.
        OSError: It cannot be written.
    """

    def __init__(self, state: Path) -> None:
        self._log = ChainedLog(state / AUDIT_FILE)
        self._log.repair()  # all of it is verified on demand: it may be long
        self._lock = threading.Lock()
        self._began = 0.0
        self._written = 0
        self._left_out = 0

    def note(self, event: str, **values: Any) -> None:
        """Write a line that is always written: of a sealed order that was followed, or a start.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            self._log.append({"event": event, **values})

    def note_free(self, event: str, **values: Any) -> None:
        """Write a line of what costs its cause nothing, while there is room for it this minute.

        Texts are cut short: they may be anything.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            self._turn()
            if self._written >= FREE_LINES:
                self._left_out += 1
                return
            self._written += 1
            short = {k: v[:_TEXT] if isinstance(v, str) else v for k, v in values.items()}
            self._log.append({"event": event, **short})

    def settle(self, *, now: bool = False) -> None:
        """Write the line that counts the rest, when its minute is over or ``now``.

        Raises:
            ChainError: The log is damaged.
            OSError: It cannot be written.
        """
        with self._lock:
            self._turn(now=now)

    def _turn(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._began < _WINDOW_SECONDS:
            return
        if self._left_out:
            self._log.append({"event": "left_out", "lines": self._left_out})
        self._began, self._written, self._left_out = time.monotonic(), 0, 0
