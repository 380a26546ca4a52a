"""Laws of the draws of patients."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from client.dataset import Images
from client.private_batches import Picture, chunks, draw, pictures_by_patient

PATIENTS: list[list[Picture]] = [
    [("ct", 0)],
    [("ct", 1), ("ct", 2), ("ct", 3)],
    [("mr", 0), ("mr", 1)],
    [("ct", 4), ("ct", 5), ("mr", 2), ("mr", 3), ("mr", 4)],
]


def deviations(count: int, trials: int, probability: float) -> float:
    """Return by how many standard deviations a binomial count is off."""
    spread = np.sqrt(trials * probability * (1 - probability))
    return float(abs(count - trials * probability) / spread)


def test_a_patient_is_one_unit_over_all_tasks(make_images: Callable[..., Images]) -> None:
    """Every image stands once, with its own patient, whatever the task."""
    images = {"mr": make_images(6), "ct": make_images(9)}
    found = pictures_by_patient(images)
    assert len(found) == 5
    assert sorted(p for pictures in found for p in pictures) == [
        *(("ct", i) for i in range(9)),
        *(("mr", i) for i in range(6)),
    ]
    for pictures in found:
        assert len({images[task].patients[index] for task, index in pictures}) == 1


def test_patients_are_drawn_independently_with_the_rate() -> None:
    """Each patient, and each pair, is drawn as often as independent coins of the rate say."""
    trials, rate = 4000, 0.3
    singles: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    owner = {picture: i for i, pictures in enumerate(PATIENTS) for picture in pictures}
    for _ in range(trials):
        drawn = draw(PATIENTS, sample_rate=rate, images_per_patient=1)
        found = sorted(owner[pictures[0]] for pictures in drawn)
        singles.update(found)
        pairs.update(combinations(found, 2))
    assert all(deviations(singles[i], trials, rate) < 5 for i in range(4))
    assert all(deviations(pairs[p], trials, rate**2) < 5 for p in combinations(range(4), 2))


def test_images_are_the_patients_own_and_all_alike() -> None:
    """A patient gives as many of its own images as it may, none twice, each equally often."""
    trials = 3000
    seen: Counter[Picture] = Counter()
    for _ in range(trials):
        drawn = draw(PATIENTS, sample_rate=1, images_per_patient=2)
        for pictures, own in zip(drawn, PATIENTS, strict=True):
            assert len(set(pictures)) == len(pictures) == min(2, len(own))
            assert set(pictures) <= set(own)
            seen.update(pictures)
    for own in PATIENTS:
        share = min(2, len(own)) / len(own)
        if share < 1:
            assert all(deviations(seen[picture], trials, share) < 5 for picture in own)


def test_extreme_rates_draw_everybody_and_nobody() -> None:
    """A rate of one draws all patients with all images that they may give, a tiny one none."""
    assert [sorted(p) for p in draw(PATIENTS, sample_rate=1, images_per_patient=9)] == PATIENTS
    assert draw(PATIENTS, sample_rate=1e-12, images_per_patient=9) == []
    assert list(chunks([], images=4)) == []


def test_no_seed_decides_and_no_state_changes() -> None:
    """Seeds of Python, NumPy and torch do not fix the draws, and the draws do not use them up."""
    many = [[("ct", i)] for i in range(200)]
    found, after = [], []
    for _ in range(2):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global state is what is looked at
        torch.manual_seed(3)
        found.append(draw(many, sample_rate=0.5, images_per_patient=1))
        after.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
    assert found[0] != found[1]
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - as above
    torch.manual_seed(3)
    untouched = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    assert after == [untouched, untouched]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_chunks_hold_each_drawn_image_once(most: int) -> None:
    """Chunks deal out all images, one row a patient, and stay within the bound if they can."""
    drawn = draw(PATIENTS * 3, sample_rate=1, images_per_patient=9)
    rows = []
    for chunk in chunks(drawn, images=most):
        assert chunk.patients == 1 or chunk.patients * chunk.images_each <= most
        for row in range(chunk.patients):
            found = [(task, int(i)) for task, held in chunk.indices.items() for i in held[row]]
            assert len(found) == chunk.images_each
            rows.append(found)
    assert sorted(rows) == sorted(PATIENTS * 3)
