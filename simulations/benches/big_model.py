"""A model of 550 MB (VGG16) goes round three sites: the memory of Flower's app processes.

Resident memory at its peak, in models: of the ServerApp, which runs the rounds, and of the
courier's ClientApp, which carries orders to the vault. The peer is Flower's FedAvg in a plain app
with the same network and as many nodes.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simulations.benches.deployed import PeakMemory, finished, plain_flower, running
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study

PROGRAMS = ("flwr-serverapp", "flwr-clientapp")
LIMITS = {"flwr-serverapp": 4.0, "flwr-clientapp": 3.0}


def main(
    backbone: Annotated[str, typer.Option(help="Any timm name.")] = "vgg16",
    sites: Annotated[int, typer.Option(help="Hospitals, and nodes of the peer.")] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds of each.")] = 1,
    *,
    peer: Annotated[bool, typer.Option(help="Measure the peer too.")] = True,
) -> None:
    """Measure, print, and end with 1 above the limits."""
    study = phantom_study(
        rounds=rounds,
        backbone={"name": backbone, "image_size": 32},
        training={"optimizer": "sgd", "batch_size": 4},
        federation={"quorum": sites, "deadline_s": 1800.0},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = phantom_hospitals(folder / "hospitals", sites=sites, patients=6)
        with running(folder, study, made) as (deployed, study_id):
            with PeakMemory(folder, PROGRAMS) as ours:
                records = finished(deployed, study_id)
            model = (deployed.study_folder(study_id) / "model.safetensors").stat().st_size
        theirs: dict[str, int] = {}
        if peer:
            (folder / "peer").mkdir()
            settings = {"nodes": sites, "rounds": rounds, "backbone": backbone}
            with PeakMemory(folder / "peer", PROGRAMS) as watched:
                plain_flower(folder / "peer", nodes=sites, settings=settings, fedavg=True)
            theirs = watched.peaks
    models = {program: ours.peaks[program] / model for program in PROGRAMS}
    against = {program: peak / model for program, peak in theirs.items()}
    server = PROGRAMS[0]
    result = Result(
        name="big_model",
        figure=models[server],
        against={
            "what": "FedAvg's ServerApp",
            "figure": against.get(server, 0.0),
            "unit": "models",
        },
        ratio=models[server] / against[server] if server in against else 0.0,
        limit=LIMITS[server],
        holds=all(models[program] < LIMITS[program] for program in PROGRAMS),
        details={
            "model_bytes": model,
            "models": models,
            "peer_models": against,
            "limits": LIMITS,
            "seconds": [record.seconds["total"] for record in records],
        },
    )
    raise typer.Exit(result.tell())


if __name__ == "__main__":
    typer.run(main)
