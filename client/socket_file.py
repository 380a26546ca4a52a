"""The vault's socket as a file: where it lies, who may use it, and that there is one vault."""

import contextlib
import fcntl
import grp
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from client.config import SiteConfig
from common.errors import ServiceError

LOCK_FILE = "vault.lock"
MAX_PATH_BYTES = 107
"""unix(7): ``sun_path`` has 108 bytes, one of them for the end."""


@contextlib.contextmanager
def only_one(config: SiteConfig) -> Iterator[None]:
    """Hold the state folder: a second vault would spend the same ledger and break the first.

    Files that are made while it is held are this user's alone. The lock falls with the process,
    however that ends.

    Raises:
        ServiceError: A vault runs already, or the folder cannot be used.
    """
    before = os.umask(0o077)
    try:
        handle = _locked(config.state / LOCK_FILE)
        try:
            yield
        finally:
            os.close(handle)
    finally:
        os.umask(before)


def _locked(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServiceError(
            f"Cannot write to {path.parent}: {error.strerror}.",
            remedy="Let the user who runs the vault write to the folder 'state' of site.toml.",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ServiceError(
            f"A vault already runs with the state folder {path.parent}.",
            remedy="Stop it first; 'rarefed-client status' tells which process it is.",
        ) from error
    return handle


def check_path(config: SiteConfig) -> None:
    """Refuse a path that no socket can have.

    Raises:
        ServiceError: It has more than ``MAX_PATH_BYTES`` bytes.
    """
    if len(os.fsencode(config.socket)) > MAX_PATH_BYTES:
        raise ServiceError(
            f"The path of the vault's socket is too long: {config.socket}",
            remedy=f"Set 'socket' in site.toml to one of at most {MAX_PATH_BYTES} bytes.",
        )


@contextlib.contextmanager
def listen(config: SiteConfig) -> Iterator[socket.socket]:
    """Bind the vault's socket, open to its group or to its user alone; remove it at the end.

    What a vault that was killed left there is replaced; call this while holding ``only_one``.

    Raises:
        ServiceError: The socket cannot be there, or there is no such group.
    """
    path, group = config.socket, _group_id(config.socket_group)
    check_path(config)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        try:
            _make_folder(path.parent, group)
            _refuse_other_file(path)
            path.unlink(missing_ok=True)
            listener.bind(str(path))  # nobody can connect before the server listens
            _give(path, group, 0o600 if group is None else 0o660)
        except OSError as error:
            raise ServiceError(
                f"Cannot make the vault's socket {path}: {error.strerror}.",
                remedy="Let the user who runs the vault write there, and be in the group that "
                "'socket_group' of site.toml names.",
            ) from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _refuse_other_file(path: Path) -> None:
    if path.exists() and not path.is_socket():
        raise ServiceError(
            f"{path} is in the way of the vault's socket.",
            remedy="Move it away, or set 'socket' in site.toml to another path.",
        )


def _group_id(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ServiceError(
            f"There is no group {name} on this machine.",
            remedy=f"Make it (groupadd {name}) and put the courier's user in it, or correct "
            "'socket_group' in site.toml.",
        ) from error


def _make_folder(folder: Path, group: int | None) -> None:
    """Make the socket's folder where there is none; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        _give(folder, group, 0o700 if group is None else 0o750)


def _give(path: Path, group: int | None, mode: int) -> None:
    if group is not None:
        os.chown(path, -1, group)
    path.chmod(mode)
