"""A log whose lines follow from one another: one changed or missing in the middle shows.

Each line is a JSON object with the time, the values, the hash of the line before, and its own:

    {"at": "...", ..., "previous": "<64 hex digits>", "hash": "<64 hex digits>"}

``hash`` is the SHA-256 of the canonical JSON of all the rest. Lines that were cut off at the end
leave no gap; who fears that keeps a copy of the last hash elsewhere.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ChainError
from common.files import canonical_json, write_atomic

FIRST = "0" * 64
"""What the first line gives as the hash of the one before."""
_CHUNK = 64 * 1024
_COUNTED = 1024 * 1024
_OWN = frozenset({"at", "previous", "hash"})
_PRIVATE = 0o600


class Head(NamedTuple):
    """Where a log stands: who holds it can tell later whether the lines up to it were changed."""

    entries: int
    """How many lines it has."""
    head: str
    """Hash of the last of them; ``FIRST`` where there is none."""


class ChainedLog:
    """An append-only file of chained lines; several processes may write to it.

    Args:
        path: The file; it and its folder are made at the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, values: Mapping[str, Any]) -> str:
        """Add an entry, sync it and return its hash.

        A last line that was torn, by a power cut or a process killed while it wrote, is moved
        to a file of its own beside the log, and an entry ``torn`` with its SHA-256 says so.

        Args:
            values: What JSON can hold; ``at``, ``previous`` and ``hash`` are the log's own.

        Raises:
            ChainError: The last line is not as it was written.
            OSError: The file cannot be written.
        """
        if taken := _OWN & set(values):
            raise ValueError(f"{sorted(taken)} are the log's own")
        with self._opened(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as handle:
            end, previous = self._after_repair(handle)
            line, own = _line(values, previous)
            _put(handle, end, line)
        return own

    def repair(self) -> None:
        """Move a torn last line away as ``append`` does; do nothing where there is none.

        Raises:
            ChainError: The last whole line is not as it was written.
            OSError: The file cannot be written.
        """
        if self.path.exists():
            with self._opened(os.O_RDWR, fcntl.LOCK_EX) as handle:
                self._after_repair(handle)

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, verified from the first to the last; none when there is no file.

        Raises:
            ChainError: A line does not follow from the one before, or the last is torn.
            OSError: The file cannot be read.
        """
        if not self.path.exists():
            return []
        with self._opened(os.O_RDONLY, fcntl.LOCK_SH) as handle:
            text = os.pread(handle, os.fstat(handle).st_size, 0)
        *lines, rest = text.split(b"\n")
        found, previous = [], FIRST
        for number, line in enumerate(lines, start=1):
            entry = self._checked(line, number)
            if entry["previous"] != previous:
                raise self._damage(f"line {number} does not follow from the line before it")
            previous = entry["hash"]
            found.append(entry)
        if rest:
            raise self._damage(f"line {len(lines) + 1} is torn: its end is missing")
        return found

    def head(self) -> Head:
        """Return how many whole lines there are, and the hash of the last.

        The lines are counted anew each time, whoever has written, repaired or restored the file.

        Raises:
            ChainError: The last line is not as it was written.
            OSError: The file cannot be read.
        """
        if not self.path.exists():
            return Head(0, FIRST)
        with self._opened(os.O_RDONLY, fcntl.LOCK_SH) as handle:
            last, _ = _tail(handle, os.fstat(handle).st_size)
            lines, begin = 0, 0
            while piece := os.pread(handle, _COUNTED, begin):
                lines, begin = lines + piece.count(b"\n"), begin + len(piece)
        return Head(lines, FIRST if last is None else self._checked(last, None)["hash"])

    def holds(self, head: Head) -> bool:
        """Say whether the line of that number is as it was written, and has that hash.

        Only that line is looked at; where it has its hash, all before it had theirs.

        Raises:
            OSError: The file cannot be read.
        """
        if not head.entries or not self.path.exists():
            return head == (0, FIRST)
        with (
            self._opened(os.O_RDONLY, fcntl.LOCK_SH) as handle,
            os.fdopen(os.dup(handle), "rb") as f,
        ):
            line = next(islice(f, head.entries - 1, None), b"")
        try:
            found = self._checked(line.removesuffix(b"\n"), head.entries)
        except ChainError:
            return False
        return line.endswith(b"\n") and found["hash"] == head.head

    @contextmanager
    def _opened(self, flags: int, lock: int) -> Iterator[int]:
        if flags & os.O_CREAT:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, flags | os.O_CLOEXEC, _PRIVATE)
        try:
            fcntl.flock(handle, lock)  # falls with the descriptor
            yield handle
        finally:
            os.close(handle)

    def _after_repair(self, handle: int) -> tuple[int, str]:
        """Return where the whole lines end, and the last one's hash, once nothing is torn."""
        size = os.fstat(handle).st_size
        last, rest = _tail(handle, size)
        previous = FIRST if last is None else self._checked(last, None)["hash"]
        if not rest:
            return size, previous
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.torn-{number}")).exists():
            number += 1
        write_atomic(aside, rest, mode=_PRIVATE)
        torn = {"event": "torn", "file": aside.name, "sha256": hashlib.sha256(rest).hexdigest()}
        _put(handle, size - len(rest), _line(torn, previous)[0])
        return self._after_repair(handle)

    def _checked(self, line: bytes, number: int | None) -> dict[str, Any]:
        where = "the last line" if number is None else f"line {number}"
        try:
            entry = json.loads(line)
            rest = {name: value for name, value in entry.items() if name != "hash"}
            intact = hashlib.sha256(canonical_json(rest)).hexdigest() == entry["hash"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact or not isinstance(entry.get("previous"), str):
            raise self._damage(f"{where} is not as it was written")
        checked: dict[str, Any] = entry
        return checked

    def _damage(self, what: str) -> ChainError:
        return ChainError(
            f"{self.path}: {what}.",
            remedy="If only the end is torn, the next entry moves it aside. Otherwise keep the "
            "file, find out who changed it, and restore a backup.",
        )


def _line(values: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """Return an entry as a line, and its hash."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"at": at, **values, "previous": previous}
    own = hashlib.sha256(canonical_json(entry)).hexdigest()
    return json.dumps({**entry, "hash": own}, allow_nan=False).encode() + b"\n", own


def _put(handle: int, position: int, line: bytes) -> None:
    """Let the file end in ``line``, from ``position`` on."""
    while line:
        written = os.pwrite(handle, line, position)
        position, line = position + written, line[written:]
    os.ftruncate(handle, position)
    os.fsync(handle)


def _tail(handle: int, size: int) -> tuple[bytes | None, bytes]:
    """Return the last whole line, if there is one, and what stands behind it."""
    begin, text = size, b""
    while begin and text.count(b"\n") < 2:  # noqa: PLR2004 - of the line itself and the one before
        begin = max(0, begin - _CHUNK)
        text = os.pread(handle, size - begin, begin)
    *lines, rest = text.split(b"\n")
    return (lines[-1] if lines else None), rest
