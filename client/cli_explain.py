"""The hospital's command that shows where a study's network looks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_agreed import Method, ModelFolder, agreed_at
from client.cli_daemon import AsJson, Site
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig
    from common.study import Study

out_console = Console()


class Wanted(NamedTuple):
    """How maps are made, and how many."""

    method: Method
    cells: int
    rows: int


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client explain hospital-1 --study study.toml --out maps")(
        explain
    )


def explain(
    site: Site,
    study: Annotated[Path, typer.Option(help="The study whose network is asked.")],
    out: Annotated[Path, typer.Option(help="Folder for the overlays and explanations.json.")],
    model: ModelFolder = None,
    task: Annotated[
        str, typer.Option(help="Which task; needed where site and study share several.")
    ] = "",
    method: Method = "hirescam",
    cells: Annotated[
        int, typer.Option(min=1, max=64, help="Cells of a side that maps have at least.")
    ] = 6,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Test rows, at most.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Draw where the network looks on held-out images, and measure whether it looks rightly.

    Nothing leaves the machine. The overlays show patients: they are for the hospital's eyes.
    """
    from common.errors import OutputError

    agreed, config = agreed_at(site, study)
    name = _task(agreed, config, task)
    try:
        found = _explained(agreed, config, name, out, model, Wanted(method, cells, count))
    except OSError as error:
        raise OutputError(
            f"The overlays cannot be written: {error.strerror}.",
            remedy="Choose a place with --out.",
        ) from error
    if as_json:
        typer.echo(json.dumps(found))
        return
    out_console.print(_table(found))
    for warning in found["warnings"]:
        out_console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    out_console.print(
        f"The overlays, for this hospital's eyes alone: {escape(str(out))}",
        highlight=False,
        soft_wrap=True,
    )
    out_console.print("Not a medical device.")


def _task(study: "Study", config: "SiteConfig", task: str) -> str:
    """Return the task that is asked for; without a name, the only one that both have."""
    both = sorted(set(study.tasks) & set(config.data))
    if task in both or (not task and len(both) == 1):
        return task or both[0]
    what = f"--task {task}: no task of both site and study" if task else "several tasks"
    raise typer.BadParameter(f"{what}; give --task, one of {', '.join(both)}")


def _explained(
    study: "Study",
    config: "SiteConfig",
    task: str,
    out: Path,
    model: Path | None,
    wanted: Wanted,
) -> dict[str, Any]:
    with err.status("getting ready") as status:
        from client.device import device_of
        from client.explanations import explain_site  # seconds to load: first what fails at once
        from client.final_model import exported_model, final_model
        from client.site_log import open_log
        from common.errors import StudyMismatchError

        device = device_of(config.device)
        if model is None:
            final = final_model(config, study, device=device)
        else:
            final = exported_model(model, device=device)
            if final.study.digest() != study.digest():
                raise StudyMismatchError(
                    f"{model} holds a model of another study than {study.name} as given.",
                    remedy="Give the study.toml of that folder, or the folder of this study.",
                )
        return explain_site(
            config,
            final,
            task,
            out,
            method=wanted.method,
            cells=wanted.cells,
            count=wanted.rows,
            device=device,
            log=open_log(config),
            progress=lambda done, rows: status.update(f"explaining {done} of {rows}"),
        )


def _table(found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{found['task']}: {len(found['cases'])} cases, {found['method']} of "
        f"{found['layer']} ({found['grid'][0]} x {found['grid'][1]})",
        title_justify="left",
    )
    table.add_column("mean over patients")
    for column in ("value", "patients"):
        table.add_column(column, justify="right")
    report = found["reportable"]
    for name, of in report["means"].items():
        table.add_row(name.replace("_", " "), f"{of['mean']:.3f}", str(of["patients"]))
    for name in report["withheld"]:
        table.add_row(name.replace("_", " "), f"under {report['minimum_patients']} patients", "-")
    return table
