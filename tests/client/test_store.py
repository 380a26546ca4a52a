"""Laws of what a site remembers of a study."""

import stat
from pathlib import Path

import numpy as np
import pytest

from client.store import SiteStore
from common.arrays import Array, digest
from common.errors import OrderError
from common.messages import WireArrays

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
    """They are none at first, then the last that were kept, also in a new store object."""
    assert store.load_local() == {}
    store.save_local(BASE)
    store.save_local(LOCAL)
    assert same(store.load_local(), LOCAL)
    assert same(SiteStore(tmp_path / "state", STUDY).load_local(), LOCAL)


def test_studies_do_not_meet(store: SiteStore, tmp_path: Path) -> None:
    """What one study left, another does not find."""
    store.save_base(BASE, digest(BASE))
    store.save_local(LOCAL)
    other = SiteStore(tmp_path / "state", "cd" * 32)
    assert other.base_digest() == ""
    assert other.load_local() == {}


def test_files_are_the_sites_own(store: SiteStore, tmp_path: Path) -> None:
    """Nobody but the owner may read a file of the store, and no temporary file is left."""
    store.save_base(BASE, digest(BASE))
    store.save_local(LOCAL)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "base.safetensors", "base.sha256", "local.safetensors",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
