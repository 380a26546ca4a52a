"""``rarefed-client``: the hospital's commands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common import command_line
from common.command_line import err

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The hospital's side: its data stay here.",
)
out_console = Console()


@app.callback()
def _commands() -> None:
    """Keep commands by name, also while there is only one."""


@app.command(epilog="Example: rarefed-client check hospital-1 --study study.toml")
def check(
    site: Annotated[Path, typer.Argument(help="The site's folder, or its site.toml.")],
    study: Annotated[Path, typer.Option(help="The study that the data are for.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Read every image of the study's tasks, and say what the site would bring to the study.

    Nothing is trained and nothing leaves the machine. Images that cannot be read are named in
    the site's own log.
    """
    from client.config import SiteConfig
    from common.errors import TaskWithoutSiteError
    from common.study import Study

    agreed, config = Study.load(study), SiteConfig.load(site)
    if not set(agreed.tasks) & set(config.data):
        raise TaskWithoutSiteError(
            f"{config.name} has none of the study's tasks ({', '.join(agreed.tasks)}).",
            remedy="Add a [data.TASK] table to site.toml, with the study's name for the task.",
        )
    with err.status("reading images"):
        from client.site import Site  # seconds to load: first what can fail at once

        declaration = Site(config).declare(agreed)
    found = declaration.model_dump()
    if as_json:
        typer.echo(json.dumps(found))
        return
    out_console.print(_table(config.name, found))
    if any(found["unreadable"].values()):
        log = config.state / "site.log"
        out_console.print(f"The unreadable images are named in {log}.", highlight=False)


def _table(name: str, declared: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: patients (images)", title_justify="left")
    table.add_column("task")
    for column in ("train", "validation", "test", "unreadable"):
        table.add_column(column, justify="right")
    for task, splits in declared["tasks"].items():
        counts = [f"{split['patients']} ({split['images']})" for split in splits.values()]
        table.add_row(task, *counts, str(declared["unreadable"][task]))
    return table


def main() -> None:
    """Run ``rarefed-client``."""
    command_line.run(app, program="rarefed-client")
