"""How many images `check` reads for the work that two processes spend on decoding alone.

Phantoms of CT, 512 x 512 pixels with a scanner's noise, are written as DICOM in lossless JPEG 2000.
The floor is two processes that call pydicom for half of the files each and throw the pixels away.
The check reads them with two processes too; beside, it hashes each file, looks at its pixels,
prepares and keeps the image. It gets a new cache each time, and the old ones stay until the end,
for a file system seeks longer where many files have just gone. In ``details`` is the same of native
files, of which pydicom merely copies the bytes, and of one process of either kind: of two cores one
is left then for what the check does beside reading.

Times are CPU time of all processes, when all of them are up: other processes of the machine disturb
it less, and on a machine of two cores two busy readers spend two seconds of it a second. Runs of
both kinds take turns, and the least of each counts.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from client.check import check_site
from client.config import SiteConfig
from common.files import write_table
from common.study import Study
from simulations.benches.ct_files import write_ct_files
from simulations.benches.result import Result

WORKERS, LIMIT = 2, 0.9
WARM = 20
"""Images that a check reads before the clock starts, for its readers to be up, and after it stops:
as many others are begun and not done at either moment."""
CLASSES = ("healthy", "gaucher")
KINDS = {"native": False, "jpeg2000": True}
PLAIN = """
import sys, time
from pydicom import dcmread
dcmread(sys.argv[1]).pixel_array
began = time.process_time()
for path in sys.argv[1:]:
    dcmread(path).pixel_array
print(time.process_time() - began)
"""
"""The program of a process that only decodes."""


def main(
    files: Annotated[int, typer.Option(help="DICOM files of each kind.", min=3 * WARM)] = 150,
    repeats: Annotated[int, typer.Option(help="Runs of each kind.")] = 8,
) -> None:
    """Measure, print, and end with 1 where the check is too slow."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, compressed in KINDS.items():
            config, paths = _hospital(Path(name) / kind, files, compressed=compressed)
            for workers in (WORKERS, 1):
                what = kind if workers == WORKERS else f"{kind}_one_process"
                found[what] = _taking_turns(config, paths, workers, repeats)
    plain_ms, check_ms = found["jpeg2000"]["plain_ms"], found["jpeg2000"]["check_ms"]
    result = Result(
        name="check_speed",
        figure=WORKERS * 1e3 / check_ms,
        against={
            "what": f"{WORKERS} processes of pydicom",
            "figure": WORKERS * 1e3 / plain_ms,
            "unit": "images/s",
        },
        ratio=plain_ms / check_ms,
        limit=LIMIT,
        holds=plain_ms / check_ms >= LIMIT,
        details={"files": files, **found},
    )
    raise typer.Exit(result.tell())


def _taking_turns(
    config: SiteConfig, paths: Sequence[Path], workers: int, repeats: int
) -> dict[str, float]:
    """Return the least milliseconds of CPU time for an image, of plain processes and of checks."""
    plain, check = [], []
    for number in range(repeats):
        plain.append(_plain(paths, workers))
        changed = {"readers": workers, "cache": config.cache_folder / f"{workers}-{number}"}
        check.append(_checked(config.model_copy(update=changed)))
    return {"plain_ms": min(plain), "check_ms": min(check)}


def _hospital(folder: Path, files: int, *, compressed: bool) -> tuple[SiteConfig, list[Path]]:
    folder.mkdir()
    rows = write_ct_files(folder, files, compressed=compressed)
    table = [
        {"path": row.path.name, "label": CLASSES[row.label], "patient_id": row.patient}
        for row in rows
    ]
    write_table(folder / "labels.csv", ("path", "label", "patient_id"), table)
    (folder / "site.toml").write_text(
        'name = "bench"\n[data.ct]\nmanifest = "labels.csv"\n', encoding="utf-8"
    )
    return SiteConfig.load(folder), [row.path for row in rows]


def _checked(config: SiteConfig) -> float:
    """Return the milliseconds of CPU time that an image takes in a check."""
    study = Study.parse(
        {
            "name": "check-speed",
            "rounds": 1,
            "backbone": {"name": "test_resnet", "weights": "none", "image_size": 224},
            "tasks": {"ct": {"modality": "CT", "classes": list(CLASSES), "window": [40, 400]}},
        }
    )
    spent: list[float] = []

    def tell(_: str, done: int, rows: int) -> None:
        if done in {WARM, rows - WARM}:
            spent.append(_cpu_of_all())

    rows = sum(1 for _ in config.data["ct"].manifest.open()) - 1
    check_site(study, config, log=logging.getLogger("bench"), progress=tell)
    return 1e3 * (spent[1] - spent[0]) / (rows - 2 * WARM)


def _plain(paths: Sequence[Path], workers: int = WORKERS) -> float:
    """Return the milliseconds of CPU time that an image takes in processes that only decode."""
    processes = [
        subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-c", PLAIN, *map(str, paths[number::workers])],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(workers)
    ]
    return 1e3 * sum(float(process.communicate()[0]) for process in processes) / len(paths)


def _cpu_of_all() -> float:
    """Return the seconds of CPU time that this process and its children have spent (proc(5))."""
    spent = time.process_time()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == os.getpid():  # its parent
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


if __name__ == "__main__":
    typer.run(main)
