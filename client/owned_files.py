"""Files put into a folder that may belong to another user than the one who writes."""

import os
import secrets
from pathlib import Path


def put(folder: Path, name: str, content: bytes, *, mode: int) -> Path:
    """Write a file whole, or not at all; it belongs to whom the folder belongs to.

    The hospital's engineer enrols as root, into folders of users who run other people's code.
    So no link that such a user laid is followed: everything goes by the open folder, and a new
    file of a name that cannot be guessed takes the old one's place.

    Args:
        folder: It must exist, and must not be a link.
        name: Name in the folder.
        content: What is written.
        mode: Permission bits.

    Raises:
        OSError: The folder is missing or is a link, or cannot be written to.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    temporary = f".{name}.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        file = os.open(temporary, flags, 0o600, dir_fd=handle)
        try:
            with os.fdopen(file, "wb") as opened:
                _give(opened.fileno(), os.fstat(handle))
                os.fchmod(opened.fileno(), mode)
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, name, src_dir_fd=handle, dst_dir_fd=handle)
        except BaseException:
            os.unlink(temporary, dir_fd=handle)
            raise
        os.fsync(handle)
    finally:
        os.close(handle)
    return folder / name


def remove(folder: Path, name: str) -> None:
    """Remove a file, or the link of that name; nothing happens where there is none."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        os.unlink(name, dir_fd=handle)
    except FileNotFoundError:
        return
    finally:
        os.close(handle)


def make_private_folder(folder: Path) -> None:
    """Make a folder for its owner alone (0700); one that exists is left as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _give(file: int, folder: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.fchown(file, folder.st_uid, folder.st_gid)
