"""Laws of a task's images, on disk or in memory, and of the order in which training sees them."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.cache import Cache
from client.dataset import (
    Images,
    TaskData,
    batches,
    load_task,
    round_of_batches,
    steps_per_epoch,
)
from client.gate import Terms
from client.images import read_image
from client.manifest import Row
from client.preprocess import prepare
from client.stored_pixels import StoredPixels
from common.errors import EmptyManifestError, ImageError
from common.seeds import stream
from common.study import Task
from common.training import Training

TASK = Task(modality="fundus", classes=["well", "ill"])
LOG = logging.getLogger("test_dataset")

sizes_of_tasks = st.dictionaries(st.sampled_from("abc"), st.integers(2, 70), min_size=1)


def plain(sizes: dict[str, int], **settings: int) -> list[tuple[str, list[int]]]:
    arguments: dict[str, Any] = {"batch_size": 4, "epochs": 1, "seed": 0} | settings
    return [(batch.task, batch.indices.tolist()) for batch in batches(sizes, **arguments)]


@settings(max_examples=100, deadline=None)
@given(sizes=sizes_of_tasks, batch_size=st.integers(2, 20), epochs=st.integers(1, 3))
def test_an_epoch_sees_every_image_once(
    sizes: dict[str, int], batch_size: int, epochs: int
) -> None:
    """Each epoch's batches divide each task's images, with none left out and none twice."""
    made = plain(sizes, batch_size=batch_size, epochs=epochs)
    steps = steps_per_epoch(sizes, batch_size)
    assert len(made) == epochs * steps
    for first in range(0, len(made), steps):
        seen: dict[str, list[int]] = defaultdict(list)
        for task, indices in made[first : first + steps]:
            seen[task] += indices
        assert {t: sorted(v) for t, v in seen.items()} == {t: [*range(n)] for t, n in sizes.items()}


@settings(max_examples=100, deadline=None)
@given(sizes=sizes_of_tasks, batch_size=st.integers(3, 20), seed=st.integers(0, 2**60))
def test_batches_are_few_and_of_nearly_equal_size(
    sizes: dict[str, int], batch_size: int, seed: int
) -> None:
    """A task makes ceil(n / B) batches of at most B, which differ by one image at most."""
    made = plain(sizes, batch_size=batch_size, seed=seed)
    for task, n in sizes.items():
        lengths = [len(indices) for name, indices in made if name == task]
        assert len(lengths) == -(-n // batch_size)
        assert max(lengths) <= batch_size
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("batch_size", [2, 3, 4, 16])
def test_no_batch_holds_a_single_image(batch_size: int) -> None:
    """Batch norm, which cannot train on one image, never has to; pairs make room for a third."""
    for n in range(2, 100):
        lengths = [len(indices) for _, indices in plain({"a": n}, batch_size=batch_size)]
        assert min(lengths) >= 2
        assert max(lengths) <= max(batch_size, 3)
        assert len(lengths) == steps_per_epoch({"a": n}, batch_size)


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 23])
def test_steps_are_counted_exactly(steps: int) -> None:
    """``steps`` gives so many batches, over as many epochs as that takes, and the same ones."""
    sizes = {"a": 10, "b": 9}
    made = plain(sizes, steps=steps)
    assert len(made) == steps
    assert made == plain(sizes, epochs=4)[:steps]


def test_the_seed_decides_the_order() -> None:
    """The same seed gives the same batches, another seed and the next epoch give others."""
    sizes = {"a": 30, "b": 20}
    made = plain(sizes, epochs=2, seed=5)
    assert made == plain(dict(reversed(sizes.items())), epochs=2, seed=5)
    assert made != plain(sizes, epochs=2, seed=6)
    half = len(made) // 2
    assert made[:half] != made[half:]


@pytest.mark.parametrize("seed", range(5))
def test_tasks_are_mixed(seed: int) -> None:
    """No task waits for another's end."""
    order = [task for task, _ in plain({"a": 60, "b": 60}, seed=seed)]
    changes = sum(one != other for one, other in pairwise(order))
    assert changes >= 5


def labelled(*counts: int) -> Images:
    """Return images with so many of each class; only their labels are looked at."""
    labels = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    return Images(torch.zeros(len(labels), 1, 1, 1), labels, tuple(map(str, range(len(labels)))))


def drawn(images: dict[str, Images], *, seed: int = 0, **training: Any) -> list[tuple[str, Any]]:
    order = round_of_batches(images, Training(batch_size=4, **training), seed)
    return [(batch.task, batch.indices.tolist()) for batch in order]


def test_a_round_is_the_studys_epochs() -> None:
    """A round has the study's batch size and epochs, and a stream of random numbers of its own."""
    images = {"a": labelled(9, 1), "b": labelled(5)}
    made = drawn(images, seed=3, local_epochs=2)
    assert made == plain({"a": 10, "b": 5}, epochs=2, seed=stream(3, "batches"))
    steps = round_of_batches(images, Training(batch_size=4), 3, steps=7)
    assert [batch.task for batch in steps] == [task for task, _ in made[:7]]


