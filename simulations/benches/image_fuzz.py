"""Damaged images against the reader: nothing but a refusal or an image may come of them.

Files of every kind that is read, made here and taken from a folder, have bytes changed, cut out,
put in and cut off. They are read in processes apart. An exception that is no ``ImageError``, a
process that ends, more than 10 s for one file, or more memory than the bound is a failure; the file
is kept.
"""

import faulthandler
import gzip
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Annotated

import nibabel
import numpy as np
import typer
from PIL import Image

from client.images import read_images
from client.pictures import Reading
from common.errors import ImageError
from simulations.benches.real import SHARED
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals

SECONDS = 10.0
"""The longest that one file may take."""
MEMORY = 3 << 30
"""What a process that reads may have in use, in bytes; an image of 64 million pixels fits."""
LARGEST = 600_000
"""Bytes of the largest file that is taken from a folder."""
READINGS = [
    Reading(modality, None, slices)
    for modality in ("CT", "MR", "other")
    for slices in ("one", "all", "middle:2", "planes")
]
_RUNS = ((b"\xff" * 4), (b"\0" * 4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0")


def main(
    count: Annotated[int, typer.Option(help="How many files.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Start of the random choices.")] = 0,
    folder: Annotated[Path, typer.Option(help="Real files to begin with.")] = SHARED / "dicom",
    keep: Annotated[Path, typer.Option(help="Where files that fail are kept.")] = Path("fuzz"),
) -> None:
    """Try them, print, and end with 1 if one does harm."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        seeds = [*_made(Path(name)), *_found(folder)]
        failed, tried, read, peak = [], 0, 0, 0
        while tried < count:
            done, good, memory, error = _play(seeds, seed + tried, count - tried, Path(name))
            read, peak = read + good, max(peak, memory)
            if error:
                failed.append(error)
                _keep(Path(name) / "case", keep / f"case-{seed + tried + done}")
            tried += max(1, done)
    result = Result(
        name="image_fuzz",
        figure=len(failed),
        against={"what": "files tried", "figure": tried, "unit": "files"},
        ratio=len(failed) / tried,
        limit=0,
        holds=not failed,
        details={
            "failed": failed[:20],
            "read": read,
            "seeds": len(seeds),
            "peak_bytes": peak,
            "seconds": time.perf_counter() - began,
        },
    )
    raise typer.Exit(result.tell())


def _play(
    seeds: list[bytes], seed: int, count: int, folder: Path
) -> tuple[int, int, int, str | None]:
    """Read up to ``count`` damaged files in a process of its own.

    Returns:
        How many were begun, how many gave an image, the peak memory in bytes, and what went wrong
        with the last.
    """
    context = multiprocessing.get_context("spawn")
    state = context.Array("q", 3, lock=False)
    process = context.Process(target=_child, args=(seeds, seed, count, folder, state))
    process.start()
    process.join()
    begun, read, peak = state
    if process.exitcode == 0:
        return begun, read, peak, None
    return begun, read, peak, f"file {seed + begun - 1}: exit {process.exitcode}"


def _child(seeds: list[bytes], seed: int, count: int, folder: Path, state: list[int]) -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there of what they are given
    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))
    for number in range(count):
        random, file = Random(seed + number), folder / "case"
        file.write_bytes(damaged(random.choice(seeds), random))
        state[0] = number + 1
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            read_images(file, random.choice(READINGS))
        except ImageError:
            pass
        else:
            state[1] += 1
        faulthandler.cancel_dump_traceback_later()
        state[2] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if state[2] > MEMORY:
            raise MemoryError


def damaged(content: bytes, random: Random) -> bytes:
    """Return a file's content with some bytes changed, mostly in its header."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        place = random.randrange(min(len(data), 800) if random.random() < 0.6 else len(data))
        match random.randrange(6):
            case 0 | 1:
                data[place] = random.randrange(256)
            case 2:
                data[place : place + 4] = random.choice(_RUNS)
            case 3:
                del data[place : place + random.randint(1, 20)]
            case 4:
                data[place:place] = random.randbytes(random.randint(1, 8))
            case 5 if random.random() < 0.3:
                del data[place:]
            case _:
                data[place] ^= 1 << random.randrange(8)
        data = data or bytearray(b"\0")
    return bytes(data)


def _made(folder: Path) -> list[bytes]:
    """Return one file of each kind that can be made here."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (24, 20), np.uint8)
    colour = rng.integers(0, 256, (24, 20, 3), np.uint8)
    made = []
    for values, form in (
        (grey, "PNG"), (grey.astype(np.uint16) * 257, "PNG"), (colour, "PNG"), (colour, "JPEG"),
        (grey, "TIFF"), (colour, "TIFF"),
    ):  # fmt: skip
        Image.fromarray(values).save(file := BytesIO(), form)
        made.append(file.getvalue())
    volume = rng.integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    nifti = nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])).to_bytes()
    made += [nifti, gzip.compress(nifti)]
    phantom_hospitals(folder / "hospitals", sites=1, patients=2)
    made += [file.read_bytes() for file in sorted(folder.rglob("*.dcm"))[::3]]
    return made


def _found(folder: Path) -> list[bytes]:
    files = sorted(p for p in folder.glob("*") if p.is_file() and p.suffix != ".md")
    return [p.read_bytes() for p in files if 0 < p.stat().st_size <= LARGEST]


def _keep(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(file.read_bytes())


if __name__ == "__main__":
    typer.run(main)
