"""Laws of images on disk: they are indexed as a tensor is, and outlive what the cache does."""

import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.cache import Cache
from client.stored_pixels import PixelWriter, StoredPixels

SIZE = 8


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9)


def sources(channels: Sequence[int]) -> list[NDArray[np.float16]]:
    """Return sources with 1, 2, 3, 1, 2... images, of these numbers of channels."""
    rng = np.random.default_rng(0)
    return [
        rng.random((1 + i % 3, c, SIZE, SIZE)).astype(np.float16) for i, c in enumerate(channels)
    ]


def written(parts: Sequence[NDArray[np.float16]], cache: Cache | None) -> Tensor | StoredPixels:
    writer = PixelWriter(SIZE, cache)
    for part in parts:
        writer.add(part)
    return writer.done()


def stacked(parts: Sequence[NDArray[np.float16]]) -> Tensor:
    channels = max(part.shape[1] for part in parts)
    return torch.cat([torch.from_numpy(part).expand(-1, channels, -1, -1) for part in parts])


@pytest.mark.parametrize("channels", [[1] * 9, [3] * 5, [1, 3, 1, 1, 3, 3, 1]], ids=str)
def test_indexing_is_that_of_a_tensor(cache: Cache, channels: list[int]) -> None:
    """By numbers, by a mask, by a slice and in parts, the same values come in the same order."""
    parts = sources(channels)
    stored, expected = written(parts, cache), stacked(parts)
    assert isinstance(stored, StoredPixels)
    assert len(stored) == len(expected)
    assert stored.shape == expected.shape
    mask = torch.arange(len(expected)) % 3 == 1
    for which in (torch.tensor([3, 0, 3, 1]), torch.tensor([-1]), mask, torch.tensor([]).long()):
        found = stored[which]
        assert torch.equal(found, expected[which])
        assert found.dtype == torch.float16
    for part in (slice(None), slice(2, 5), slice(-2, None), slice(None, None, 2), slice(99, 99)):
        assert torch.equal(stored[part], expected[part])
    for size in (1, 4, 100):
        for ours, theirs in zip(stored.split(size), expected.split(size), strict=True):
            assert torch.equal(ours, theirs)


def test_what_comes_is_a_copy(cache: Cache) -> None:
    """Whoever changes a batch changes nothing on the disk."""
    parts = sources([1] * 4)
    stored = written(parts, cache)
    stored[:].zero_()
    stored[torch.tensor([0])].zero_()
    assert torch.equal(stored[:], stacked(parts))


def test_without_a_cache_it_is_a_tensor() -> None:
    """The same images in memory, grey among colour expanded."""
    parts = sources([1, 3, 1])
    found = written(parts, None)
    assert isinstance(found, Tensor)
    assert torch.equal(found, stacked(parts))


@pytest.mark.parametrize("kept", [True, False])
def test_no_image_is_a_tensor_of_none(cache: Cache, *, kept: bool) -> None:
    """Nothing written is a set of no images, of the usual form."""
    found = written([], cache if kept else None)
    assert found.shape == (0, 1, SIZE, SIZE)


def test_chosen_images_are_those_of_the_mask(cache: Cache) -> None:
    """A choice indexes what is left, and can be chosen from again."""
    parts = sources([1, 3, 1, 3, 1])
    stored, expected = written(parts, cache), stacked(parts)
    assert isinstance(stored, StoredPixels)
    keep = np.arange(len(expected)) % 2 == 0
    once = stored.chosen(keep)
    assert torch.equal(once[:], expected[torch.from_numpy(keep)])
    again = once.chosen(np.arange(len(once)) > 1)
    assert torch.equal(again[:], expected[torch.from_numpy(keep)][2:])


def test_it_outlives_the_cache(cache: Cache) -> None:
    """No name of it is in the folder, and clearing the folder takes nothing away."""
    parts = sources([1] * 6)
    stored = written(parts, cache)
    assert not [file for file in cache.folder.iterdir() if file.name != "lock"]
    cache.clear()
    assert torch.equal(stored[:], stacked(parts))


@pytest.mark.parametrize("first", [0, 3])
def test_a_full_disk_leaves_the_images_in_memory(
    cache: Cache, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    """When no more can be written, what was is read back, the rest stays here, and it is said."""
    parts = sources([1, 3, 1, 3, 1, 1, 3])
    writer = PixelWriter(SIZE, cache)
    for part in parts[:first]:
        writer.add(part)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        for part in parts[first:]:
            writer.add(part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = writer.done()
    assert isinstance(found, Tensor)
    assert torch.equal(found, stacked(parts))
    assert len(caplog.messages) == 1
