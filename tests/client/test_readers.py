"""Laws of the processes that read images: they read as this one does, and may crash alone."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.images import read_images
from client.pictures import Reading
from client.readers import Reader, read_here
from common.errors import ImageError

FUNDUS = Reading("fundus", None)
TRAPS = """
import os, sys, time
def trap(event, arguments):
    name = str(arguments[0]) if event == "open" else ""
    if name.endswith("crash.png"):
        os.abort()
    if name.endswith("hang.png"):
        time.sleep(60)
    if name.endswith("noisy.png"):
        os.write(1, b"a decoder prints\\n")
sys.addaudithook(trap)
"""
"""Makes a process really crash, hang or print where it opens a file of that name."""


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for images; in processes started from here on, some names are traps."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TRAPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., Reader]]:
    started: list[Reader] = []

    def make(seconds: float = 60.0) -> Reader:
        started.append(Reader(seconds))
        return started[-1]

    yield make
    for reader in started:
        reader.close()


def picture(file: Path, shape: tuple[int, ...] = (40, 30)) -> Path:
    pixels = np.random.default_rng(len(file.name)).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def test_a_process_apart_reads_what_this_one_reads(
    tmp_path: Path, start: Callable[..., Reader]
) -> None:
    """Pixels are the same to the bit, and so is what is known of them; one process reads many."""
    reader = start()
    for name, shape in (("grey.png", (40, 30)), ("röntgen.png", (30, 50, 3))):
        file = picture(tmp_path / name, shape)
        expected = read_images(file, FUNDUS)
        for read in (reader.read, read_here):
            found = read(file, FUNDUS, ())
            assert found.look.facts == expected.facts
            (values,) = found.pictures
            assert np.array_equal(values, expected.pictures[0].values)
            assert values.dtype == np.float32


def test_a_window_travels(shared: Path, start: Callable[..., Reader]) -> None:
    """What the task says of a reading arrives in the process."""
    file, reader = shared / "dicom" / "ct_ge_j2kr.dcm", start()
    for window in (None, (-600.0, 1500.0)):
        reading = Reading("CT", window)
        (values,) = reader.read(file, reading, ()).pictures
        assert np.array_equal(values, read_images(file, reading).pictures[0].values)


def test_all_pictures_of_a_source_come(tmp_path: Path, start: Callable[..., Reader]) -> None:
    """Of a volume each picture comes in its turn, the same as in this process."""
    file, reading = tmp_path / "pages.tif", Reading("other", None, "all")
    pages = [Image.open(picture(tmp_path / f"{'p' * n}.png")) for n in (1, 2, 3)]
    pages[0].save(file, save_all=True, append_images=pages[1:])
    reader = start()
    for _ in range(2):  # taken one by one, for each is there until the next one comes
        found = [values.copy() for values in reader.read(file, reading, ()).pictures]
        assert len(found) == 3
        for values, expected in zip(found, read_here(file, reading, ()).pictures, strict=True):
            assert np.array_equal(values, expected)


def test_an_unreadable_file_is_refused_alike(tmp_path: Path, start: Callable[..., Reader]) -> None:
    """The error is the same as in this process, and the next file is read."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    reader = start()
    with pytest.raises(ImageError) as here:
        read_here(bad, FUNDUS, ())
    with pytest.raises(ImageError) as apart:
        reader.read(bad, FUNDUS, ())
    assert apart.value.message == here.value.message
    assert len(list(reader.read(picture(tmp_path / "good.png"), FUNDUS, ()).pictures)) == 1


def test_a_crash_costs_one_file(trapped: Path, start: Callable[..., Reader]) -> None:
    """A file that kills its process is refused by name, and a new process reads the next."""
    reader = start()
    for _ in range(2):
        with pytest.raises(ImageError, match=r"crash\.png: crashed the process"):
            reader.read(picture(trapped / "crash.png"), FUNDUS, ())
        assert len(list(reader.read(picture(trapped / "good.png"), FUNDUS, ()).pictures)) == 1


def test_a_file_that_takes_too_long_is_refused(trapped: Path, start: Callable[..., Reader]) -> None:
    """The process is ended at the bound, and a new one reads the next."""
    reader = start(0.5)
    with pytest.raises(ImageError, match=r"hang\.png: took more than 0\.5 seconds"):
        reader.read(picture(trapped / "hang.png"), FUNDUS, ())
    assert len(list(start().read(picture(trapped / "good.png"), FUNDUS, ()).pictures)) == 1


def test_what_a_decoder_prints_disturbs_nothing(
    trapped: Path, start: Callable[..., Reader]
) -> None:
    """Output of a library does not get into the answers."""
    (values,) = start().read(picture(trapped / "noisy.png"), FUNDUS, ()).pictures
    assert values.shape == (40, 30)


def test_pictures_that_nobody_took_do_not_come_later(
    tmp_path: Path, start: Callable[..., Reader]
) -> None:
    """Whoever leaves a source's pictures where they are gets those of the next one next."""
    reader = start()
    reader.read(picture(tmp_path / "first.png", (2000, 2000)), FUNDUS, ())
    (values,) = reader.read(picture(tmp_path / "second.png"), FUNDUS, ()).pictures
    assert values.shape == (40, 30)


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no process behind."""
    file = picture(tmp_path / "a.png")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from client.readers import Reader; from client.pictures import Reading\n"
        "reader = Reader(); reader.read(Path(sys.argv[1]), Reading('fundus', None), ())\n"
        "print(reader._apart.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file], stdout=subprocess.PIPE, text=True, check=False
    )
    assert not _alive(int(done.stdout))


def _alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    for _ in range(200):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return False
        time.sleep(0.05)
    return True


def test_a_crash_spares_disk_and_parent(start: Callable[..., Reader], tmp_path: Path) -> None:
    """It leaves no core file, which would hold the image, and is the first to go for memory."""
    reader = start()
    list(reader.read(picture(tmp_path / "a.png"), FUNDUS, ()).pictures)
    assert reader._apart is not None
    assert resource.prlimit(reader._apart.process.pid, resource.RLIMIT_CORE) == (0, 0)
    assert int(Path(f"/proc/{reader._apart.process.pid}/oom_score_adj").read_text()) == 800


def test_the_process_needs_no_torch() -> None:
    """What the process imports does not wait for torch."""
    code = "import sys, client.reading_worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
