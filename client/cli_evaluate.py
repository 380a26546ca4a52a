"""The hospital's command that measures a study's network on the hospital's own patients."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_agreed import Alone, Classical, ModelFolder, Personal, agreed_at
from client.cli_daemon import AsJson, Site
from common.classical_names import Way
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig
    from common.study import Study

out_console = Console()
_NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client evaluate hospital-1 --study study.toml --alone")(
        evaluate
    )


def evaluate(
    site: Site,
    study: Annotated[Path, typer.Option(help="The study whose network is measured.")],
    model: ModelFolder = None,
    alone: Alone = False,
    classical: Classical = None,
    personal: Personal = False,
    as_json: AsJson = False,
) -> None:
    """Measure a study's network on this hospital's held-out patients, with intervals.

    Nothing leaves the machine. All figures, with those of each image, are written to the folder
    'state' for the hospital's eyes.
    """
    from common.errors import OutputError

    if personal and model is not None:
        raise typer.BadParameter("an export is not this site's own", param_hint="--personal")
    agreed, config = agreed_at(site, study)
    try:
        found, file = _measured(
            agreed, config, model, alone=alone, ways=classical or [], personal=personal
        )
    except OSError as error:
        raise OutputError(
            f"The figures cannot be written: {error.strerror}.", remedy="Free space in 'state'."
        ) from error
    if as_json:
        shown = {name: _without_cases(task) for name, task in found["tasks"].items()}
        typer.echo(json.dumps({**found, "tasks": shown, "file": str(file)}))
        return
    _tell(found, file)


def _measured(
    study: "Study",
    config: "SiteConfig",
    folder: Path | None,
    *,
    alone: bool,
    ways: list[Way],
    personal: bool,
) -> tuple[dict[str, Any], Path]:
    """Return the figures and where they were written, with a word on what is being done."""
    with err.status("getting ready") as status:
        from client import evaluation  # seconds to load: first what fails at once
        from client.device import device_of
        from client.site_log import open_log

        device = device_of(config.device)
        if personal:
            models = evaluation.tuned_models(config, study, device)
        else:
            models = evaluation.models_of(config, study, folder, device)
        found = evaluation.evaluate_site(
            config,
            study,
            models,
            alone=alone,
            classical=ways,
            device=device,
            log=open_log(config),
            progress=status.update,
        )
        file = evaluation.file_of(config, study, found.model)
        return evaluation.write_figures(found, file), file


def _without_cases(task: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in task.items() if key != "cases"}


def _tell(found: dict[str, Any], file: Path) -> None:
    for name, task in found["tasks"].items():
        out_console.print(_figures(found, name, task))
        for column, lines in task["subgroups"].items():
            out_console.print(_subgroups(name, column, task["classes"], lines))
        if name in found["benefit"]:
            title = f"{name}: what taking part gained, per patient"
            for table in benefit_tables(title, found["benefit"][name]):
                out_console.print(table)
        for note in task["notes"]:
            out_console.print(f"[yellow]{escape(name)}: {escape(note)}[/]", highlight=False)
    out_console.print(
        f"All figures, for this hospital's eyes alone: {escape(str(file))}",
        highlight=False,
        soft_wrap=True,
    )
    out_console.print(found["disclaimer"], highlight=False, soft_wrap=True)


def _figures(found: dict[str, Any], name: str, task: dict[str, Any]) -> Table:
    units = {"per image": task["of_images"], "per patient": task["of_patients"]}
    there = {unit: figures for unit, figures in units.items() if figures is not None}
    table = Table(
        title=f"{name} at {found['site']}: the {found['model']} model after "
        f"{found['model_round']} rounds, on test patients",
        title_justify="left",
    )
    table.add_column("")
    for unit, figures in there.items():
        counts = f"{figures['cases']} of {figures['patients']} patients"
        table.add_column(f"{unit}\n{counts}", justify="right")
    for metric, title in _NAMES.items():
        table.add_row(title, *(said(figures["metrics"][metric]) for figures in there.values()))
    return table


def _subgroups(name: str, column: str, classes: list[str], lines: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{name} by {column}: patients, and the share that is right")
    table.add_column(column)
    for label in classes:
        table.add_column(label, justify="right")
    table.add_column("AUROC", justify="right")
    for line in lines:
        cells = map(_cell, line["patients"], line["right"])
        metrics = line["metrics"]
        table.add_row(escape(line["value"]), *cells, said(metrics["auroc"]) if metrics else "-")
    return table


def _cell(patients: int | None, right: float | None) -> str:
    if patients is None:
        return "suppressed"
    return str(patients) if right is None else f"{patients} ({right:.2f})"


def benefit_tables(title: str, benefit: dict[str, Any]) -> Iterator[Table]:
    """Yield models beside one another, and what lies between each model and the others.

    Args:
        title: Of the first table.
        benefit: As JSON has a ``client.benefit.Benefit``.
    """
    yield _beside(title, benefit["metrics"])
    differences = benefit["differences"]
    for other in dict.fromkeys(pair.split(" - ")[1] for pair in differences):
        less = {pair: of for pair, of in differences.items() if pair.endswith(f" - {other}")}
        yield _beside(f"Less {other}, paired", less)


def _beside(title: str, columns: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for metric, name in _NAMES.items():
        table.add_row(name, *(said(metrics[metric]) for metrics in columns.values()))
    return table


def said(estimate: dict[str, Any]) -> str:
    """Return a figure and its interval as a table shows them."""
    if estimate["value"] is None:
        return "-"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.3f} (no interval)"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
