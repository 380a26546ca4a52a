"""The program of a process that reads images for another, ``client.readers``.

A request is one line of JSON, and so is the answer; the first picture lies in the memory that both
share then. ``NEXT`` asks for the next one, and is answered when that lies there. The process ends
with its standard input. It imports no torch: it starts in a fraction of a second, and many of them
take little memory.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
from pydicom import config

from client.images import read_images
from client.looks import look_at, said_of
from client.pictures import Picture, Reading, Source
from client.shared_picture import SharedPicture
from common.errors import ImageError

OUT_OF_MEMORY = Path("/proc/self/oom_score_adj")
FIRST_TO_GO = "800"
"""Where memory runs out, Linux ends this process rather than the one that it reads for."""
READY = b"ready\n"
"""What the process says first, when it has imported all that it needs."""
NEXT = b"next\n"
"""Asks for the next picture of a source; the answer is the same line."""


def main() -> None:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of memory would hold an image
    with suppress(OSError):  # no /proc, or not Linux
        OUT_OF_MEMORY.write_text(FIRST_TO_GO, encoding="ascii")
    cv2.setNumThreads(1)  # the processes themselves share the cores
    config.settings.reading_validation_mode = config.IGNORE  # else it warns, which nobody would see
    memory: SharedPicture | None = None
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some decoders print
        answers.write(READY)
        answers.flush()
        left: Iterator[Picture] = iter(())
        for line in sys.stdin.buffer:
            memory = SharedPicture(int(sys.argv[1])) if memory is None else memory
            if line == NEXT:
                answer = NEXT
            else:
                answer, left = _answer(json.loads(line))
            for picture in islice(left, 1):
                memory.put(picture.values)
            answers.write(answer)
            answers.flush()


def _answer(request: dict[str, Any]) -> tuple[bytes, Iterator[Picture]]:
    """Return the answer to a request, and the pictures that were read."""
    try:
        source = _read(request)
    except ImageError as error:
        return _line({"code": error.code, "error": error.message}), iter(())
    shapes = [picture.values.shape for picture in source.pictures]
    said = {"look": said_of(look_at(source)), "shapes": shapes}
    return _line(said), iter(source.pictures)


def _read(request: dict[str, Any]) -> Source:
    reading = Reading(**request["reading"])
    if reading.window is not None:
        reading = reading._replace(window=(reading.window[0], reading.window[1]))
    return read_images(Path(request["path"]), reading, tuple(request["listed"]))


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


if __name__ == "__main__":
    main()
