"""Reads the rows of a manifest once, several at a time, and streams what they give.

Rows that the cache holds are not decoded again. Of the others each is decoded in a process apart,
so that a file that crashes a decoder, or keeps it busy for ever, costs nothing but its row.
Decoders of JPEG 2000 hold Python's lock all the time, so threads would not read them any faster.
Shapes: n images of a row, C channels, S image size.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from client.cache import Cache, content_of, key_of
from client.cache_entry import Entry
from client.config import SiteConfig
from client.looks import Look, look_from, said_of
from client.manifest import Row
from client.pictures import Reading, reading_of
from client.preprocess import prepare
from client.readers import Read, Reader, read_here
from common.errors import ImageError
from common.imaging import prepared
from common.study import Task

MOST_READERS = 8
"""Processes, where the site names no number: each takes some 150 MB beside its image."""
_AHEAD = 2  # rows for each worker that are read before their turn comes


class RowRead(NamedTuple):
    """What one row of the manifest gave."""

    row: Row
    error: str = ""
    """Why it cannot be read, for the hospital's eyes; empty where it was."""
    code: str = ""
    """Code of that error: ``image``, or ``set_aside`` of an object that is no image."""
    content: str = ""
    """SHA-256 of the source's bytes."""
    look: Look | None = None
    pixels: NDArray[np.float16] | None = None
    """Prepared images, in [0, 1], shape (n, C, S, S). Who keeps many rows lets go of them."""


ReadSource = Callable[[Path, Reading, Sequence[int]], Read]
Lend = Callable[[], AbstractContextManager[ReadSource]]


def workers_of(config: SiteConfig) -> tuple[int, bool]:
    """Return how many rows of a site are read at a time, and whether in processes apart."""
    cores = len(os.sched_getaffinity(0))
    if config.readers == 0:
        return config.threads or cores, False
    return config.readers or min(cores, MOST_READERS), True


def read_rows(
    rows: Sequence[Row],
    task: Task,
    *,
    size: int,
    cache: Cache | None,
    workers: int,
    apart: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Generator[RowRead, None, None]:
    """Read each row once and yield what it gave, in the order of the rows.

    Memory is bounded: a worker holds one source at a time, and few rows wait for their turn.

    Args:
        rows: Rows of a task's manifest.
        task: How its images are to be read and prepared.
        size: Height and width of the prepared images, in pixels.
        cache: Where prepared images are kept; None keeps none.
        workers: Rows that are read at a time.
        apart: Decode in processes apart, as many as there are workers.
        progress: Called with the number of rows that have been yielded.

    Raises:
        ServiceError: A process that reads cannot be started.
    """
    recipe = _recipe(task, size)
    with _readers(workers if apart else 0) as lend, ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[RowRead]] = deque()
        left = iter(rows)
        try:
            for number in range(1, len(rows) + 1):
                for row in islice(left, workers * _AHEAD - len(waiting)):
                    waiting.append(pool.submit(_row_read, row, task, size, recipe, cache, lend))
                found = waiting.popleft().result()
                if progress is not None:
                    progress(number)
                yield found
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _readers(processes: int) -> Iterator[Lend]:
    """Give what lends a reader to one thread at a time; without processes it reads right here."""
    if not processes:
        yield lambda: nullcontext(read_here)
        return
    readers = [Reader() for _ in range(processes)]
    free: SimpleQueue[Reader] = SimpleQueue()
    for reader in readers:
        free.put(reader)

    @contextmanager
    def lend() -> Iterator[ReadSource]:
        reader = free.get()
        try:
            yield reader.read
        finally:
            free.put(reader)

    try:
        yield lend
    finally:
        for reader in readers:
            reader.close()


def _row_read(
    row: Row, task: Task, size: int, recipe: Mapping[str, Any], cache: Cache | None, lend: Lend
) -> RowRead:
    try:
        content = content_of(row.path)
        key = key_of(content, {**recipe, "slices": row.slices, "laterality": row.laterality})
        entry = None if cache is None else cache.get(key)
        look = None if entry is None else _look(entry)
        if entry is None or look is None:
            with lend() as read:
                found = read(row.path, reading_of(task), row.slices)
                look, pixels = found.look, _prepared(row, task, size, found)
            entry = Entry(pixels, said_of(look))
            if cache is not None:
                cache.put(key, entry)
        return RowRead(row, content=content, look=look, pixels=entry.pixels)
    except ImageError as error:
        return RowRead(row, error.message, error.code)
    except FileNotFoundError:
        return RowRead(row, f"{row.path}: there is no such file.", ImageError.code)
    except OSError as error:
        why = error.strerror or type(error).__name__
        return RowRead(row, f"{row.path}: cannot be read ({why}).", ImageError.code)


def _look(entry: Entry) -> Look | None:
    """Return the look of an entry; None where another version of the software wrote it."""
    try:
        return look_from(entry.said)
    except (KeyError, TypeError):
        return None


def _recipe(task: Task, size: int) -> dict[str, Any]:
    """Return what decides of all rows alike, beside a source's content, what becomes of them."""
    return {
        "reading": reading_of(task)._asdict(),
        "preparation": prepared(task.preparation, task.modality).model_dump(),
        "size": size,
    }


def _prepared(row: Row, task: Task, size: int, found: Read) -> NDArray[np.float16]:
    """Return a source's prepared images, all grey or all of three channels."""
    side = row.laterality or found.look.facts.laterality
    try:
        made = [
            prepare(values, size, task.preparation, task.modality, side).numpy()
            for values in found.pictures
        ]
    except (ValueError, RuntimeError, cv2.error) as error:
        raise ImageError(
            f"{row.path}: cannot be prepared ({type(error).__name__}: {error}).",
            remedy="Export the image again, or take its row out of the manifest.",
        ) from error
    if len(made) == 1:
        return np.ascontiguousarray(made[0])[None]
    channels = max(len(image) for image in made)
    return np.stack([np.broadcast_to(image, (channels, size, size)) for image in made])