def test_balanced_drawing_gives_each_class_its_turn() -> None:
    """Of 3 in 100 images half of all draws are made, and each of them as often as the others."""
    images = {"a": labelled(97, 3), "b": labelled(0, 50, 1, 0, 5)}
    made = drawn(images, sampling="balanced", local_epochs=40)
    for task, classes in (("a", 2), ("b", 3)):
        indices = np.concatenate([found for name, found in made if name == task])
        assert len(indices) == 40 * len(images[task])
        counts = np.bincount(images[task].labels.numpy()[indices])
        shares = counts[counts > 0] / len(indices)
        assert len(shares) == classes
        # Four standard deviations of a share.
        assert shares == pytest.approx(1 / classes, abs=4 * (0.25 / len(indices)) ** 0.5)
        rare = np.bincount(indices, minlength=len(images[task]))[-3:]
        assert rare.min() > 0.5 * rare.max() or task == "b"


def test_balanced_drawing_makes_as_many_steps() -> None:
    """As many batches of the same sizes as without, so that schedules and privacy stay the same."""
    images = {"a": labelled(90, 13), "b": labelled(5, 6)}
    for epochs in (1, 2):
        one, other = (
            sorted((t, len(found)) for t, found in drawn(images, local_epochs=epochs, sampling=how))
            for how in ("shuffle", "balanced")
        )
        assert one == other


def test_the_seed_decides_what_is_drawn() -> None:
    """The same seed draws the same images, another seed and the next epoch draw others."""
    images = {"a": labelled(30, 3), "b": labelled(8, 8)}
    made = drawn(images, sampling="balanced", local_epochs=2, seed=5)
    turned = dict(reversed(images.items()))
    assert made == drawn(turned, sampling="balanced", local_epochs=2, seed=5)
    assert made != drawn(images, sampling="balanced", local_epochs=2, seed=6)
    half = len(made) // 2
    assert made[:half] != made[half:]


def test_one_class_is_drawn_from_alone() -> None:
    """A site whose images are all of one class draws among them."""
    made = drawn({"a": labelled(0, 9)}, sampling="balanced")
    assert {index for _, found in made for index in found} <= set(range(9))
    assert sum(len(found) for _, found in made) == 9


def rows_of(folder: Path, pictures: Sequence[tuple[int, ...] | None], first: int = 2) -> list[Row]:
    """Write PNG images of these shapes (None: a file that is no image) and return their rows."""
    rng = np.random.default_rng(first)
    rows = []
    for line, shape in enumerate(pictures, first):
        path = folder / f"scan-{line}.png"
        if shape is None:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
        rows.append(Row(line, path, line % 2, f"hash-{line // 2}", f"hash-{line // 2}"))
    return rows


def load(
    train: Sequence[Row],
    validation: Sequence[Row] = (),
    test: Sequence[Row] = (),
    *,
    max_unreadable: float = 0.1,
    workers: int = 2,
    task: Task = TASK,
    cache: Cache | None = None,
) -> TaskData:
    return load_task(
        {"train": train, "validation": validation, "test": test},
        task,
        size=32,
        terms=Terms(max_unreadable),
        workers=workers,
        log=LOG,
        cache=cache,
    )


def test_every_row_arrives_prepared(tmp_path: Path) -> None:
    """Pixels, labels and patients of each split stand in the order of its rows."""
    rows = rows_of(tmp_path, [(40, 30)] * 9)
    data = load(rows[:4], rows[4:6], rows[6:])
    assert data.unreadable == 0
    for images, part in zip(data.splits.values(), (rows[:4], rows[4:6], rows[6:]), strict=True):
        expected = [prepare(read_image(row.path, modality="fundus"), 32) for row in part]
        assert torch.equal(images.pixels[:], torch.stack(expected))
        assert images.pixels[:].dtype == torch.float16
        assert images.labels.tolist() == [row.label for row in part]
        assert images.patients == tuple(row.patient for row in part)
        assert len(images) == len(part)
        assert images.n_patients == len({row.patient for row in part})


def test_on_disk_they_are_what_they_are_in_memory(tmp_path: Path) -> None:
    """With a cache, whether or not it held the images before, the same values are on disk."""
    rows = rows_of(tmp_path, [(40, 30), None, (40, 30, 3), (30, 30), (40, 30), (50, 30)])
    plain = load(rows, rows[2:5], max_unreadable=0.5)
    cache = Cache(tmp_path / "cache", 10**9)
    for _ in range(2):
        kept = load(rows, rows[2:5], max_unreadable=0.5, cache=cache)
        for split, images in kept.splits.items():
            expected = plain.splits[split]
            assert torch.equal(images.pixels[:], expected.pixels[:])
            assert torch.equal(images.labels, expected.labels)
            assert images.patients == expected.patients
        assert isinstance(kept.splits["train"].pixels, StoredPixels)
    assert cache.size().entries == 5


