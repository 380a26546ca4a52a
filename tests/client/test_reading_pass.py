"""Laws of the reading pass: every row once, in order, whatever is in the files."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image

from client.cache import Cache
from client.config import SiteConfig, TaskFiles
from client.images import read_image
from client.manifest import Row
from client.preprocess import prepare
from client.reading_pass import RowRead, read_rows, workers_of
from common.imaging import Preparation
from common.study import Task

TASK = Task(modality="fundus", classes=["well", "ill"])
SIZE = 32
TRAPS = """
import os, sys
def trap(event, arguments):
    name = str(arguments[0]) if event == "open" else ""
    if name.endswith("crash.png") or "NOTHING" in os.environ and name.endswith(".png"):
        os.abort()
sys.addaudithook(trap)
"""
"""Makes a process really crash where it opens a file of that name, or any image."""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9)


def row_of(file: Path, line: int = 2, **fields: Any) -> Row:
    return Row(line, file, 0, "hash", "hash", **fields)


def rows_of(folder: Path, count: int) -> list[Row]:
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        shape = (40 + number, 30, 3) if number % 3 == 2 else (40 + number, 30)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(row_of(folder / f"{number}.png", number + 2))
    return rows


def read(rows: Sequence[Row], task: Task = TASK, **arguments: Any) -> list[RowRead]:
    settings = {"size": SIZE, "cache": None, "workers": 2, "apart": False}
    return list(read_rows(rows, task, **(settings | arguments)))


def same(one: RowRead, other: RowRead) -> bool:
    return one._replace(pixels=None) == other._replace(pixels=None) and np.array_equal(
        np.asarray(one.pixels), np.asarray(other.pixels)
    )


@pytest.mark.parametrize(("workers", "apart"), [(1, False), (3, False), (2, True)])
def test_every_row_comes_once_and_in_order(tmp_path: Path, *, workers: int, apart: bool) -> None:
    """Here or apart, by one or by three, each row gives its own prepared image."""
    rows = rows_of(tmp_path, 20)
    found = read(rows, workers=workers, apart=apart)
    assert [one.row for one in found] == rows
    for one in found:
        assert (one.error, one.code) == ("", "")
        expected = prepare(read_image(one.row.path, modality="fundus"), SIZE)
        assert np.array_equal(np.asarray(one.pixels), expected[None].numpy())


def test_no_rows_are_no_work() -> None:
    """Nothing comes of nothing, and no process is started."""
    assert read([], apart=True) == []


def test_what_is_known_of_a_row_is_of_its_pixels(tmp_path: Path) -> None:
    """Shares of 0 and 1, mean and hash are those of the whole image, counted by hand."""
    pixels = np.random.default_rng(0).integers(1, 255, (64, 64)).astype(np.uint8)
    pixels[:16], pixels[16:24] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = read([row_of(tmp_path / "a.png")])
    assert found.look is not None
    assert (found.look.dark, found.look.bright) == (0.25, 0.125)
    assert found.look.mean == pytest.approx(pixels.mean() / 255)
    assert found.look.phash == str(imagehash.phash(Image.fromarray(pixels)))
    assert found.look.parts == ("",)
    assert (found.look.facts.kind, found.look.facts.rows) == ("PNG", 64)


def test_similar_pictures_have_similar_hashes(tmp_path: Path) -> None:
    """A picture saved smaller, as JPEG and brighter stays within few bits; another does not."""
    ramp = np.add.outer(np.arange(200), 2 * np.arange(160)) % 251
    picture = Image.fromarray(ramp.astype(np.uint8)).resize((640, 800))
    picture.save(tmp_path / "0.png")
    Image.eval(picture.resize((512, 640)), lambda v: min(255, v + 9)).save(tmp_path / "1.jpg")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "2.png")
    rows = [row_of(file) for file in sorted(tmp_path.iterdir())]
    hashes = [int(one.look.phash, 16) for one in read(rows) if one.look is not None]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 8
    assert (hashes[0] ^ hashes[2]).bit_count() > 16


def test_the_second_time_nothing_is_decoded(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cache comes the same, though every process that opens an image would crash."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TRAPS)
    rows = rows_of(tmp_path, 6)
    first = read(rows, cache=cache)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("NOTHING", "is read")
    again = read(rows, cache=cache, apart=True)
    assert all(same(one, other) for one, other in zip(first, again, strict=True))
    assert cache.size().entries == len(rows)
    assert read(rows[:1], apart=True)[0].error


def test_a_crash_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that kill the processes that read them are unreadable, and all others are read."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TRAPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    rows = rows_of(tmp_path, 5)
    for number in (1, 2):
        bad = tmp_path / f"{number}-crash.png"
        rows[number] = replace(rows[number], path=rows[number].path.rename(bad))
    found = read(rows, apart=True)
    assert [number for number, one in enumerate(found) if one.error] == [1, 2]
    assert "crashed" in found[1].error
    assert found[1].code == "image"


def test_unreadable_rows_are_told_of(tmp_path: Path) -> None:
    """A row that is no image or is missing has an error that names its file, and no pixels."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [*rows_of(tmp_path, 2), row_of(tmp_path / "bad.png"), row_of(tmp_path / "none.png")]
    found = read(rows)
    assert [bool(one.error) for one in found] == [False, False, True, True]
    for one in found[2:]:
        assert str(one.row.path) in one.error
        assert (one.code, one.pixels, one.look) == ("image", None, None)


