"""The program of a process that reads images for another, ``client.readers``.

A request is one line of JSON; the answer is one line of JSON, and behind it the pixels of each
picture, float32, row by row. The process ends with its standard input. It imports no torch: it
starts in a fraction of a second, and many of them take little memory.
"""

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from client.images import read_images
from client.looks import look_at, said_of
from client.pictures import Reading, Source
from common.errors import ImageError

OUT_OF_MEMORY = Path("/proc/self/oom_score_adj")
FIRST_TO_GO = "800"
"""Where memory runs out, Linux ends this process rather than the one that it reads for."""
READY = b"ready\n"
"""What the process says first, when it has imported all that it needs."""


def main() -> None:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of memory would hold an image
    with suppress(OSError):  # no /proc, or not Linux
        OUT_OF_MEMORY.write_text(FIRST_TO_GO, encoding="ascii")
    cv2.setNumThreads(1)  # the processes themselves share the cores
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some decoders print
        answers.write(READY)
        answers.flush()
        for line in sys.stdin.buffer:
            _answer(json.loads(line), answers)
            answers.flush()


def _answer(request: dict[str, Any], answers: IO[bytes]) -> None:
    try:
        source = _read(request)
    except ImageError as error:
        _say({"code": error.code, "error": error.message}, answers)
        return
    shapes = [picture.values.shape for picture in source.pictures]
    _say({"look": said_of(look_at(source)), "shapes": shapes}, answers)
    for picture in source.pictures:
        answers.write(np.ascontiguousarray(picture.values, np.float32).data)


def _read(request: dict[str, Any]) -> Source:
    reading = Reading(**request["reading"])
    if reading.window is not None:
        reading = reading._replace(window=(reading.window[0], reading.window[1]))
    return read_images(Path(request["path"]), reading, tuple(request["listed"]))


def _say(answer: dict[str, Any], answers: IO[bytes]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
