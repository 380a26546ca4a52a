"""A task's images in memory, by split, and the order in which training sees them.

Shapes: N images, C channels, S image size.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.images import read_image
from client.manifest import Row
from client.preprocess import prepare
from client.split import SPLITS
from common.errors import EmptyManifestError, ImageError
from common.seeds import stream
from common.study import Task


@dataclass(frozen=True)
class Images:
    """The prepared images of one split."""

    pixels: Tensor
    """Values in [0, 1], float16, shape (N, C, S, S)."""
    labels: Tensor
    """Index of the class, int64, shape (N,)."""
    patients: tuple[str, ...]
    """Keyed hash of each image's patient, N of them."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_patients(self) -> int:
        """Number of different patients."""
        return len(set(self.patients))


@dataclass(frozen=True)
class TaskData:
    """One task's images at one site."""

    splits: Mapping[str, Images]
    unreadable: int
    """Images that were left out because they cannot be read; the site's log names them."""


def load_task(
    rows: Mapping[str, Sequence[Row]],
    task: Task,
    *,
    size: int,
    max_unreadable: float,
    workers: int,
    log: logging.Logger,
) -> TaskData:
    """Read and prepare every image of a task.

    An unreadable image is logged here, counted and left out.

    Args:
        rows: The manifest's rows by split.
        task: What the images are of.
        size: Height and width of the prepared images, in pixels.
        max_unreadable: Share of the rows, in [0, 1], that may be unreadable.
        workers: Threads that read.
        log: The site's own log, which alone names the files.

    Raises:
        ImageError: More rows are unreadable than the site allows; all of them are listed.
        EmptyManifestError: Fewer than two training images are left.
    """
    splits, failures = {}, []
    for split in SPLITS:
        splits[split], failed = _read(rows[split], task, size, workers)
        failures += failed
    for failure in failures:
        log.warning("left out: %s", failure)
    total = sum(len(rows[split]) for split in SPLITS)
    if len(failures) > max_unreadable * total:
        raise ImageError(
            f"{len(failures)} of {total} images cannot be read:\n"
            + "\n".join(f"  - {failure}" for failure in failures),
            remedy="Repair or remove them, or raise limits.max_unreadable in site.toml.",
        )
    if len(splits["train"]) < 2:  # noqa: PLR2004 - batch norm cannot train on one image
        raise EmptyManifestError(
            f"{len(splits['train'])} of {total} images are left to train on.",
            remedy="A task needs at least two training images; add patients to the manifest.",
        )
    return TaskData(splits, len(failures))


def _read(rows: Sequence[Row], task: Task, size: int, workers: int) -> tuple[Images, list[str]]:
    def read(row: Row) -> Tensor | ImageError:
        try:
            return prepare(read_image(row.path, modality=task.modality, window=task.window), size)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(read, rows))
    pixels, kept, failures = [], [], []
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, ImageError):
            failures.append(f"line {row.line}: {result.message}")
        else:
            pixels.append(result)
            kept.append(row)
    return Images(
        _stack(pixels, size),
        torch.tensor([row.label for row in kept], dtype=torch.int64),
        tuple(row.patient for row in kept),
    ), failures


def _stack(pixels: Sequence[Tensor], size: int) -> Tensor:
    """Stack images; where grey and colour are mixed, grey gets three equal channels."""
    channels = max((image.shape[0] for image in pixels), default=1)
    stacked = torch.empty((len(pixels), channels, size, size), dtype=torch.float16)
    for target, image in zip(stacked, pixels, strict=True):
        target.copy_(image.expand(channels, -1, -1))
    return stacked


@dataclass(frozen=True)
class Batch:
    """Which images of which task make one gradient step."""

    task: str
    indices: NDArray[np.int64]


def batches(
    sizes: Mapping[str, int], *, batch_size: int, epochs: int, seed: int, steps: int | None = None
) -> Iterator[Batch]:
    """Yield the batches of one round's training, tasks mixed, in an order that ``seed`` fixes.

    An epoch of n images makes ceil(n / batch_size) batches of nearly equal size, so that no
    batch holds a single image, which batch norm could not train on. Pairs cannot do that for an
    odd n: with a batch size of 2, one batch then holds three.

    Args:
        sizes: Number of training images by task, each at least 2.
        batch_size: Most images in a batch.
        epochs: How often each image is seen, unless ``steps`` is given.
        seed: Start of the random order.
        steps: Gradient steps to make instead, over as many epochs as that takes.
    """
    epoch, made = 0, 0
    while epoch < epochs if steps is None else made < steps:
        for batch in _epoch(sizes, batch_size, stream(seed, epoch)):
            if made == steps:
                return
            yield batch
            made += 1
        epoch += 1


def steps_per_epoch(sizes: Mapping[str, int], batch_size: int) -> int:
    """Return how many gradient steps see every image once."""
    return sum(_batches_in(size, batch_size) for size in sizes.values())


def _batches_in(size: int, batch_size: int) -> int:
    return max(1, min(-(-size // batch_size), size // 2))


def _epoch(sizes: Mapping[str, int], batch_size: int, seed: int) -> list[Batch]:
    rng = np.random.Generator(np.random.PCG64(seed))
    made = [
        Batch(task, indices)
        for task, size in sorted(sizes.items())
        for indices in np.array_split(rng.permutation(size), _batches_in(size, batch_size))
    ]
    return [made[i] for i in rng.permutation(len(made))]
