"""Laws of the cache: what is in it is whole, of the right content and recipe, and bounded."""

import json
import logging
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.cache import STALE_SECONDS, Cache, cache_of, content_of, key_of
from client.cache_entry import Entry
from client.config import Limits, SiteConfig, TaskFiles

ROOT = Path(__file__).resolve().parents[2]
LARGE = 10**9


def entry_of(number: int, *, n: int = 1, size: int = 32) -> Entry:
    rng = np.random.default_rng(number)
    return Entry(rng.random((n, 1, size, size)).astype(np.float16), {"number": number, "x": 0.1})


def key(number: int) -> str:
    return key_of(f"{number:064x}", {})


def same(one: Entry | None, other: Entry) -> bool:
    return (
        one is not None
        and np.array_equal(one.pixels, other.pixels)
        and one.pixels.dtype == other.pixels.dtype
        and one.said == other.said
    )


def file_of(cache: Cache, number: int) -> Path:
    return cache.folder / f"{key(number)}.safetensors"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", LARGE)


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """Let the system refuse to make a file larger, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n", [0, 1, 7])
def test_what_is_kept_comes_back(cache: Cache, n: int) -> None:
    """An entry comes back as it was, to its key alone, and to another process too."""
    entry = entry_of(1, n=n)
    assert cache.get(key(1)) is None
    cache.put(key(1), entry)
    assert same(cache.get(key(1)), entry)
    assert same(Cache(cache.folder, LARGE).get(key(1)), entry)
    assert cache.get(key(2)) is None


def test_an_entry_is_a_safetensors_file(cache: Cache) -> None:
    """Any program that knows the format reads the images and what is known of them."""
    entry = entry_of(3, n=4)
    cache.put(key(3), entry)
    found = load_file(file_of(cache, 3))
    assert np.array_equal(found["pixels"], entry.pixels)
    assert json.loads(found["said"].tobytes()) == entry.said


def test_nobody_else_can_read_it(cache: Cache) -> None:
    """The folder is open to its owner alone, and so is each file, whatever the umask."""
    old = os.umask(0)
    try:
        made = Cache(cache.folder / "inner", LARGE)
        made.put(key(1), entry_of(1))
    finally:
        os.umask(old)
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in made.folder.iterdir()} == {0o600}


def test_a_folder_open_to_others_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left alone, and the log says what to do."""
    tmp_path.chmod(0o755)
    cache = Cache(tmp_path, LARGE)
    cache.put(key(1), entry_of(1))
    assert cache.get(key(1)) is None
    assert list(tmp_path.iterdir()) == []
    assert "chmod 700" in caplog.text


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-10],
    "empty": lambda _: b"",
    "flipped": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "longer": lambda data: data + b"0",
    "other": lambda _: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_dropped_and_made_anew(cache: Cache, damage: str) -> None:
    """Whatever happened to its file, an entry is whole or is not there."""
    cache.put(key(1), entry_of(1))
    file = file_of(cache, 1)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert cache.get(key(1)) is None
    assert cache.size().entries == 0
    cache.put(key(1), entry_of(1))
    assert same(cache.get(key(1)), entry_of(1))


def test_a_wrong_header_is_damage(cache: Cache) -> None:
    """A file whose header claims another shape is no entry, though its length is right."""
    cache.put(key(1), entry_of(1))
    file = file_of(cache, 1)
    written = file.read_bytes()
    file.write_bytes(written.replace(b"[1,1,32,32]", b"[1,1,16,64]"))
    assert file.read_bytes() != written
    assert cache.get(key(1)) is None


READERS = """
import gc, sys, threading
from pathlib import Path
from client.cache import Cache
gc.set_threshold(5)  # threads take turns while an entry is read: a callback lets go of the lock
gc.callbacks.append(lambda phase, info: sum(range(50)))
sys.setswitchinterval(1e-6)
cache, found = Cache(Path(sys.argv[1]), 10**9), []
def read():
    found.extend(cache.get(sys.argv[2]) is not None for _ in range(200))
threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(found))
"""


