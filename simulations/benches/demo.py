"""What ``rarefed-sim demo`` takes: wall time, and memory of all its processes together.

The demo runs in a process of its own, as a user would start it. Memory is the resident memory of
that process and its children (VmRSS of Linux's /proc, shared pages counted in each), looked
at every tenth of a second.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from simulations.benches.result import Result

LIMIT_S = 180.0
LIMIT_BYTES = 4 * 2**30


def main() -> None:
    """Measure, print, and end with 1 above a limit."""
    with tempfile.TemporaryDirectory() as name:
        command = [
            str(Path(sys.executable).parent / "rarefed-sim"),
            "demo",
            "--out",
            f"{name}/demo",
        ]
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            peak = max(peak, sum(resident(pid) for pid in family(process.pid)))
            time.sleep(0.1)
        seconds = time.perf_counter() - began
    good = process.returncode == 0 and seconds < LIMIT_S and peak < LIMIT_BYTES
    result = Result(
        name="demo",
        figure=seconds,
        against={"what": "the limit itself", "figure": LIMIT_S, "unit": "s"},
        ratio=seconds / LIMIT_S,
        limit=1.0,
        holds=good,
        details={"peak_bytes": peak, "limit_bytes": LIMIT_BYTES, "exit_code": process.returncode},
    )
    raise typer.Exit(result.tell())


def family(pid: int) -> list[int]:
    """Return a process and all that it started, by their numbers."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [pid, *(found for child in text.split() for found in family(int(child)))]


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    typer.run(main)
