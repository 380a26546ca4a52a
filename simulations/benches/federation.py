"""Three hospitals over TLS on loopback against the inline simulation of the same study.

The deployed study may take the simulation's wall time, 8 s more for each round (Flower's own
polling takes about 6 s an exchange), and its start-up: from the submission to the first order.
Both compute with one torch thread a site, as three hospitals share one machine here.
"""

import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from simulations.benches.deployed import finished, running
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study
from simulations.deployment import give_one_thread
from simulations.federation import play

SECONDS_A_ROUND = 8.0


def main(
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 5,
    patients: Annotated[int, typer.Option(help="Patients of each site.")] = 40,
) -> None:
    """Measure, print, and end with 1 above the limit."""
    study = phantom_study(rounds=rounds, training={"local_epochs": 2})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = phantom_hospitals(folder / "hospitals", sites=3, patients=patients)
        twins = phantom_hospitals(folder / "twins", sites=3, patients=patients)
        give_one_thread(made)
        began = time.perf_counter()
        play(study, twins, folder / "inline", threads=1)
        inline = time.perf_counter() - began
        with running(folder, study, made) as (deployed, study_id):
            submitted = time.time()
            records = finished(deployed, study_id)
            ended = deployed.study_folder(study_id) / "progress.json"
            end = datetime.fromisoformat(json.loads(ended.read_text(encoding="utf-8"))["at"])
        in_rounds = sum(record.seconds["total"] for record in records)
    wall = end.timestamp() - submitted
    limit = inline + SECONDS_A_ROUND * (rounds + 1)  # the last exchange only measures
    result = Result(
        name="federation",
        figure=in_rounds,
        against={"what": "inline simulation", "figure": inline, "unit": "s"},
        ratio=in_rounds / inline,
        limit=limit,
        holds=in_rounds <= limit,
        details={
            "wall_with_start_up": wall,
            "start_up": wall - in_rounds,
            "rounds": [record.seconds for record in records],
        },
    )
    raise typer.Exit(result.tell())


if __name__ == "__main__":
    typer.run(main)
