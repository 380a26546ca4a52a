"""``rarefed-server``: the coordinator's commands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common import command_line
from common.command_line import err
from server import cli_sites, cli_studies

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The coordinator's side: it sees arrays and sums only.",
)
out_console = Console()


cli_sites.register(app)
cli_studies.register(app)


@app.command(epilog="Example: rarefed-server check study.toml")
def check(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Check a study file, build its network with its initial weights, and say what would travel.

    The digest is what every site compares before it takes part.
    """
    from common.arrays import size_in_bytes
    from common.models import normalisation_of
    from common.study import Study
    from common.weights import layout_of, take
    from server.central_privacy import check_layout
    from server.initial_weights import initial_model

    agreed = Study.load(study)
    with err.status("building the network"):
        start = initial_model(agreed)
    layout = layout_of(start.model, agreed)
    check_layout(agreed, layout)
    parts = {**layout.groups, "sent once": (*layout.sent_once, *layout.initial)}
    found = {
        "study": agreed.name,
        "digest": agreed.digest(),
        "normalisation": normalisation_of(agreed, start.model),
        "weights": {"source": start.source, "left_out": list(start.left_out)},
        "arrays": {
            part: {"count": len(names), "bytes": size_in_bytes(take(start.model, names))}
            for part, names in parts.items()
            if names
        },
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['study']}: what travels", title_justify="left")
    for column in ("group", "arrays", "MB"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group, part in found["arrays"].items():
        table.add_row(group, str(part["count"]), f"{part['bytes'] / 1e6:.3f}")
    out_console.print(table)
    out_console.print(f"normalisation: {found['normalisation']}", highlight=False)
    weights = found["weights"]
    out_console.print(f"initial weights: {weights['source']}", highlight=False)
    if weights["left_out"]:
        names = ", ".join(weights["left_out"])
        out_console.print(f"left out of them, as the network has no place: {names}")
    out_console.print(f"digest: {found['digest']}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run ``rarefed-server``."""
    command_line.run(app, program="rarefed-server")
