"""Laws of what a site remembers of a study."""

import stat
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client.store import SiteStore, remove_leftovers
from common.arrays import Array, digest
from common.bodies import read_body
from common.errors import OrderError
from common.wire_arrays import WireArrays

STUDY = "ab" * 32
BASE: dict[str, Array] = {
    "counter": np.array(7, np.int64),
    "scale": np.array(0.5, np.float32),
    "table": np.arange(6, dtype=np.int64).reshape(2, 3),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
}
LOCAL: dict[str, Array] = {"bn.weight": np.linspace(0, 1, 5, dtype=np.float32)}


def same(found: dict[str, Array], expected: dict[str, Array]) -> bool:
    return digest(found) == digest(expected)


@pytest.fixture
def store(tmp_path: Path) -> SiteStore:
    return SiteStore(tmp_path / "state", STUDY)


def test_a_base_comes_back_as_it_went(store: SiteStore, tmp_path: Path) -> None:
    """Names, dtypes, shapes (scalars too) and values survive, also in a new store object."""
    store.save_base(BASE, digest(BASE))
    for kept in (store, SiteStore(tmp_path / "state", STUDY)):
        assert kept.base_digest() == digest(BASE)
        assert same(kept.load_base(digest(BASE)), BASE)
        assert kept.load_base(digest(BASE))["counter"].shape == ()


def test_a_base_may_come_over_the_wire(store: SiteStore) -> None:
    """Encoded arrays are kept like plain ones."""
    store.save_base(WireArrays.of(BASE), digest(BASE))
    assert same(store.load_base(digest(BASE)), BASE)


def test_another_base_than_announced_is_refused(store: SiteStore) -> None:
    """A base with another digest is not kept, and the one before stays."""
    with pytest.raises(OrderError):
        store.save_base(BASE, "0" * 64)
    assert store.base_digest() == ""
    store.save_base(BASE, digest(BASE))
    changed = BASE | {"counter": np.array(8, np.int64)}
    with pytest.raises(OrderError):
        store.save_base(changed, digest(BASE))
    assert same(store.load_base(digest(BASE)), BASE)


def test_a_missing_base_is_refused(store: SiteStore) -> None:
    """Neither no base nor another one stands in for the base that is asked for."""
    with pytest.raises(OrderError):
        store.load_base(digest(BASE))
    store.save_base(LOCAL, digest(LOCAL))
    with pytest.raises(OrderError):
        store.load_base(digest(BASE))


def test_a_new_base_takes_the_old_ones_place(store: SiteStore) -> None:
    """There is one base at a time, the last that came."""
    store.save_base(BASE, digest(BASE))
    store.save_base(LOCAL, digest(LOCAL))
    assert same(store.load_base(digest(LOCAL)), LOCAL)
    with pytest.raises(OrderError):
        store.load_base(digest(BASE))


def test_a_base_that_cannot_be_written_is_not_claimed(store: SiteStore) -> None:
    """When the writing fails midway, the store claims neither the old base nor the new one."""
    store.save_base(BASE, digest(BASE))
    unwritable: dict[str, Array] = {"text": np.array(["safetensors knows no text"])}
    with pytest.raises(Exception, match=r"."):
        store.save_base(unwritable, digest(unwritable))
    assert store.base_digest() == ""


def test_local_arrays_come_back_as_they_went(store: SiteStore, tmp_path: Path) -> None:
    """They are none at first, then those of the round before, also in a new store object."""
    assert store.load_local(1) == {}
    store.save_local(BASE, 1)
    store.save_local(LOCAL, 2)
    for kept in (store, SiteStore(tmp_path / "state", STUDY)):
        assert same(kept.load_local(2), BASE)
        assert same(kept.load_local(3), LOCAL)
        assert same(kept.load_local(9), LOCAL)


def test_a_redone_round_starts_where_it_started(store: SiteStore) -> None:
    """Saved twice or thrice, a round's own arrays never become what it starts from."""
    for _ in range(3):
        assert store.load_local(1) == {}
        store.save_local(BASE, 1)
    for _ in range(3):
        assert same(store.load_local(4), BASE)  # the site was away in rounds 2 and 3
        store.save_local(LOCAL, 4)
    assert same(store.load_local(5), LOCAL)


def test_a_round_long_gone_is_refused(store: SiteStore) -> None:
    """Where its start is no longer kept, a round is refused rather than started from another."""
    store.save_local(BASE, 3)
    assert store.load_local(3) == {}
    store.save_local(LOCAL, 4)
    with pytest.raises(OrderError, match="Round 3") as refusal:
        store.load_local(3)
    assert "anew" in refusal.value.remedy
    assert same(store.load_local(4), BASE)


def test_a_reply_is_found_by_its_order_alone(store: SiteStore) -> None:
    """The last reply is kept, whole, for the very order that it answers."""
    first, second = "ab" * 32, "cd" * 32
    assert store.find_reply(first) is None
    record = RecordDict({"reply": ConfigRecord({"header": "1"})})
    path = store.save_reply(record, first)
    assert store.find_reply(first) == path
    assert dict(read_body(path)) == dict(record)
    assert store.find_reply(second) is None
    other = RecordDict({"shared": WireArrays.of(LOCAL).record})
    path = store.save_reply(other, second)
    assert dict(read_body(path)) == dict(other)
    assert store.find_reply(first) is None


def test_what_a_killed_process_left_is_removed(store: SiteStore, tmp_path: Path) -> None:
    """A half-written file goes; whole ones stay."""
    remove_leftovers(tmp_path / "state")
    store.save_local(LOCAL, 1)
    (folder,) = (tmp_path / "state/studies").iterdir()
    (folder / ".reply-00.body.x1y2").write_bytes(b"half")
    remove_leftovers(tmp_path / "state")
    assert {path.name for path in folder.iterdir()} == {
        "local-0.safetensors", "local-1.safetensors",
    }  # fmt: skip


def test_studies_do_not_meet(store: SiteStore, tmp_path: Path) -> None:
    """What one study left, another does not find."""
    store.save_base(BASE, digest(BASE))
    store.save_local(LOCAL, 1)
    store.save_reply(RecordDict(), "ab" * 32)
    other = SiteStore(tmp_path / "state", "cd" * 32)
    assert other.base_digest() == ""
    assert other.load_local(2) == {}
    assert other.find_reply("ab" * 32) is None


def test_files_are_the_sites_own(store: SiteStore, tmp_path: Path) -> None:
    """Nobody but the owner may read a file of the store, and no temporary file is left."""
    store.save_base(BASE, digest(BASE))
    for number in range(1, 4):
        store.save_local(LOCAL, number)
    store.save_reply(RecordDict(), "ab" * 32)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "base.safetensors", "base.sha256", "local-2.safetensors", "local-3.safetensors",
        f"reply-{'ab' * 32}.body",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