def test_each_slice_has_the_label_and_patient_of_its_row(tmp_path: Path) -> None:
    """A row with several images gives several, and the rows after it keep their own."""
    rows = rows_of(tmp_path, [(40, 30), (40, 30), (40, 30)])
    pages = [Image.open(row.path) for row in rows]
    volume = tmp_path / "volume.tif"
    pages[0].save(volume, save_all=True, append_images=pages[1:])
    listed = [replace(rows[1], path=volume), rows[0], rows[2]]
    images = load(listed, task=TASK.model_copy(update={"slices": "all"})).splits["train"]
    assert images.labels.tolist() == [rows[i].label for i in (1, 1, 1, 0, 2)]
    assert images.patients == tuple(rows[i].patient for i in (1, 1, 1, 0, 2))
    pixels = images.pixels[:]
    assert torch.equal(pixels[0], pixels[3])
    assert torch.equal(pixels[2], pixels[4])
    assert [origin.row.path for origin in images.origins] == [
        volume, volume, volume, rows[0].path, rows[2].path,
    ]  # fmt: skip
    assert [origin.part for origin in images.origins] == ["1", "2", "3", "", ""]


def test_the_number_of_readers_changes_nothing(tmp_path: Path) -> None:
    """One thread and eight give the same bytes in the same order."""
    rows = rows_of(tmp_path, [(33, 40)] * 12)
    one, eight = (load(rows, workers=workers).splits["train"] for workers in (1, 8))
    assert torch.equal(one.pixels[:], eight.pixels[:])
    assert one.patients == eight.patients


def test_an_empty_split_has_no_images(tmp_path: Path) -> None:
    """A split without rows is a set of no images, of the usual form."""
    images = load(rows_of(tmp_path, [(40, 30)] * 2)).splits["test"]
    assert len(images) == images.n_patients == 0
    assert images.pixels.shape[2:] == (32, 32)


def test_an_unreadable_image_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is counted and named with its line in the log, which names no patient; the rest loads."""
    rows = rows_of(tmp_path, [(40, 30), None, (40, 30), (40, 30)])
    more = rows_of(tmp_path, [(40, 30), None], first=50)
    data = load(rows, more, max_unreadable=0.5)
    assert data.unreadable == 2
    assert data.splits["train"].labels.tolist() == [rows[i].label for i in (0, 2, 3)]
    assert data.splits["train"].patients == tuple(rows[i].patient for i in (0, 2, 3))
    assert [o.row for o in data.splits["train"].origins] == [rows[i] for i in (0, 2, 3)]
    assert {o.facts.kind for o in data.splits["train"].origins} == {"PNG"}
    assert len(data.splits["validation"]) == 1
    assert len(caplog.messages) == 2
    for message, row in zip(caplog.messages, (rows[1], more[1]), strict=True):
        assert f"line {row.line}:" in message
        assert str(row.path) in message
        assert "hash-" not in message


def test_the_tolerance_is_a_share_of_all_rows(tmp_path: Path) -> None:
    """One unreadable image in ten is within a tenth, two are not, and all of them are listed."""
    good = rows_of(tmp_path, [(40, 30)] * 9, first=100)
    bad = rows_of(tmp_path, [None, None, None])
    assert load(good, bad[:1]).unreadable == 1
    with pytest.raises(ImageError, match=r"3 of 12 images") as refusal:
        load(good, bad[:2], bad[2:])
    for row in bad:
        assert f"line {row.line}: {row.path}" in refusal.value.message
    assert "max_unreadable" in refusal.value.remedy
    with pytest.raises(ImageError):
        load(good, bad[:1], max_unreadable=0)


@pytest.mark.parametrize("pictures", [[], [(40, 30)], [(40, 30), None]])
def test_one_image_is_too_few_to_train_on(
    tmp_path: Path, pictures: list[tuple[int, ...] | None]
) -> None:
    """Fewer than two readable training images are refused, however many are held out."""
    held_out = rows_of(tmp_path, [(40, 30)] * 5, first=50)
    with pytest.raises(EmptyManifestError):
        load(rows_of(tmp_path, pictures), held_out, held_out, max_unreadable=1)


def test_grey_among_colour_gets_three_equal_channels(tmp_path: Path) -> None:
    """In a mixed split grey is repeated and colour kept; a grey split stays at one channel."""
    grey, colour, other = rows_of(tmp_path, [(40, 30), (40, 30, 3), (40, 30)])
    mixed = load([grey, colour], [grey, other])
    first, second = mixed.splits["train"].pixels[:]
    assert torch.equal(first[0], prepare(read_image(grey.path, modality="fundus"), 32)[0])
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert torch.equal(second, prepare(read_image(colour.path, modality="fundus"), 32))
    assert mixed.splits["validation"].pixels.shape == (2, 1, 32, 32)
