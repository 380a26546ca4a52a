"""One daemon to a coordinator's folder: the lock that it holds, and by which it is known to run."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from common.errors import NotRunningError, ServiceError
from server.config import ServerConfig

ATTEMPTS = 10
PAUSE_SECONDS = 0.05


@contextmanager
def hold(config: ServerConfig) -> Iterator[None]:
    """Hold the folder; the kernel lets go when this process ends, however it does.

    Raises:
        ServiceError: Another daemon works in it.
    """
    handle = _open(config)
    try:
        if not _lock(handle):
            raise ServiceError(
                f"The coordinator in {config.folder} is running already.",
                remedy="See how it stands: rarefed-server status. Stop that one first.",
            )
        yield
    finally:
        os.close(handle)


def is_held(config: ServerConfig) -> bool:
    """Say whether a daemon works in the folder."""
    handle = _open(config)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True
    finally:
        os.close(handle)


def require(config: ServerConfig) -> None:
    """Refuse to go on while no daemon works in the folder.

    Raises:
        NotRunningError: None does.
    """
    if not is_held(config):
        raise NotRunningError(
            f"The coordinator in {config.folder} is not running.",
            remedy=f"Start it, in another window or as a service: rarefed-server start --folder "
            f"{config.folder}",
        )


def _open(config: ServerConfig) -> int:
    return os.open(config.folder / ".daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(handle: int) -> bool:
    for _ in range(ATTEMPTS):  # a command that merely looks holds it for a moment
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(PAUSE_SECONDS)
    return False
