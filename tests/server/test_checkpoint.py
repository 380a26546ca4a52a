"""Laws of the study's arrays on disk."""

import json
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from common.arrays import Array, digest
from common.errors import OutputError
from server.checkpoint import MODEL, NOTES, StoredArrays, save_model

ARRAYS: dict[str, Array] = {
    "counter": np.array(2**40, np.int64),
    "w": np.array([[0.1, -0.0], [np.finfo(np.float32).tiny / 4, np.inf]], np.float32),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "scalar": np.array(0.25, np.float32),
}


def test_what_is_saved_reads_back(tmp_path: Path) -> None:
    """Names, dtypes, shapes and bits survive, 0-d integers and empty arrays included."""
    path = save_model(tmp_path / "new" / "run", ARRAYS, {})
    assert path == tmp_path / "new" / "run" / MODEL
    found = StoredArrays(path, tuple(ARRAYS))
    assert digest(found) == digest(ARRAYS)
    assert found["counter"].shape == ()
    assert found["counter"].dtype == np.int64


def test_the_layout_in_memory_does_not_count(tmp_path: Path) -> None:
    """Slices and Fortran order are saved as the values that they show."""
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"turned": np.asfortranarray(table), "every": table[::2, ::3], "back": table[:, ::-1]}
    found = StoredArrays(save_model(tmp_path, arrays, {}), tuple(arrays))
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)


def test_notes_stand_in_the_header(tmp_path: Path) -> None:
    """Anyone with the safetensors library can read which study and round a file is of."""
    notes = {"study": "größe", "study_digest": "ab" * 32, "round": "3"}
    with safe_open(save_model(tmp_path, ARRAYS, notes), framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata[NOTES]) == notes


def test_the_same_arrays_are_the_same_bytes(tmp_path: Path) -> None:
    """Two runs that come to the same arrays write the same file."""
    notes = {"a": "1", "b": "2", "c": "3"}
    one = save_model(tmp_path / "one", ARRAYS, notes)
    turned = dict(reversed(ARRAYS.items()))
    two = save_model(tmp_path / "two", turned, dict(reversed(notes.items())))
    assert one.read_bytes() == two.read_bytes()


def test_a_mapping_shows_the_names_it_was_given(tmp_path: Path) -> None:
    """Names come in the given order; what was not asked for is not there, though in the file."""
    found = StoredArrays(save_model(tmp_path, ARRAYS, {}), ("w", "counter"))
    assert list(found) == ["w", "counter"]
    assert len(found) == 2
    assert "flags" not in found
    with pytest.raises(KeyError):
        found["flags"]


def test_arrays_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """Opening a file takes none of its arrays' memory, reading one the memory of one."""
    large = {f"w{number}": np.full(250_000, number, np.float32) for number in range(8)}
    path = save_model(tmp_path, large, {})
    tracemalloc.start()
    stored = StoredArrays(path, tuple(large))
    opened = tracemalloc.get_traced_memory()[1]
    for number, name in enumerate(stored):
        assert stored[name][-1] == number
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 100_000
    assert peak < 3_000_000


def test_open_arrays_survive_the_next_round(tmp_path: Path) -> None:
    """A new file takes the name; who holds the old one still reads the old arrays."""
    old = StoredArrays(save_model(tmp_path, {"w": np.zeros(3, np.float32)}, {}), ("w",))
    new = StoredArrays(save_model(tmp_path, {"w": np.ones(3, np.float32)}, {}), ("w",))
    assert old["w"].tolist() == [0, 0, 0]
    assert new["w"].tolist() == [1, 1, 1]


@contextmanager
def full_disk() -> Iterator[None]:
    """Let the system refuse every file above 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """When the new file cannot be written, the old one is whole and nothing else is there."""
    path = save_model(tmp_path, ARRAYS, {})
    before = path.read_bytes()
    with full_disk(), pytest.raises(OutputError, match="Cannot write") as refused:
        save_model(tmp_path, {"w": np.zeros(1000, np.float32)}, {})
    assert refused.value.remedy
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder_is_an_output_error(tmp_path: Path) -> None:
    """A folder that cannot be made is told as such, with its remedy."""
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        save_model(tmp_path / "run", ARRAYS, {})