def test_threads_do_not_disturb_each_other(cache: Cache) -> None:
    """Of an entry that four threads read 200 times each, every reading is whole.

    NumPy's reader of its own files fails here with Python 3.11.7 (CPython's issue 106905).
    """
    cache.put(key(1), entry_of(1))
    command = [sys.executable, "-c", READERS, str(cache.folder), key(1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("800\n", "")


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    """When the bound is reached, the entry that was read or written longest ago goes."""
    one = sum(f.stat().st_size for f in _kept(tmp_path / "probe", [1]).folder.glob("*.*"))
    cache = _kept(tmp_path / "cache", [1, 2, 3, 4], bound=int(4.6 * one))
    for number, age in ((1, 40), (2, 30), (3, 20), (4, 10)):
        os.utime(file_of(cache, number), (time.time() - age, time.time() - age))
    assert cache.get(key(1)) is not None
    cache.put(key(5), entry_of(5))
    kept = [number for number in range(1, 6) if cache.get(key(number)) is not None]
    assert kept == [1, 3, 4, 5]


def _kept(folder: Path, numbers: list[int], *, bound: int = LARGE) -> Cache:
    cache = Cache(folder, bound)
    for number in numbers:
        cache.put(key(number), entry_of(number))
    return cache


def test_the_bound_is_kept(tmp_path: Path) -> None:
    """Entries of any size never take more than the bound together; too large a one is not kept."""
    cache = Cache(tmp_path / "cache", 100_000)
    rng = np.random.default_rng(0)
    for number in range(60):
        cache.put(key(number), entry_of(number, n=int(rng.integers(1, 12))))
        assert sum(f.stat().st_size for f in cache.folder.iterdir()) <= 100_000
    assert cache.size().bytes > 50_000
    before = cache.size()
    cache.put(key(100), entry_of(100, n=60))
    assert cache.get(key(100)) is None
    assert cache.size() == before


def test_leftovers_go_when_they_are_old(cache: Cache) -> None:
    """What a killed process left goes after an hour; what is being written, or foreign, stays."""
    cache.put(key(1), entry_of(1))
    old, young = f".{key(2)}.abc_1.part", f".{key(2)}.abc_2.part"
    of_an_old_version, fresh = f"{key(3)}.npy", f"{key(4)}.json"
    for name in (old, young, of_an_old_version, fresh, "notes.txt"):
        (cache.folder / name).write_bytes(b"half")
    before = time.time() - STALE_SECONDS - 60
    for name in (old, of_an_old_version, "notes.txt", file_of(cache, 1).name):
        os.utime(cache.folder / name, (before, before))
    again = Cache(cache.folder, LARGE)
    again.put(key(5), entry_of(5))
    names = {file.name for file in cache.folder.iterdir()}
    assert not {old, of_an_old_version} & names
    assert {young, fresh, "notes.txt"} <= names
    assert same(again.get(key(1)), entry_of(1))


def test_clear_removes_what_is_the_caches_and_nothing_else(cache: Cache) -> None:
    """Entries and leftovers go, a stranger's file stays, and the cache can be used again."""
    cache.put(key(1), entry_of(1))
    (cache.folder / f".{key(2)}.abc.part").write_bytes(b"half")
    (cache.folder / "notes.txt").write_text("mine")
    removed = cache.clear()
    assert removed.entries == 1
    assert cache.size() == (0, 0)
    assert (cache.folder / "notes.txt").exists()
    cache.put(key(1), entry_of(1))
    assert same(cache.get(key(1)), entry_of(1))


def test_a_folder_that_cannot_be_made_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Work goes on without the cache, and the log says so once."""
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file" / "cache", LARGE)
    for number in range(3):
        cache.put(key(number), entry_of(number))
        assert cache.get(key(number)) is None
    assert len(caplog.messages) == 1


def test_what_cannot_be_read_stops_nothing(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Where the disk refuses to give an entry, work goes on without the cache, and says so once."""
    file_of(cache, 1).mkdir()
    for _ in range(2):
        assert cache.get(key(1)) is None
    cache.put(key(2), entry_of(2))
    assert not file_of(cache, 2).exists()
    assert len(caplog.messages) == 1


def test_a_full_disk_stops_nothing(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written is not there, leaves nothing behind and is said once."""
    cache.put(key(1), entry_of(1))
    with files_of_at_most(2500):
        for number in (2, 3):
            cache.put(key(number), entry_of(number, n=5))
    again = Cache(cache.folder, LARGE)
    assert same(again.get(key(1)), entry_of(1))
    assert again.get(key(2)) is None
    assert not [file for file in cache.folder.iterdir() if file.name.startswith(".")]
    assert len(caplog.messages) == 1


WRITER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from client.cache import Cache, key_of
from client.cache_entry import Entry
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
for kill in range(kills):
    child = os.fork()
    if not child:
        cache = Cache(folder, 10**9)
        for number in range(10**6):
            own = kill * 10**6 + number
            pixels = np.full((3, 1, 128, 128), own % 2048, np.float16)
            cache.put(key_of(f"{own:064x}", {}), Entry(pixels, {"number": own}))
    time.sleep(random.uniform(0.002, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_whole_entries(tmp_path: Path) -> None:
    """Of a writer that is killed again and again, every entry that is there is whole."""
    folder = tmp_path / "cache"
    subprocess.run([sys.executable, "-c", WRITER, folder, "40"], cwd=ROOT, check=True)
    cache, found = Cache(folder, LARGE), 0
    for file in folder.glob("*.safetensors"):
        entry = cache.get(file.stem)
        assert entry is not None
        own = entry.said["number"]
        assert file.stem == key(own)
        assert entry.pixels.shape == (3, 1, 128, 128)
        assert (entry.pixels == own % 2048).all()
        found += 1
    assert found > 40


FILLER = """
import sys
from pathlib import Path
import numpy as np
from client.cache import Cache, key_of
from client.cache_entry import Entry
cache = Cache(Path(sys.argv[1]), int(sys.argv[2]))
for number in range(300):
    key = key_of(f"{number:064x}", {})
    found = cache.get(key)
    if found is None:
        pixels = np.full((1, 1, 64, 64), number, np.float16)
        cache.put(key, Entry(pixels, {"number": number}))
    else:
        assert (found.pixels == number).all() and found.said["number"] == number
"""


@pytest.mark.parametrize("bound", [LARGE, 400_000])
def test_two_processes_fill_the_same_cache(tmp_path: Path, bound: int) -> None:
    """Neither hinders the other, what is there is whole, and the bound holds for both together."""
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", FILLER, str(folder), str(bound)]
    filling = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in filling:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    cache = Cache(folder, bound)
    kept = [number for number in range(300) if cache.get(key(number)) is not None]
    for number in kept:
        found = cache.get(key(number))
        assert found is not None
        assert (found.pixels == number).all()
    assert cache.size().bytes <= bound
    assert len(kept) == 300 if bound == LARGE else len(kept) > 20


def test_the_key_is_of_content_and_recipe(tmp_path: Path) -> None:
    """Another byte or another recipe gives another key; the order of a recipe's parts does not."""
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    content = content_of(file)
    assert content_of(file) == content
    assert key_of(content, {"a": 1, "b": None}) == key_of(content, {"b": None, "a": 1})
    assert key_of(content, {"a": 1}) != key_of(content, {"a": 2})
    file.write_bytes(b"two")
    assert content_of(file) != content


def test_the_content_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    """A file changed, renamed, added or taken away is another content; the folder's name is not."""
    folder = tmp_path / "series"
    (folder / "part").mkdir(parents=True)
    (folder / "1.dcm").write_bytes(b"one")
    (folder / "part" / "2.dcm").write_bytes(b"two")
    seen = [content_of(folder)]
    folder = folder.rename(tmp_path / "renamed")
    assert content_of(folder) == seen[0]
    (folder / "1.dcm").write_bytes(b"One")
    seen.append(content_of(folder))
    (folder / "1.dcm").rename(folder / "3.dcm")
    seen.append(content_of(folder))
    (folder / "part" / "2.dcm").unlink()
    seen.append(content_of(folder))
    assert len(set(seen)) == 4


def test_a_site_says_where_and_how_much(tmp_path: Path) -> None:
    """The folder is below ``state`` unless the site names one, and 0 megabytes are no cache."""
    log = logging.getLogger("test_cache")
    data = {"ct": TaskFiles(manifest=tmp_path / "labels.csv")}
    config = SiteConfig(name="a", data=data, state=tmp_path / "state")
    made = cache_of(config, log)
    assert made is not None
    assert made.folder == tmp_path / "state" / "cache"
    named = config.model_copy(update={"cache": tmp_path / "own"})
    assert named.cache_folder == tmp_path / "own"
    off = config.model_copy(update={"limits": Limits(max_cache_mb=0)})
    assert cache_of(off, log) is None
