"""A task's images by split, on disk or in memory, and the order in which training sees them.

Shapes: N images, C channels, S image size.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.cache import Cache
from client.findings import Finding
from client.gate import Terms, judge, log_verdict
from client.manifest import Row
from client.pictures import Facts
from client.reading_pass import RowRead, read_rows
from client.split import SPLITS
from client.stored_pixels import PixelWriter, StoredPixels
from common.errors import EmptyManifestError
from common.seeds import stream
from common.study import Task
from common.training import Training


class Origin(NamedTuple):
    """Where one prepared image came from; for the hospital's eyes."""

    row: Row
    """The manifest's row; one of several images of it."""
    part: str
    """Which part of the source it is; see ``Picture.part``."""
    facts: Facts
    """What the source's header says."""


@dataclass(frozen=True, eq=False)
class Images:
    """The prepared images of one split; the same only as itself."""

    pixels: Tensor | StoredPixels
    """Values in [0, 1], float16, shape (N, C, S, S)."""
    labels: Tensor
    """Index of the class, int64, shape (N,)."""
    patients: tuple[str, ...]
    """Keyed hash of each image's patient, N of them."""
    origins: tuple[Origin, ...] = ()
    """Where each image came from, N of them; empty for images that no site read."""

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
    """Rows that the gate left out; the site's log names them."""
    findings: tuple[Finding, ...] = ()
    """What the gate found."""


@dataclass
class _Part:
    """What the rows of one split gave."""

    writer: PixelWriter
    reads: list[RowRead] = field(default_factory=list)
    """One for each row, without its pixels."""
    origins: list[Origin] = field(default_factory=list)
    """One for each image."""


def load_task(
    rows: Mapping[str, Sequence[Row]],
    task: Task,
    *,
    size: int,
    terms: Terms,
    workers: int,
    log: logging.Logger,
    cache: Cache | None = None,
    apart: bool = False,
) -> TaskData:
    """Read and prepare every image of a task. A row with several gives each its label and patient.

    A row that the gate does not let in is logged here, counted and left out.

    Args:
        rows: The manifest's rows by split.
        task: What the images are of.
        size: Height and width of the prepared images, in pixels.
        terms: What the hospital asks of the rows.
        workers: Rows that are read at a time.
        log: The site's own log, which alone names the files.
        cache: Where prepared images are kept; with None they are all in memory.
        apart: Read in processes apart.

    Raises:
        DataError: More rows have errors than the site allows; an ``ImageError`` where all of them
            are images that cannot be read.
        EmptyManifestError: Fewer than two training images are left.
        ServiceError: A process that reads cannot be started.
    """
    parts = {split: _Part(PixelWriter(size, cache)) for split in SPLITS}
    dealt = [(split, row) for split in SPLITS for row in rows[split]]
    reads = read_rows(
        [row for _, row in dealt], task, size=size, cache=cache, workers=workers, apart=apart
    )
    for (split, _), read in zip(dealt, reads, strict=True):
        _take(parts[split], read)
    verdict = judge({split: part.reads for split, part in parts.items()}, task, terms)
    log_verdict(verdict, [read for part in parts.values() for read in part.reads], log)
    if verdict.refusal is not None:
        raise verdict.refusal
    splits = {split: _images(part, verdict.left_out) for split, part in parts.items()}
    if len(splits["train"]) < 2:  # noqa: PLR2004 - batch norm cannot train on one image
        raise EmptyManifestError(
            f"{len(splits['train'])} of {len(dealt)} images are left to train on.",
            remedy="A task needs at least two training images; add patients to the manifest.",
        )
    return TaskData(splits, len(verdict.left_out), verdict.findings)


def _take(part: _Part, read: RowRead) -> None:
    """Take a row's images, and keep what is small."""
    if read.pixels is not None and read.look is not None:
        look = read.look
        pairs = zip(look.parts, read.pixels, strict=True)
        part.origins += [Origin(read.row, name, look.facts) for name, _ in pairs]
        part.writer.add(read.pixels)
    part.reads.append(read._replace(pixels=None))


def _images(part: _Part, left_out: Collection[int]) -> Images:
    origins, pixels = part.origins, part.writer.done()
    keep = np.array([origin.row.line not in left_out for origin in origins], bool)
    if not keep.all():
        pixels = (
            pixels[torch.from_numpy(keep)] if isinstance(pixels, Tensor) else pixels.chosen(keep)
        )
        origins = [origin for origin in origins if origin.row.line not in left_out]
    return Images(
        pixels,
        torch.tensor([origin.row.label for origin in origins], dtype=torch.int64),
        tuple(origin.row.patient for origin in origins),
        tuple(origins),
    )


@dataclass(frozen=True)
class Batch:
    """Which images of which task make one gradient step."""

    task: str
    indices: NDArray[np.int64]


def round_of_batches(
    images: Mapping[str, Images], training: Training, seed: int, *, steps: int | None = None
) -> list[Batch]:
    """Return the batches of one round's training, as the study asks for them.

    Args:
        images: Training images by task, at least 2 of each.
        training: Batch size, epochs, and how images are drawn.
        seed: The round's own.
        steps: Gradient steps to make instead of the study's epochs.
    """
    balanced = training.sampling == "balanced"
    return list(
        batches(
            {name: len(own) for name, own in images.items()},
            batch_size=training.batch_size,
            epochs=training.local_epochs,
            seed=stream(seed, "batches"),
            steps=steps,
            labels={name: own.labels.numpy() for name, own in images.items()} if balanced else {},
        )
    )


def batches(
    sizes: Mapping[str, int],
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    steps: int | None = None,
    labels: Mapping[str, NDArray[np.int64]] | None = None,
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
        labels: Classes of the images of tasks of which every class that there is shall come
            equally often; as many images as in an epoch are then drawn, with replacement.
    """
    epoch, made = 0, 0
    while epoch < epochs if steps is None else made < steps:
        for batch in _epoch(sizes, batch_size, stream(seed, epoch), labels or {}):
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


def _epoch(
    sizes: Mapping[str, int], batch_size: int, seed: int, labels: Mapping[str, NDArray[np.int64]]
) -> list[Batch]:
    rng = np.random.Generator(np.random.PCG64(seed))
    made: list[Batch] = []
    for task, size in sorted(sizes.items()):
        order = _drawn(labels[task], rng) if task in labels else rng.permutation(size)
        parts = np.array_split(order, _batches_in(size, batch_size))
        made += [Batch(task, indices) for indices in parts]
    return [made[i] for i in rng.permutation(len(made))]


def _drawn(labels_N: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw N images with replacement, each class that occurs as often as any other."""
    _, classes_N, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    shares_N = 1 / counts[classes_N] / len(counts)
    return rng.choice(len(labels_N), size=len(labels_N), p=shares_N)
