"""Prepared images on the site's own disk, so that no image is decoded twice.

An entry is what one source gives by one recipe, in one file, ``KEY.safetensors``. The key is a hash
of the source's content, of the version of the readers and of the recipe; paths and times are not in
it. Files get their name when they are whole. They are not synced, for their checksum tells of one
that a power cut has torn; what is damaged is dropped and made anew. Shapes: n images of a source,
C channels, S image size.
"""

import hashlib
import itertools
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from client.cache_entry import Entry, from_bytes, to_bytes
from client.config import SiteConfig
from client.owned_files import make_private_folder
from common.file_lock import locked
from common.files import canonical_json, sha256_of

READER_VERSION = 1
"""Raised whenever reading or preparing an image gives other values than before."""
STALE_SECONDS = 3600.0
"""Age at which a file that is no entry is a leftover, of a process that was killed or a version of
old."""
MEGABYTE = 1_000_000
_KEPT = 15 / 16  # of the bound, after an eviction
_UNSEEN = 1 / 32  # of the bound: what a process adds before it looks again at what others added
_ENTRY = ".safetensors"
_NAME = re.compile(r"\.?[0-9a-f]{64}\.(safetensors|json|npy|[a-z0-9_]+\.part)")

_PROCESS, _number = secrets.token_hex(8), itertools.count()  # tell files that are being written

_log = logging.getLogger(__name__)


class Size(NamedTuple):
    """What a cache holds."""

    entries: int
    bytes: int


class _File(NamedTuple):
    path: Path
    bytes: int
    time: float

    @property
    def whole(self) -> bool:
        """Whether it is an entry, and no leftover."""
        return self.path.suffix == _ENTRY


def content_of(path: Path) -> str:
    """Return the SHA-256 of a source: of a file's bytes, or of a folder's names and files.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [[file.relative_to(path).as_posix(), sha256_of(file)] for file in files]
    return hashlib.sha256(canonical_json(listed)).hexdigest()


def key_of(content: str, recipe: Mapping[str, Any]) -> str:
    """Return the key of an entry, 64 hexadecimal digits.

    Args:
        content: SHA-256 of the source.
        recipe: All that decides what becomes of the source, of JSON's types.
    """
    said = {"content": content, "reader": READER_VERSION, "recipe": recipe}
    return hashlib.sha256(canonical_json(said)).hexdigest()


def cache_of(config: SiteConfig, log: logging.Logger) -> "Cache | None":
    """Return the cache of a site; None where it is switched off or the folder cannot be used.

    Args:
        config: The hospital.
        log: The site's own log, which is told why there is none.
    """
    limit = config.limits.max_cache_mb * MEGABYTE
    return Cache(config.cache_folder, limit, log) if limit else None


class Cache:
    """The prepared images of a site; any number of threads and processes may share the folder.

    Nothing that goes wrong in it stops the work: it is said once, and then nothing is kept.

    Args:
        folder: Made for its owner alone where it is missing.
        max_bytes: Most bytes that are kept; what was used least recently goes first.
        log: Told when the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int, log: logging.Logger = _log) -> None:
        self.folder = folder
        self._max_bytes, self._log = max_bytes, log
        self._usable = True
        self._lock = threading.Lock()
        self._room = 0.0  # bytes that may come before the next look at the folder
        try:
            make_private_folder(folder)
            mode = folder.stat().st_mode & 0o777
        except OSError as error:
            self.stop(f"cannot be made ({error.strerror})")
        else:
            if mode & 0o077:
                self.stop(f"is open to other users (mode {mode:03o}); run chmod 700 on it")

    def get(self, key: str) -> Entry | None:
        """Return an entry, or None where there is none that is whole."""
        if not self._usable:
            return None
        file = self._path(key)
        try:
            entry = from_bytes(file.read_bytes())
            if entry is not None:
                os.utime(file)  # used just now
        except FileNotFoundError:
            return None
        except OSError as error:
            self.stop(f"cannot be read ({error.strerror})")
            return None
        if entry is None:
            self._log.warning("an entry of the cache is damaged and will be made anew")
            file.unlink(missing_ok=True)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry, unless it alone is larger than the bound; older ones may go for it."""
        if not self._usable:
            return
        data = to_bytes(entry)
        if len(data) > self._max_bytes * _KEPT:
            return
        try:
            with self._lock:
                self._room -= len(data)
                if self._room < 0:
                    self._room = self._make_room(len(data))
            self._write(key, data)
        except OSError as error:
            self.stop(f"cannot be written ({error.strerror})")

    def scratch(self) -> IO[bytes]:
        """Return a new file without a name, which goes with the process.

        Raises:
            OSError: It cannot be made.
        """
        return tempfile.TemporaryFile(dir=self.folder)

    def stop(self, why: str) -> None:
        """Go on without the cache, and say so once."""
        with self._lock:
            told, self._usable = not self._usable, False
        if not told:
            self._log.warning("the cache %s %s; nothing is kept", self.folder, why)

    def size(self) -> Size:
        """Return what is kept.

        Raises:
            OSError: The folder cannot be read.
        """
        files = list(self._files())
        return Size(sum(file.whole for file in files), sum(file.bytes for file in files))

    def clear(self) -> Size:
        """Remove every entry and leftover, and nothing else; return what that was.

        Raises:
            OSError: The folder cannot be read or written.
        """
        with locked(self.folder / "lock"):
            found = self.size()
            for file in list(self._files()):
                file.path.unlink(missing_ok=True)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / (key + _ENTRY)

    def _write(self, key: str, data: bytes) -> None:
        """Write a file under a passing name, readable by its owner alone, and give it its own."""
        passing = self.folder / f".{key}.{_PROCESS}_{os.getpid()}_{next(_number)}.part"
        handle = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            passing.replace(self._path(key))
        except BaseException:
            passing.unlink(missing_ok=True)
            raise

    def _files(self) -> Iterator[_File]:
        """Yield the files that are a cache's, by their names."""
        with os.scandir(self.folder) as listed:
            for found in listed:
                if _NAME.fullmatch(found.name):
                    try:
                        state = found.stat(follow_symlinks=False)
                    except FileNotFoundError:  # another process was faster
                        continue
                    yield _File(Path(found.path), state.st_size, state.st_mtime)

    def _make_room(self, wanted: int) -> float:
        """Remove leftovers, and the entries that the bound has no room for; return what may come.

        A file that is no entry may be one that another process is writing, and is removed only
        when it is old.
        """
        bound, stale = self._max_bytes * _KEPT, time.time() - STALE_SECONDS
        with locked(self.folder / "lock"):
            files = sorted(self._files(), key=lambda file: file.time)
            total = sum(file.bytes for file in files)
            for file in files:
                if total + wanted > bound if file.whole else file.time < stale:
                    file.path.unlink(missing_ok=True)
                    total -= file.bytes
        return min(bound - total, self._max_bytes * _UNSEEN) - wanted
