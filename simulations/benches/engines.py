"""Whether the engines agree to the bit: the same study inline, inline again, and on Ray.

Each site computes with one torch thread everywhere. The figure is the number of different
``model.safetensors``; the study is played with averaged and with local normalisation.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from common.files import sha256_of
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study
from simulations.federation import Engine, play

LIMIT = 1.0


def main(
    patients: Annotated[int, typer.Option(help="Patients of each site.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 2,
) -> None:
    """Measure, print, and end with 1 if two models differ."""
    plays: list[tuple[str, Engine]] = [
        ("inline", "inline"), ("inline again", "inline"), ("ray", "ray"),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        made = phantom_hospitals(Path(name) / "hospitals", sites=4, patients=patients)
        details, most = {}, 0
        for normalisation in ("average", "local"):
            study = phantom_study(
                rounds=rounds, backbone={"image_size": 32, "normalisation": normalisation}
            )
            digests, seconds = {}, {}
            for label, engine in plays:
                out = Path(name) / f"{normalisation} {label}"
                played = play(study, made, out, engine=engine, threads=1)
                digests[label] = sha256_of(played.outcome.model)
                seconds[label] = round(played.seconds, 2)
            most = max(most, len(set(digests.values())))
            details[normalisation] = {"sha256": digests, "seconds": seconds}
    result = Result(
        name="engines",
        figure=most,
        against={"what": "one model", "figure": 1, "unit": "different files"},
        ratio=float(most),
        limit=LIMIT,
        holds=most == 1,
        details=details,
    )
    raise typer.Exit(result.tell())


if __name__ == "__main__":
    typer.run(main)
