"""Laws of the study's arrays on disk."""

import json
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from common.arrays import Array, digest
from common.errors import OutputError
from common.study import Study
from server.checkpoint import (
    MODEL,
    NOTES,
    find_checkpoint,
    has_begun,
    model_round_of,
    save_ending,
    save_model,
    save_round,
)
from server.stored_arrays import StoredArrays

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


STATES = {
    "shared": {"m_t/w": ARRAYS["w"], "m_t/scalar": np.array(0.5, np.float64)},
    "head:ct": {"m_t/none": ARRAYS["none"]},
}


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


def test_a_round_that_is_saved_is_where_the_study_stands(study: Study, tmp_path: Path) -> None:
    """Number, arrays, members and the strategies' state come back to the bit."""
    assert not has_begun(tmp_path)
    for number, states in ((0, {}), (1, STATES), (2, STATES), (3, {})):
        path = save_round(tmp_path, ARRAYS, states, study, number, ("a", "b"))
        assert has_begun(tmp_path)
        found = find_checkpoint(tmp_path, study)
        assert (found.round, found.model, found.members) == (number, path, ("a", "b"))
        assert {group: digest(state) for group, state in found.states.items()} == {
            group: digest(state) for group, state in states.items()
        }
        names = {"", f"strategies-{number}.safetensors"} if states else {""}
        assert {p.name for p in tmp_path.iterdir()} == {MODEL, *names} - {""}
    assert digest(StoredArrays(path, tuple(ARRAYS))) == digest(ARRAYS)


def test_the_header_says_which_study_and_round_it_is(study: Study, tmp_path: Path) -> None:
    """Anyone with the safetensors library can read them off the model."""
    with safe_open(save_round(tmp_path, ARRAYS, {}, study, 7), framework="numpy") as file:
        notes = json.loads(file.metadata()[NOTES])
    assert (notes["study"], notes["study_digest"]) == ("study", study.digest())
    assert notes["round"] == "7"


def test_what_a_study_ends_with_takes_the_place_of_the_last_model(
    study: Study, tmp_path: Path
) -> None:
    """The rounds that are done, sites and state stay; the model says whose it is."""
    path = save_round(tmp_path, ARRAYS, STATES, study, 7, ("a", "b"))
    before = find_checkpoint(tmp_path, study)
    assert (before.model_round, before.has_ended, before.averaged) == (7, False, ())
    assert model_round_of(path) == 7
    (tmp_path / f".{MODEL}.abc123").write_bytes(b"half")
    other = {name: np.zeros_like(value) for name, value in ARRAYS.items()}
    for model_round, averaged in ((4, ()), (7, (6, 7))):
        save_ending(tmp_path, other, model_round=model_round, averaged=averaged)
        found = find_checkpoint(tmp_path, study)
        assert (found.round, found.members) == (7, ("a", "b"))
        assert {g: digest(state) for g, state in found.states.items()} == {
            g: digest(state) for g, state in before.states.items()
        }
        ended = (found.model_round, found.has_ended, found.averaged)
        assert ended == (model_round, True, averaged)
        assert model_round_of(path) == model_round
        assert digest(StoredArrays(path, tuple(ARRAYS))) == digest(other)
        assert len(list(tmp_path.iterdir())) == 2


def test_until_the_model_is_there_the_round_before_counts(study: Study, tmp_path: Path) -> None:
    """State that was written for a model that never came is not taken for anyone's."""
    save_round(tmp_path, ARRAYS, STATES, study, 1)
    before = (tmp_path / MODEL).read_bytes()
    other = {"shared": {"m_t/w": np.ones(3, np.float32)}}
    save_round(tmp_path, ARRAYS, other, study, 2)
    (tmp_path / MODEL).write_bytes(before)  # killed between state and model
    save_round(tmp_path / "again", ARRAYS, STATES, study, 1)
    kept = tmp_path / "again" / "strategies-1.safetensors"
    kept.rename(tmp_path / "strategies-1.safetensors")
    found = find_checkpoint(tmp_path, study)
    assert found.round == 1
    assert digest(found.states["shared"]) == digest(STATES["shared"])


