"""What head-only training sends, against training the whole network.

The same three-task study is played twice, with ``training.train`` of ``head`` and of ``all``. What
counts are the bytes down and up of one site and round (the largest of each) once every site has
the base: frozen arrays travel a single time, which stands in the details.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study
from simulations.federation import play

LIMIT = 0.02


def main(
    backbone: Annotated[str, typer.Option(help="Any timm name.")] = "mobilenetv2_100",
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 32,
    patients: Annotated[int, typer.Option(help="Patients of each site.")] = 16,
) -> None:
    """Measure, print, and end with 1 above the limit."""
    with tempfile.TemporaryDirectory() as name:
        made = phantom_hospitals(Path(name) / "hospitals", sites=3, patients=patients)
        found = {}
        for train in ("all", "head"):
            # The seed's random weights are enough: how much travels does not depend on values.
            weights = Path(name) / "start.safetensors"
            section = {"name": backbone, "weights": "none", "image_size": image_size}
            if train == "head":
                section["weights"] = str(weights)
            study = phantom_study(rounds=2, backbone=section, training={"train": train})
            played = play(study, made, Path(name) / train, threads=1)
            if train == "all":
                weights.write_bytes(played.outcome.model.read_bytes())
            found[train] = _bytes(played.outcome.records)
    head, full = found["head"]["round"], found["all"]["round"]
    result = Result(
        name="wire",
        figure=head,
        against={"what": "the whole network trained", "figure": full, "unit": "bytes a round"},
        ratio=head / full,
        limit=LIMIT,
        holds=head / full < LIMIT,
        details={"backbone": backbone, **found},
    )
    raise typer.Exit(result.tell())


def _bytes(records: Any) -> dict[str, int]:
    """Most bytes of a site: in round 2, which is as all later ones, and once in round 1."""
    first, later = records[0].bytes, records[1].bytes
    return {
        "round": max(way["down"] + way["up"] for way in later.values()),
        "once": max(first[site]["down"] - later[site]["down"] for site in later),
    }


if __name__ == "__main__":
    typer.run(main)
