"""What a site's memory is while it checks and trains on 10,000 images, and on a tenth of them.

Half of the images are DICOM, half PNG, of 128 x 128 pixels, no two alike; the study prepares them
to 128 x 128, so that all together would take 0.33 GB. Measured are a check, and in a second process
that prepares the study from the cache one local epoch of training. The figure is the highest
resident memory over what the process had when torch and the site's code were loaded, pages of files
and all, and with it that of two processes that read, as of the larger one.
"""

import json
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from client.check import check_site
from client.config import SiteConfig
from client.dataset import batches
from client.site import Site
from client.train import train
from common.files import write_table
from common.study import Study
from simulations.benches.result import Result
from simulations.dicom_files import Origin, write_dicom
from simulations.drawing import Phantom

ROWS, SIDE = 10_000, 128
READERS = 2
LIMIT_MIB, GROWTH_MIB = 1536, 128
CLASSES = ("healthy", "gaucher")
MEASURES = ("check", "train")


def main(
    rows: Annotated[int, typer.Option(help="Images of the larger site.")] = ROWS,
    measure: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure, print, and end with 1 where memory is above the limit or grows with the images."""
    if measure:
        print(json.dumps(_measured(measure, folder)))
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in (rows // 10, rows):
            hospital = Path(name) / f"hospital-{count}"
            write_hospital(hospital, count)
            found[str(count)] = {what: _in_a_process(what, hospital) for what in MEASURES}
    few, many = (max(_total(one) for one in measured.values()) for measured in found.values())
    result = Result(
        name="check_memory",
        figure=many,
        against={"what": f"{rows // 10} images", "figure": few, "unit": "MiB beside torch"},
        ratio=many / few,
        limit=LIMIT_MIB,
        holds=many <= LIMIT_MIB and many - few <= GROWTH_MIB,
        details={"growth_mib": many - few, "growth_limit_mib": GROWTH_MIB, "by_rows": found},
    )
    raise typer.Exit(result.tell())


def write_hospital(folder: Path, count: int) -> None:
    """Write a hospital of as many images, each of its own patient and unlike all others."""
    (folder / "ct" / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.normal(40, 120, (8, 8)).astype(np.float32))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, 12, smooth.shape), -1024, 3071).astype(np.int16)
        pixels[0, 0], pixels[-1, -1] = -1024, 1500  # air and bone, as in any CT
        path = f"images/{number:05d}.{'dcm' if number % 4 < 2 else 'png'}"
        if path.endswith("dcm"):
            phantom = Phantom(pixels, np.zeros(pixels.shape, bool), CLASSES[number % 2])
            origin = Origin("bench", "Phantom", f"p{number}", 0)
            write_dicom(folder / "ct" / path, phantom, modality="CT", origin=origin)
        else:
            grey = np.clip((pixels + 160) / 400 * 255, 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / "ct" / path, compress_level=1)
        rows.append({"path": path, "label": CLASSES[number % 2], "patient_id": f"p{number}"})
    write_table(folder / "ct" / "labels.csv", ("path", "label", "patient_id"), rows)
    site = f'name = "bench"\nreaders = {READERS}\n[data.ct]\nmanifest = "ct/labels.csv"\n'
    (folder / "site.toml").write_text(site, encoding="utf-8")


def _study() -> Study:
    return Study.parse(
        {
            "name": "check-memory",
            "rounds": 1,
            "backbone": {"name": "test_resnet", "weights": "none", "image_size": SIDE},
            "tasks": {"ct": {"modality": "CT", "classes": list(CLASSES), "positive": CLASSES[1]}},
        }
    )


def _measured(measure: str, folder: Path) -> dict[str, float]:
    """Return the MiB that this process takes beside torch, and the largest one that reads."""
    study, config = _study(), SiteConfig.load(folder)
    before = _status("VmRSS")
    with _readers() as readers:
        if measure == "check":
            check_site(study, config, log=logging.getLogger("bench"))
        else:
            _train(study, config)
    return {"own": _status("VmHWM") - before, "reader": max(readers)}


def _train(study: Study, config: SiteConfig) -> None:
    """Prepare the study from the cache, and train one epoch as the site does."""
    site = Site(config)
    prepared = site.prepare(study)
    images = {name: data.splits["train"] for name, data in prepared.tasks.items()}
    sizes = {name: len(data) for name, data in images.items()}
    order = batches(sizes, batch_size=study.training.batch_size, epochs=1, seed=study.seed)
    train(prepared.model, images, order, study, device=site.device)


def _status(key: str, process: str = "self") -> float:
    """Return a size of a process in MiB, by its name in Linux's /proc."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) / 1024


@contextmanager
def _readers() -> Iterator[list[float]]:
    """Give a list of the peaks, in MiB, of the processes that read meanwhile."""
    seen, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            with suppress(OSError, StopIteration):  # a thread or process has just ended
                seen.extend(_reader_peaks())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _reader_peaks() -> list[float]:
    """Return the highest resident memory of each process that reads for this one, in MiB."""
    threads = Path("/proc/self/task").iterdir()
    children = [c for t in threads for c in (t / "children").read_text(encoding="ascii").split()]
    named = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    readers = [child for child, name in named.items() if b"client.reading_worker" in name]
    return [_status("VmHWM", child) for child in readers]


def _total(found: dict[str, float]) -> float:
    return found["own"] + READERS * found["reader"]


def _in_a_process(measure: str, hospital: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "simulations.benches.check_memory"]
    command += ["--measure", measure, "--folder", str(hospital)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    typer.run(main)
