"""Files of a folder that change together: all of the old ones or, after a crash, all of the new."""

from collections.abc import Mapping
from pathlib import Path

from common.file_lock import locked
from common.files import sync, write_atomic

STAGED = "rotation"
"""Subfolder of the new files, from the moment that they are complete."""


def replace_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace several private files (mode 0600) so that a crash leaves no mixture for good.

    The new files are written beside the old ones; one rename of their folder decides that they
    count. Then each takes its name, in the order given. What a crash leaves to do, ``finish`` does.
    """
    finish(folder)
    preparing = folder / f".{STAGED}"
    _remove(preparing)  # of a crash before anything was decided
    preparing.mkdir(mode=0o700)
    for number, (name, content) in enumerate(files.items()):
        write_atomic(preparing / f"{number:02d}-{name}", content, mode=0o600)
    preparing.rename(folder / STAGED)
    sync(folder)
    finish(folder)


def finish(folder: Path) -> None:
    """Give staged files their names; nothing happens where there are none."""
    staged = folder / STAGED
    if not staged.exists():
        return
    with locked(folder / f".{STAGED}.lock"):
        if not staged.exists():  # another process was faster
            return
        for file in sorted(staged.iterdir()):
            file.replace(folder / file.name.partition("-")[2])
        sync(folder)
        staged.rmdir()


def _remove(folder: Path) -> None:
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
