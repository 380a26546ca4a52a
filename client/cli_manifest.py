"""The hospital's command that drafts a manifest."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_daemon import AsJson
from common.command_line import err

if TYPE_CHECKING:
    from client.manifest_build import Draft

out_console = Console()
commands = typer.Typer(no_args_is_help=True, help="Make the table of images and labels.")


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the hospital's command line."""
    app.add_typer(commands, name="manifest")


@commands.command(epilog="Example: rarefed-client manifest build /srv/ct --out /srv/ct/labels.csv")
def build(
    folder: Annotated[Path, typer.Argument(help="The folder with the images.")],
    out: Annotated[
        Path,
        typer.Option(help="The manifest; in that folder or in one above it, and not there yet."),
    ],
    as_json: AsJson = False,
) -> None:
    """Draft a manifest from the headers of all images in a folder and below it.

    A row is one series of slices, if a folder holds nothing else, and otherwise one image. The
    column of labels is left empty for you to fill in. The file names patients: it belongs to its
    owner alone, and stays here.
    """
    from client.manifest_build import check_place, summary_of, write_draft

    check_place(folder, out)
    draft = _draft(folder, out)
    write_draft(draft, out)
    found = {"manifest": str(out), **summary_of(draft)}
    if as_json:
        typer.echo(json.dumps(found))
        return
    out_console.print(_overview(found))
    out_console.print(
        f"Fill in the column label of {escape(str(out))}, and patient_id where it is empty; take "
        "out what the task is not about.",
        highlight=False,
        soft_wrap=True,
    )


def _draft(folder: Path, out: Path) -> "Draft":
    from rich.progress import track

    from client.manifest_build import draft_of, files_in, look_at

    files, passed = files_in(folder)
    looking = track(
        look_at(files, os.cpu_count() or 1),
        description="reading headers",
        total=len(files),
        console=err,
        disable=not err.is_terminal,
    )
    draft = draft_of(looking, out.parent.resolve())
    draft.set_aside += passed
    return draft


def _overview(found: dict[str, Any]) -> Table:
    table = Table(title="the draft", title_justify="left", show_header=False)
    table.add_row("rows", str(found["rows"]))
    for kind, count in found["kinds"].items():
        table.add_row(f"  {kind}", str(count))
    table.add_row("patients", str(found["patients"]))
    table.add_row("rows without a patient", str(found["without_patient"]))
    table.add_row("set aside", str(sum(found["set_aside"].values())))
    for reason, count in found["set_aside"].items():
        table.add_row(f"  {escape(reason)}", str(count))
    return table
