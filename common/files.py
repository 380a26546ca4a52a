"""Files that are whole or not there at all."""

import csv
import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import RarefedError


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Give a new file in place of ``path``: a reader sees the old one or all of the new one.

    What is yielded is a temporary file beside the target. When the block ends well it is synced
    and takes the name in one step, and the folder is synced too, so that the name survives a
    power cut; otherwise it is removed.

    Args:
        path: The file; its folder is made when it is missing.
        mode: Permission bits of the new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part."""
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON; a NaN or an infinity is refused (RFC 8259, section 6)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode(), mode=mode)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line and sync it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table with a header line (RFC 4180, but with bare line feeds)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_toml(path: Path, error: type[RarefedError], *, remedy: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: The file.
        error: Raised when it cannot be read or is no TOML.
        remedy: What to do about a file that cannot be read.

    Raises:
        RarefedError: Of the class ``error``.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"Cannot read {path}: {reason.strerror}.", remedy=remedy) from reason
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise error(
            f"{path} is no TOML file: {reason}.", remedy="Correct that line; see toml.io."
        ) from reason


def canonical_json(value: Any) -> bytes:
    """Return the one spelling of ``value`` that every machine agrees on, for digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