def test_what_a_killed_coordinator_was_writing_is_cleared_away(
    study: Study, tmp_path: Path
) -> None:
    """Half-written files, each the size of a model, do not pile up; other files are left alone."""
    for name in (f".{MODEL}.abc123", ".strategies-1.safetensors.xyz"):
        (tmp_path / name).write_bytes(b"half")
    for name in ("notes.txt", "best.safetensors", ".hidden"):
        (tmp_path / name).touch()
    save_round(tmp_path, ARRAYS, STATES, study, 1)
    assert {path.name for path in tmp_path.iterdir()} == {
        MODEL, "strategies-1.safetensors", "notes.txt", "best.safetensors", ".hidden",
    }  # fmt: skip


def test_a_full_disk_leaves_the_round_before(study: Study, tmp_path: Path) -> None:
    """Whether the strategies' file or the model does not fit, the study stands where it stood."""
    save_round(tmp_path, ARRAYS, STATES, study, 1)
    large = {"w": np.zeros(1000, np.float32)}
    for arrays, states in ((ARRAYS, {"shared": large}), (large, {"shared": {"m": np.zeros(1)}})):
        with full_disk(), pytest.raises(OutputError, match="Cannot write"):
            save_round(tmp_path, arrays, states, study, 2)
        found = find_checkpoint(tmp_path, study)
        assert found.round == 1
        assert digest(found.states["shared"]) == digest(STATES["shared"])


def test_a_folder_of_another_study_is_refused(
    study: Study, make_study: Callable[..., Study], tmp_path: Path
) -> None:
    """So is another version of the same one: all that is agreed counts, not the name."""
    save_round(tmp_path, ARRAYS, {}, study, 1)
    for other in (make_study(seed=1), make_study(name="other")):
        with pytest.raises(OutputError, match="holds another study, study, or") as refused:
            find_checkpoint(tmp_path, other)
        assert "folder of its own" in refused.value.remedy
    assert find_checkpoint(tmp_path, make_study()).round == 1


def damaged(folder: Path, damage: str, study: Study) -> str:
    """Damage a checkpoint, and return which file will be complained of."""
    model, state = folder / MODEL, folder / "strategies-1.safetensors"
    file = state if damage.startswith("strategies") else model
    if damage.endswith("missing"):
        file.unlink()
    elif damage.endswith("cut off"):
        file.write_bytes(file.read_bytes()[:-1])
    elif damage.endswith("empty"):
        file.write_bytes(b"")
    elif damage.endswith("garbage"):
        file.write_bytes(b"garbage " * 100)
    elif damage == "strategies foreign":
        save_model(folder / "x", ARRAYS, {}).rename(state)
    else:
        notes = {"study": "study", "study_digest": study.digest(), "round": "1", "members": "[]"}
        odd = {"no notes": {}, "no digest": notes | {"study_digest": "0"}, "no round": notes}
        chosen = {k: v for k, v in odd[damage].items() if k != damage.removeprefix("no ")}
        save_model(folder, ARRAYS, chosen)
    return file.name


@pytest.mark.parametrize(
    "damage",
    ["missing", "cut off", "empty", "garbage", "no notes", "no round"]
    + [f"strategies {how}" for how in ("missing", "cut off", "empty", "garbage", "foreign")],
)
def test_a_damaged_file_is_an_output_error(damage: str, study: Study, tmp_path: Path) -> None:
    """The file is named and a remedy given; nothing is begun anew over it."""
    save_round(tmp_path, ARRAYS, STATES, study, 1)
    name = damaged(tmp_path, damage, study)
    with pytest.raises(OutputError, match=f"{name} cannot be read") as refused:
        find_checkpoint(tmp_path, study)
    assert "backup" in refused.value.remedy


def test_a_model_of_someone_else_is_an_output_error(study: Study, tmp_path: Path) -> None:
    """Notes of another form, such as another program's, are told as such too."""
    for header in ({}, {NOTES: "3"}, {NOTES: "[]"}, {NOTES: "{"}):
        save_file({"w": np.zeros(3, np.float32)}, tmp_path / MODEL, metadata=header)
        with pytest.raises(OutputError, match="cannot be read"):
            find_checkpoint(tmp_path, study)
