"""The coordinator's memory while it combines, in models, for 4 sites and for 64.

Each measurement is a process of its own that plays a whole round of ``server/rounds.py`` with a
model of 200 MB (60 arrays, one of them 60 % of all, as in VGG). The sites are a ``Grid`` that
makes each reply when it is pulled, as it would arrive over a network, and keeps nothing. What
counts is anonymous memory (RssAnon of Linux's /proc, looked at every 3 ms): what the process
itself needs, beyond what it had before the round; pages of the model's file, which the system
can drop at any time, do not count. The encoded orders, the sums, the reply at hand, the new
model and the bytes that are written to disk are all within the figure.

The peer is Flower's own FedAvg, given 4 such replies at once, as Flower's own loop does.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

LIMIT = 3.0
SHAPES = {**{f"backbone.c{i}": (576, 588) for i in range(59)}, "backbone.big": (4000, 7500)}
MODEL_BYTES = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())


def main(
    sites: Annotated[list[int] | None, typer.Option(help="Numbers of sites.")] = None,
    measure: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure, print, and end with 1 above the limit."""
    if measure:
        print(json.dumps(_measured(measure, folder)))
        return
    from simulations.benches.result import Result  # noqa: PLC0415 - not in the measured process

    with tempfile.TemporaryDirectory() as name:
        found = {str(n): _in_process(str(n), Path(name)) for n in sites or [4, 64]}
        peer = _in_process("flower", Path(name))
    figure = max(found.values())
    result = Result(
        name="combine_memory",
        figure=figure,
        against={"what": "Flower's FedAvg, 4 sites", "figure": peer, "unit": "models"},
        ratio=figure / peer,
        limit=LIMIT,
        holds=figure <= LIMIT,
        details={"models_by_sites": found, "model_bytes": MODEL_BYTES},
    )
    raise typer.Exit(result.tell())


def _in_process(measure: str, folder: Path) -> float:
    module = "simulations.benches.combine_memory"
    command = [sys.executable, "-m", module, "--measure", measure, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return float(json.loads(done.stdout.splitlines()[-1]))


def _measured(measure: str, folder: Path) -> float:
    from simulations.benches import combine_parts as parts  # noqa: PLC0415 - after the choice

    parts.write_model(folder, SHAPES)
    work = parts.flower_round(folder, SHAPES) if measure == "flower" else None
    if work is None:
        work = parts.our_round(folder, SHAPES, int(measure))
    return _peak(work) / MODEL_BYTES


def _peak(work: Callable[[], Any]) -> int:
    """Return by how many bytes the process's own memory grew while ``work`` ran."""
    before, highest, done = _anonymous(), 0, threading.Event()

    def look() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, _anonymous())
            time.sleep(0.003)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return highest - before


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    typer.run(main)
