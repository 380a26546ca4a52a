"""The hospital's command that checks its data before a study."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_agreed import agreed_at
from common.command_line import err

if TYPE_CHECKING:
    from client.check import Checked
    from client.config import SiteConfig
    from common.study import Study

out_console = Console()
_COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client check hospital-1 --study study.toml")(check)


def check(
    site: Annotated[
        Path, typer.Argument(help="The site's folder, or its site.toml.", readable=False)
    ],
    study: Annotated[Path, typer.Option(help="The study that the data are for.")],
    html: Annotated[
        Path | None,
        typer.Option(help="Where the report with pictures goes; by default state/check.html."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Rows read at a time; by default as in site.toml."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Read every image of the study's tasks, and say what is wrong and what the site would bring.

    Nothing is trained and nothing leaves the machine. The report with pictures of patients is for
    the hospital's eyes. Ends with 0 if the site may take part.
    """
    from common.errors import OutputError

    agreed, config = agreed_at(site, study)
    checked = _checked(agreed, config, workers)
    from client.gate_report import as_json as said_of
    from client.gate_report import write_report

    files = config.state / "check-report.json", html or config.state / "check.html"
    try:
        write_report(checked, *files)
    except OSError as error:
        raise OutputError(
            f"The report cannot be written: {error.strerror}.", remedy="Choose a place with --html."
        ) from error
    if as_json:
        typer.echo(json.dumps(said_of(checked)))
    else:
        _tell(checked, files[1], config.state / "site.log")
    if checked.refusal is not None:
        raise checked.refusal


def _checked(study: "Study", config: "SiteConfig", workers: int | None) -> "Checked":
    """Read everything, with a bar for each task on a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        getting = bars.add_task("getting ready", total=None)
        from client.check import check_site  # seconds to load: first what can fail at once
        from client.site_log import open_log

        shown: dict[str, Any] = {}

        def tell(name: str, done: int, rows: int) -> None:
            bars.update(getting, visible=False)
            if name not in shown:
                shown[name] = bars.add_task(f"reading {name}", total=rows)
            bars.update(shown[name], completed=done)

        return check_site(study, config, log=open_log(config), workers=workers, progress=tell)


def _tell(checked: "Checked", html: Path, log: Path) -> None:
    out_console.print(_counts(checked.site, checked.declaration.model_dump()))
    if any(one.verdict.findings for one in checked.tasks):
        out_console.print(_findings(checked))
    out_console.print(
        f"The report with pictures: {escape(str(html))}", highlight=False, soft_wrap=True
    )
    if any(one.verdict.left_out for one in checked.tasks):
        out_console.print(
            f"The files that are left out are named in {escape(str(log))}.",
            highlight=False,
            soft_wrap=True,
        )
    if checked.refusal is None:
        out_console.print("[green]The site can take part.[/]")


def _counts(name: str, declared: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: patients (images)", title_justify="left")
    table.add_column("task")
    for column in ("train", "validation", "test", "left out"):
        table.add_column(column, justify="right")
    for task, splits in declared["tasks"].items():
        counts = [f"{split['patients']} ({split['images']})" for split in splits.values()]
        label = f"{task} (each image a patient)" if task in declared["each_image"] else task
        table.add_row(label, *counts, str(declared["unreadable"][task]))
    return table


def _findings(checked: "Checked") -> Table:
    table = Table(title="findings", title_justify="left")
    for column in ("task", "", "code"):
        table.add_column(column, no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("what, and what to do")
    for one in checked.tasks:
        for finding in one.verdict.findings:
            colour = "dim" if finding.accepted else _COLOURS[finding.severity]
            word = "accepted" if finding.accepted else finding.severity
            table.add_row(
                one.name,
                f"[{colour}]{word}[/]",
                finding.code,
                str(len(finding.rows)) if finding.rows else "-",
                escape(f"{finding.what}\n{finding.remedy}"),
            )
    return table
