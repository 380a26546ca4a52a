"""What an exchange with a site takes beside the work itself, against a plain Flower app.

A deployed federation of one hospital plays a study of a small network; what counts is the wall
time of a round without the hospital's own evaluation and training. The peer is a Flower app as
its documentation shows one, whose ClientApp imports torch, torchvision and timm; it sends back
one small array at once.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simulations.benches.deployed import finished, plain_flower, running
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study

LIMIT = 0.55
LIMIT_SECONDS = 7.0


def main(exchanges: Annotated[int, typer.Option(help="Of each.")] = 8) -> None:
    """Measure, print, and end with 1 above the limits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = phantom_hospitals(folder / "hospitals", sites=1, patients=12)
        study = phantom_study(
            rounds=exchanges,
            backbone={"image_size": 32},
            federation={"quorum": 1, "deadline_s": 300.0},
        )
        # The first phantom hospital has the first task alone.
        first = next(iter(study.tasks))
        study = study.model_copy(update={"tasks": {first: study.tasks[first]}})
        with running(folder, study, made) as (deployed, study_id):
            records = finished(deployed, study_id)
        ours = [
            r.seconds["total"] - r.seconds["training"] - r.seconds["evaluation"]
            for r in records
            if r.trained
        ]
        settings = {"nodes": 1, "exchanges": exchanges}
        (folder / "peer").mkdir()
        peer = plain_flower(folder / "peer", nodes=1, settings=settings, fedavg=False)["seconds"]
    figure, against = statistics.median(ours), statistics.median(peer)
    result = Result(
        name="exchange",
        figure=figure,
        against={"what": "a plain Flower app with torch", "figure": against, "unit": "s"},
        ratio=figure / against,
        limit=LIMIT,
        holds=figure <= LIMIT_SECONDS and figure / against <= LIMIT,
        details={"ours": ours, "peer": peer, "limit_seconds": LIMIT_SECONDS},
    )
    raise typer.Exit(result.tell())


if __name__ == "__main__":
    typer.run(main)