def test_other_content_is_another_entry(tmp_path: Path, cache: Cache) -> None:
    """A file that changed is read anew, though its path, size and time are what they were."""
    file = tmp_path / "a.bmp.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    Image.fromarray(pixels).save(file, compress_level=0)
    before = file.stat()
    first = read([row_of(file)], cache=cache)[0]
    Image.fromarray(255 - pixels).save(file, compress_level=0)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    second = read([row_of(file)], cache=cache)[0]
    assert first.content != second.content
    assert not np.array_equal(np.asarray(first.pixels), np.asarray(second.pixels))
    assert same(second, read([row_of(file)])[0])
    assert cache.size().entries == 2


def test_another_recipe_is_another_entry(tmp_path: Path, cache: Cache) -> None:
    """Size, window, slices, intensity, preparation and side are in the key; the label is not."""
    rows = rows_of(tmp_path, 1)
    read(rows, cache=cache)
    read([replace(rows[0], label=1, patient="other", line=9)], cache=cache)
    read(rows, TASK.model_copy(update={"per_patient": "max"}), cache=cache)
    assert cache.size().entries == 1
    read(rows, cache=cache, size=48)
    read([replace(rows[0], laterality="L")], cache=cache)
    read([replace(rows[0], slices=(1,))], cache=cache)
    for change in (
        {"window": (40.0, 400.0)},
        {"slices": "all"},
        {"intensity": "zscore"},
        {"modality": "OCT"},
        {"preparation": Preparation(aspect="pad")},
    ):
        read(rows, TASK.model_copy(update=change), cache=cache)
    assert cache.size().entries == 9


def test_what_another_version_kept_is_made_anew(tmp_path: Path, cache: Cache) -> None:
    """An entry whose facts have other names than those of today is read again."""
    rows = rows_of(tmp_path, 1)
    (first,) = read(rows, cache=cache)
    (kept,) = cache.folder.glob("*.safetensors")
    entry = cache.get(kept.stem)
    assert entry is not None
    cache.put(kept.stem, entry._replace(said={"facts": {"colour": "red"}}))
    assert same(read(rows, cache=cache)[0], first)


def test_progress_counts_the_rows(tmp_path: Path) -> None:
    """It is told after each row, whether or not it could be read."""
    rows = [*rows_of(tmp_path, 3), row_of(tmp_path / "none.png")]
    told: list[int] = []
    read(rows, progress=told.append)
    assert told == [1, 2, 3, 4]


def test_a_pass_may_be_left_early(tmp_path: Path) -> None:
    """Who takes only some rows ends the pass with no more than a few of the others read."""
    rows = rows_of(tmp_path, 30)
    reading = read_rows(rows, TASK, size=SIZE, cache=None, workers=1, apart=False)
    assert next(reading).row == rows[0]
    reading.close()


def test_pages_of_one_file_are_images_of_one_row(tmp_path: Path) -> None:
    """Each page of a TIFF is an image, in order; grey among colour gets three equal channels."""
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    task = TASK.model_copy(update={"slices": "all"})
    (found,) = read([row_of(tmp_path / "a.tif")], task)
    assert found.pixels is not None
    assert found.look is not None
    assert found.look.parts == ("1", "2", "3")
    for page, pixels in zip(pages, found.pixels, strict=True):
        expected = prepare(np.asarray(page, np.float32) / np.float32(255), SIZE)
        assert np.array_equal(pixels, expected.numpy())


def test_the_site_says_how_many_read(tmp_path: Path) -> None:
    """A process for each core, up to 8, or as many as the site names; with 0, its own threads."""
    data = {"ct": TaskFiles(manifest=tmp_path / "labels.csv")}
    config = SiteConfig(name="a", data=data, threads=3)
    cores = len(os.sched_getaffinity(0))
    assert workers_of(config) == (min(cores, 8), True)
    assert workers_of(config.model_copy(update={"readers": 5})) == (5, True)
    assert workers_of(config.model_copy(update={"readers": 0})) == (3, False)
