"""Laws of arrays that are read where they lie; more of them are in ``test_checkpoint.py``."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.arrays import digest
from common.errors import OutputError
from common.layout import Layout
from common.study import Study
from server import endings
from server.checkpoint import MODEL, find_checkpoint, save_model, save_round
from server.combining import finish
from server.stored_arrays import StoredArrays

MIB = 1024 * 1024
NAMES = tuple(f"w{number}" for number in range(2000))
STUDY = Study.parse(
    {
        "name": "large",
        "rounds": 2,
        "backbone": {"name": "any", "weights": "none"},
        "tasks": {"ct": {"modality": "CT", "classes": ["no", "yes"]}},
        "federation": {"average_last": 2},
    }
)


@contextmanager
def descriptors_below(limit: int) -> Iterator[None]:
    """Let the process open files below a number alone; those that are open stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_number_of_arrays_takes_one_open_file(tmp_path: Path) -> None:
    """A round is combined and rounds are averaged with few files to open and 2,000 arrays."""
    layout = Layout({"shared": NAMES}, (), ())
    for number in (1, 2):
        arrays = {name: np.full(3, number, np.float32) for name in NAMES}
        save_round(tmp_path, arrays, {}, STUDY, number)
        endings.keep(tmp_path, {1}, number)
    done = find_checkpoint(tmp_path, STUDY)
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    with descriptors_below(highest + 64):
        kept = finish({}, StoredArrays(tmp_path / MODEL, NAMES))
        assert digest(kept) == digest(arrays)
        turns = endings.turns(tmp_path, STUDY, layout, done, [])
        assert next(turns).averaged == (1, 2)
    mean = StoredArrays(tmp_path / MODEL, NAMES)
    assert {float(value[0]) for value in mean.values()} == {1.5}


def test_no_file_left_to_open_is_an_output_error(tmp_path: Path) -> None:
    """It is told with the file and a remedy, so that a study says why it pauses."""
    path = save_model(tmp_path, {"w": np.zeros(3, np.float32)}, {})
    with descriptors_below(0), pytest.raises(OutputError, match="cannot be read") as refused:
        StoredArrays(path, ("w",))
    assert refused.value.remedy


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_file_that_was_cut_is_an_output_error(size: int, tmp_path: Path) -> None:
    """Wherever it ends: before the header, in it, or in the arrays."""
    path = save_model(tmp_path, {"w": np.zeros(1000, np.float32)}, {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(OutputError, match="cannot be read"):
        StoredArrays(path, ("w",))


def test_what_is_missing_or_of_no_size_is_an_output_error(tmp_path: Path) -> None:
    """A folder that another version left, or somebody forged, is told when it is opened."""
    path = save_model(tmp_path, {"w": np.zeros((0, 3), np.float32)}, {})
    assert StoredArrays(path, ("w",))["w"].shape == (0, 3)
    with pytest.raises(OutputError, match="it has no array v"):
        StoredArrays(path, ("w", "v"))
    text = path.read_bytes()[8:].replace(b"[0,3]", f"[0,{2**62},{2**62}]".encode())
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(OutputError, match="too big"):
        StoredArrays(path, ("w",))


def mapped() -> int:
    """Return the bytes of mapped files that are in this process's memory (proc(5), RssFile)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith("RssFile")]
    return 1024 * int(found.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
def test_an_array_gives_its_memory_back(tmp_path: Path) -> None:
    """Its pages stay while it, or a view of it, is held, and no longer."""
    path = save_model(tmp_path, {"w": np.ones(16 * MIB, np.uint8)}, {})
    stored, before = StoredArrays(path, ("w",)), mapped()
    view = stored["w"][::2]
    assert view.sum() == 8 * MIB
    assert mapped() - before > 15 * MIB
    del view
    assert mapped() - before < MIB


def test_arrays_outlive_what_read_them(tmp_path: Path) -> None:
    """An array is whole when the mapping is gone, and cannot be written to."""
    path = save_model(tmp_path, {"w": np.arange(5000, dtype=np.float32)}, {})
    array = StoredArrays(path, ("w",))["w"]
    path.unlink()
    assert array.sum() == 5000 * 4999 / 2
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
