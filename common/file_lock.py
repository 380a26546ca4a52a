"""A lock between processes, on a file of its own."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ServiceError

_PAUSE_SECONDS = 0.02


@contextmanager
def locked(file: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Hold a lock; it ends with the block, or with the process.

    Args:
        file: Made if it is missing; nothing is written to it.
        seconds: How long to wait for another process; left out, for ever.

    Raises:
        ServiceError: Another process did not let go in time.
        OSError: The file cannot be opened.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if seconds is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            _wait_for(handle, file, seconds)
        yield
    finally:
        os.close(handle)  # and the lock falls


def _wait_for(handle: int, file: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ServiceError(
                    f"Another process has held {file} for {seconds:.0f} seconds.",
                    remedy="Stop the second program that works in this folder.",
                ) from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return
