"""Where images are read: in this process, or in one apart that a bad file may crash."""

import fcntl
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from client.images import read_images
from client.looks import Look, look_at, look_from
from client.pictures import Reading
from client.reading_worker import READY
from common.errors import ImageError, ServiceError, SetAsideError

_CRASHED = "crashed the process that read it"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Else glibc gives the memory of each image back and takes it anew, page by page (mallopt(3)).
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024),
}
_PIPE_BYTES = 1 << 20
"""What Linux lets a pipe hold without privilege (pipe(7))."""
SECONDS = 60.0
"""How long one source may take to be read in a process apart."""


class Read(NamedTuple):
    """What a reader gives of one source."""

    look: Look
    pictures: Iterator[NDArray[np.float32]]
    """In [0, 1], each of shape (H, W) or (H, W, 3); to be taken before the next source is read."""


def read_here(path: Path, reading: Reading, listed: Sequence[int]) -> Read:
    """Read a source in this process.

    Raises:
        ImageError: As ``images.read_images``.
    """
    source = read_images(path, reading, listed)
    return Read(look_at(source), (picture.values for picture in source.pictures))


class Reader:
    """A process apart that reads images. It starts with the first, and again after a crash.

    One thread at a time may use it.

    Args:
        seconds: How long one source may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owed = 0  # pictures of the last source that nobody has taken yet

    def read(self, path: Path, reading: Reading, listed: Sequence[int]) -> Read:
        """Read a source.

        Raises:
            ImageError: As ``images.read_images``, or the process crashed or took too long.
            ServiceError: The process cannot be started.
        """
        request = {"path": str(path), "reading": reading._asdict(), "listed": list(listed)}
        process = self._started()
        began = time.monotonic()
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            answer = _ask(process, request)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            late = time.monotonic() - began >= self._seconds
            raise _lost(path, f"took more than {self._seconds:g} seconds" if late else _CRASHED)
        if "error" in answer:
            raise _refusal(answer)
        self._owed = len(answer["shapes"])
        return Read(look_from(answer["look"]), self._pictures(path, process, answer["shapes"]))

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process, self._owed = None, 0

    def _started(self) -> subprocess.Popen[bytes]:
        if self._owed or (self._process is not None and self._process.poll() is not None):
            self.close()
        if self._process is None:
            command = [sys.executable, "-P", "-m", "client.reading_worker"]
            self._process = subprocess.Popen(  # noqa: S603 - our own
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT,
            )
            _widen(self._process.stdout)
            if _pipe(self._process.stdout).readline() != READY:
                self.close()
                raise ServiceError(
                    "A process that reads images cannot be started.",
                    remedy=f"See what this says: {' '.join(command)} </dev/null",
                )
        return self._process

    def _pictures(
        self, path: Path, process: subprocess.Popen[bytes], shapes: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        for shape in shapes:
            values = np.empty(shape, np.float32)
            if _pipe(process.stdout).readinto(values.data.cast("B")) < values.nbytes:
                self.close()
                raise _lost(path, _CRASHED)
            self._owed -= 1
            yield values


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer to a request; None where the process has ended."""
    try:
        _pipe(process.stdin).write(json.dumps(request).encode() + b"\n")
        _pipe(process.stdin).flush()
    except BrokenPipeError:
        return None
    line = _pipe(process.stdout).readline()
    return json.loads(line) if line.endswith(b"\n") else None


def _widen(pipe: IO[bytes] | None) -> None:
    """Have a pipe hold an image, where the system allows it: two processes then wait less."""
    with suppress(AttributeError, OSError):  # another system than Linux, or no more room for it
        fcntl.fcntl(_pipe(pipe).fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _pipe(pipe: IO[bytes] | None) -> io.BufferedIOBase:
    return cast("io.BufferedIOBase", pipe)


def _lost(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{path}: {what}.", remedy="Export the image again, or take its row out of the manifest."
    )


def _refusal(answer: dict[str, Any]) -> ImageError:
    refused = SetAsideError if answer["code"] == SetAsideError.code else ImageError
    return refused(answer["error"])
