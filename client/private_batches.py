"""Which patients make a private gradient step, and how they are laid out for the network.

Shapes: n patients of a chunk, k images of each.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import SystemRandom

import numpy as np
from numpy.typing import NDArray

from client.dataset import Images

Picture = tuple[str, int]
"""A training image: its task, and its index among the task's images."""


@dataclass(frozen=True)
class Chunk:
    """Drawn patients that go through the network together.

    All have the same number of images of each task, so that one tensor holds them without gaps.
    """

    indices: Mapping[str, NDArray[np.int64]]
    """Indices of the images by task, shape (n, k of the task); a row is a patient."""

    @property
    def patients(self) -> int:
        """Number of patients, n."""
        return len(next(iter(self.indices.values())))

    @property
    def images_each(self) -> int:
        """Images of each patient, over all tasks."""
        return sum(indices.shape[1] for indices in self.indices.values())


def pictures_by_patient(images: Mapping[str, Images]) -> list[list[Picture]]:
    """Return the training images of each patient, over all tasks; patients in sorted order."""
    found: dict[str, list[Picture]] = defaultdict(list)
    for task, data in sorted(images.items()):
        for index, patient in enumerate(data.patients):
            found[patient].append((task, index))
    return [found[patient] for patient in sorted(found)]


def draw(
    patients: Sequence[Sequence[Picture]], *, sample_rate: float, images_per_patient: int
) -> list[list[Picture]]:
    """Draw the patients of one step, and some images of each.

    Every draw asks the operating system for its randomness: there is no seed or state that
    anybody could learn and from which the draws could be told.

    Args:
        patients: The images of each patient.
        sample_rate: Probability with which each patient is drawn, independently of all others.
        images_per_patient: Images of a drawn patient, at most; a patient with more gives a
            random choice of them, each at most once.

    Returns:
        The drawn images of each drawn patient; empty where no patient was drawn.
    """
    random = SystemRandom()
    return [
        random.sample(pictures, min(len(pictures), images_per_patient))
        for pictures in patients
        if random.random() < sample_rate
    ]


def chunks(drawn: Sequence[Sequence[Picture]], *, images: int) -> Iterator[Chunk]:
    """Yield the drawn patients in chunks of at most ``images`` images, and at least one patient."""
    alike: dict[tuple[tuple[str, int], ...], list[dict[str, list[int]]]] = defaultdict(list)
    for pictures in drawn:
        by_task: dict[str, list[int]] = defaultdict(list)
        for task, index in sorted(pictures):
            by_task[task].append(index)
        alike[tuple((task, len(found)) for task, found in by_task.items())].append(by_task)
    for form, members in sorted(alike.items()):
        each = sum(count for _, count in form)
        parts = -(-len(members) // max(1, images // each))
        for part in np.array_split(np.arange(len(members)), parts):
            rows = [members[i] for i in part]
            yield Chunk({task: np.array([row[task] for row in rows]) for task, _ in form})
