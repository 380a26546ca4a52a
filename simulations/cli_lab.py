"""The researcher's command for comparisons."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.command_line import err

out_console = Console()


def register(app: typer.Typer) -> None:
    """Add the command of this file to the researcher's command line."""
    app.command(epilog="Example: rarefed-sim compare federated --quick --out lab")(compare)


def compare(
    lab: Annotated[
        str,
        typer.Argument(
            help="A lab file, or the name of a lab: rare-disease, small-sample, transfer-gain, "
            "strategies or federated."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the results; a lab that was stopped goes on there.")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="The lab's quick form, which ends in minutes.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets that the lab deals.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pretrained weights, BACKBONE.safetensors each; timm's hub without it."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Torch threads; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Train the rows of a lab at the same hospitals, and write one table of all of them."""
    from simulations import lab_results, lab_table
    from simulations.lab import find_lab
    from simulations.lab_reading import load

    loaded = load(find_lab(lab), quick=quick, data=data, weights=weights)
    try:
        table = lab_results.compare(loaded, out, threads=threads, console=err)
    except KeyboardInterrupt:
        err.print("Stopped; the same command goes on from here.")
        raise
    if as_json:
        typer.echo(json.dumps(table))
        return
    for shown in lab_table.terminal(table):
        if isinstance(shown, str):
            typer.echo(shown)
        else:
            out_console.print(shown)
    names = ", ".join((*lab_results.TABLES, "roc-TASK.png, confusion-TASK.png"))
    typer.echo(f"written in {out}: {names}")
