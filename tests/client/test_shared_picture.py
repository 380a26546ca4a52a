"""Laws of the memory that a reading process shares with the one that it reads for."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from client.shared_picture import SharedPicture


@pytest.fixture
def pair() -> Iterator[tuple[SharedPicture, SharedPicture]]:
    """Return the ends of the process that writes and of the one that looks."""
    reader = SharedPicture.create()
    writer = SharedPicture(os.dup(reader.file))
    yield writer, reader
    for end in (writer, reader):
        end.close()


def random_picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, np.float32)


def test_the_other_side_sees_each_picture(pair: tuple[SharedPicture, SharedPicture]) -> None:
    """Pictures of any shape, larger and smaller in turn, arrive to the bit."""
    writer, reader = pair
    for shape in ((30, 40), (300, 200, 3), (5, 7), (301, 200, 3)):
        values = random_picture(*shape)
        writer.put(values)
        assert np.array_equal(reader.get(shape), values)


def test_a_large_picture_leaves_no_memory_behind(pair: tuple[SharedPicture, SharedPicture]) -> None:
    """When the next one comes, a large picture's memory is the system's again, and it is right."""
    writer, reader = pair
    writer.put(np.ones((5000, 4000), np.float32))
    assert reader.get((5000, 4000))[-1, -1] == 1
    writer.put(random_picture(20, 20))
    assert os.fstat(reader.file).st_blocks * 512 < 2**20
    assert np.array_equal(reader.get((20, 20)), random_picture(20, 20))


def test_memory_cannot_be_taken_away(pair: tuple[SharedPicture, SharedPicture]) -> None:
    """The writer cannot make the memory smaller, at which the reader would crash."""
    writer, _ = pair
    writer.put(random_picture(20, 20))
    with pytest.raises(PermissionError):
        os.ftruncate(writer.file, 0)


def test_more_than_there_is_is_refused(pair: tuple[SharedPicture, SharedPicture]) -> None:
    """A shape that the memory has no room for is an error, not a look beyond its end."""
    writer, reader = pair
    writer.put(random_picture(8, 8))
    with pytest.raises(ValueError, match="no room"):
        reader.get((1000, 1000))
