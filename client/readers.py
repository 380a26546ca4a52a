"""Where images are read: in this process, or in one apart that a bad file may crash."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from client.images import read_images
from client.looks import Look, look_at, look_from
from client.pictures import Reading
from client.reading_worker import NEXT, READY
from client.shared_picture import SharedPicture
from common.errors import ImageError, ServiceError, SetAsideError

_CRASHED = "crashed the process that read it"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Else glibc gives the memory of each image back and takes it anew, page by page (mallopt(3)).
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024),
}
_WORKER = "client.reading_worker"
_STARTING = 120.0  # seconds
_CHUNK = 1 << 16
SECONDS = 60.0
"""How long one source may take to be read in a process apart."""


class Read(NamedTuple):
    """What a reader gives of one source."""

    look: Look
    pictures: Iterator[NDArray[np.float32]]
    """In [0, 1], each of shape (H, W) or (H, W, 3). Each is there until the next one is taken, and
    all of them until the next source is read."""


def read_here(path: Path, reading: Reading, listed: Sequence[int]) -> Read:
    """Read a source in this process.

    Raises:
        ImageError: As ``images.read_images``.
    """
    source = read_images(path, reading, listed)
    return Read(look_at(source), (picture.values for picture in source.pictures))


class _Apart(NamedTuple):
    """A process that reads, and the memory in which it leaves pictures."""

    process: subprocess.Popen[bytes]
    memory: SharedPicture

    def says(self, seconds: float) -> bytes:
        """Return the next line that the process says; nothing if it has ended, or is late."""
        pipe, until = cast("IO[bytes]", self.process.stdout), time.monotonic() + seconds
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not ready.poll(1000 * left):
                return b""
            said = os.read(pipe.fileno(), _CHUNK)
            if not said:
                return b""
            line += said
        return line


class Reader:
    """A process apart that reads images. It starts with the first, and again after a crash.

    One thread at a time may use it.

    Args:
        seconds: How long one source may take, and each further picture of it.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._apart: _Apart | None = None

    def read(self, path: Path, reading: Reading, listed: Sequence[int]) -> Read:
        """Read a source.

        Raises:
            ImageError: As ``images.read_images``, or the process crashed or took too long.
            ServiceError: The process cannot be started.
        """
        request = {"path": str(path), "reading": reading._asdict(), "listed": list(listed)}
        apart = self._started()
        answer = json.loads(self._asked(apart, json.dumps(request).encode() + b"\n", path))
        if "error" in answer:
            raise _refusal(answer)
        return Read(look_from(answer["look"]), self._pictures(apart, path, answer["shapes"]))

    def close(self) -> None:
        """End the process, if there is one."""
        if self._apart is not None:
            self._apart.process.kill()
            self._apart.process.communicate()
            self._apart.memory.close()
        self._apart = None

    def _started(self) -> _Apart:
        if self._apart is not None and self._apart.process.poll() is not None:
            self.close()
        if self._apart is None:
            command, memory = [sys.executable, "-P", "-m", _WORKER], SharedPicture.create()
            process = subprocess.Popen(  # noqa: S603 - our own
                [*command, str(memory.file)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT,
                pass_fds=[memory.file],
            )
            self._apart = _Apart(process, memory)
            if self._apart.says(_STARTING) != READY:
                self.close()
                raise ServiceError(
                    "A process that reads images cannot be started.",
                    remedy=f"See what this says: {' '.join(command)} </dev/null",
                )
        return self._apart

    def _pictures(
        self, apart: _Apart, path: Path, shapes: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        for number, shape in enumerate(shapes):
            if number:
                self._asked(apart, NEXT, path)
            yield apart.memory.get(shape)

    def _asked(self, apart: _Apart, request: bytes, path: Path) -> bytes:
        """Return the line that answers a request.

        Raises:
            ImageError: The process crashed or took too long.
        """
        began = time.monotonic()
        try:
            cast("IO[bytes]", apart.process.stdin).write(request)
            answer = apart.says(self._seconds)
        except BrokenPipeError:
            answer = b""
        if not answer:
            self.close()
            late = time.monotonic() - began >= self._seconds
            raise _lost(path, f"took more than {self._seconds:g} seconds" if late else _CRASHED)
        return answer


def _lost(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{path}: {what}.", remedy="Export the image again, or take its row out of the manifest."
    )


def _refusal(answer: dict[str, Any]) -> ImageError:
    refused = SetAsideError if answer["code"] == SetAsideError.code else ImageError
    return refused(answer["error"])
