"""Bytes on the wire of a deployed federation against the arrays that travel.

What passes the front, as it counts requests and responses itself, is held against the content of
orders and replies. The same study with ``update_dtype = "float16"`` halves what the sites send.
What that costs in accuracy measures ``half``, on images that a network can learn something from.
"""

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from common.study import Study
from server.history import RoundRecord
from simulations.benches.deployed import finished, running
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study

LIMIT = 1.05
HALF_LIMIT = 0.52


def main(
    backbone: Annotated[str, typer.Option(help="Any timm name.")] = "mobilenetv2_100",
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 3,
) -> None:
    """Measure, print, and end with 1 above the limits."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for dtype in ("float32", "float16"):
            study = phantom_study(
                rounds=rounds,
                backbone={"name": backbone, "image_size": 64},
                federation={"update_dtype": dtype, "deadline_s": 600.0},
            )
            (Path(name) / dtype).mkdir()
            found[dtype] = _measured(Path(name) / dtype, study)
    full, half = found["float32"], found["float16"]
    ratio = full["wire"] / full["content"]
    result = Result(
        name="wire_deployed",
        figure=full["wire"],
        against={"what": "arrays that travel", "figure": full["content"], "unit": "bytes"},
        ratio=ratio,
        limit=LIMIT,
        holds=ratio <= LIMIT and half["up"] / full["up"] <= HALF_LIMIT,
        details={"found": found, "up_half": half["up"] / full["up"]},
    )
    raise typer.Exit(result.tell())


def _measured(folder: Path, study: Study) -> dict[str, Any]:
    made = phantom_hospitals(folder / "hospitals", sites=3, patients=40)
    with running(folder, study, made) as (deployed, study_id):
        records = finished(deployed, study_id)
        log = deployed.coordinator / "logs" / "front.log"
    return {
        "wire": _passed(log),
        "content": sum(_content(records, way) for way in ("down", "up")),
        "up": _content(records, "up"),
    }


def _content(records: list[RoundRecord], way: str) -> int:
    return sum(sizes[way] for record in records for sizes in record.bytes.values())


def _passed(log: Path) -> int:
    """Return the bytes of all requests and responses in the front's log."""
    pairs = re.findall(r" in=(\d+) out=(\d+)", log.read_text(encoding="utf-8"))
    return sum(int(came) + int(went) for came, went in pairs)


if __name__ == "__main__":
    typer.run(main)
