"""The hospital's command that asks a study's network about images."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_agreed import Personal, check_owner
from client.cli_daemon import AsJson, Site
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig
    from client.final_model import FinalModel
    from client.predict import Asked, Prediction, Progress, Unread

out_console = Console()
NOTICE = "Not a medical device: for research alone, not for the care of a patient."


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client predict hospital-1 model scan.dcm")(predict)


def predict(
    site: Site,
    model: Annotated[
        Path,
        typer.Argument(
            help="A folder of rarefed-server export; or a study.toml, for what the site keeps of "
            "that study."
        ),
    ],
    files: Annotated[
        list[Path], typer.Argument(help="Images, or folders with the slices of one DICOM series.")
    ],
    task: Annotated[str, typer.Option(help="Which task; needed where the model has several.")] = "",
    dicom: Annotated[
        Path | None,
        typer.Option(help="Folder for a DICOM report and a picture of the attention of each file."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the predictions as a table too.")] = None,
    personal: Personal = False,
    as_json: AsJson = False,
) -> None:
    """Say what a study's network makes of images, and whether it knows images like these.

    Nothing leaves the machine. Ends with 26 when a file cannot be read, after all others.
    """
    from client.config import SiteConfig
    from common.errors import ImageError

    if personal and model.is_dir():
        raise typer.BadParameter("an export is not this site's own", param_hint="--personal")
    config = SiteConfig.load(site)
    check_owner(config.state)
    with err.status("getting ready"):
        asked, unknown = _asked(config, model, task, personal=personal)
    with _bar(len(files)) as progress:
        predicted, unread = _predicted(files, asked, config, progress)
    found = _told(predicted, asked, unknown, dicom)
    if csv is not None:
        _write_csv(csv, predicted, asked)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found, asked)
    faults = [one.error for one in unread] + found["without_dicom"]
    if faults:
        raise ImageError(
            "Files that gave no prediction, or no DICOM:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="Give files that can be read, and with --dicom files that are DICOM.",
        )


def _asked(config: "SiteConfig", model: Path, task: str, *, personal: bool) -> tuple["Asked", str]:
    """Return what is asked, and why likeness is unknown where it is."""
    from client.device import device_of
    from client.known_images import known_images
    from client.operating_point import operating_of, operating_of_site
    from client.predict import Asked
    from client.site_log import open_log

    device = device_of(config.device)
    final = _model(config, model, device, personal=personal)
    name = _task(final, task)
    if model.is_dir():
        operating = operating_of(model, name)
    else:
        operating = operating_of_site(config, final, name)
    known, unknown = known_images(config, final, name, device=device, log=open_log(config))
    return Asked(final, name, operating, known, device, model.is_dir()), unknown


def _model(config: "SiteConfig", model: Path, device: Any, *, personal: bool) -> "FinalModel":
    from client.final_model import exported_model, final_model, tuned_model
    from common.study import Study

    if model.is_dir():
        return exported_model(model, device=device)
    if personal:
        return tuned_model(config, Study.load(model), device=device)
    return final_model(config, Study.load(model), device=device)


def _task(final: "FinalModel", task: str) -> str:
    if task in final.tasks or (not task and len(final.tasks) == 1):
        return task or final.tasks[0]
    what = f"the model has no task {task}" if task else "the model has several tasks"
    raise typer.BadParameter(f"{what}; give one of {', '.join(final.tasks)}", param_hint="--task")


@contextmanager
def _bar(files: int) -> Iterator["Progress"]:
    """Show how many files are done, on a terminal."""
    from rich.progress import Progress as Bars

    with Bars(console=err, disable=not err.is_terminal) as bars:
        shown = bars.add_task("predicting", total=files)
        yield lambda done: bars.update(shown, completed=done)


def _predicted(
    files: list[Path], asked: "Asked", config: "SiteConfig", progress: "Progress"
) -> tuple[list["Prediction"], list["Unread"]]:
    from client.predict import Prediction, Unread, predict

    found = list(predict(files, asked, config, progress))
    good = [one for one in found if isinstance(one, Prediction)]
    return good, [one for one in found if isinstance(one, Unread)]


def _told(
    predicted: list["Prediction"], asked: "Asked", unknown: str, dicom: Path | None
) -> dict[str, Any]:
    """Return what is said as JSON; DICOM is written on the way, where a source allows it."""
    from client.predict import as_json

    told, without = [], []
    for one in predicted:
        said = as_json(one, asked.operating, unknown)
        if dicom is not None:
            from client.predicted_dicom import write_both
            from common.errors import ImageError

            try:
                said["dicom"] = [str(path) for path in write_both(dicom, one, asked, unknown)]
            except ImageError as error:
                without.append(error.message)
        told.append(said)
    final = asked.final
    return {
        "notice": NOTICE,
        "study": final.study.name,
        "model_round": final.model_round,
        "model_sha256": final.sha256,
        "task": asked.task,
        "temperature": asked.operating.temperature if asked.operating.known else None,
        "rule": asked.operating.rule,
        "predictions": told,
        "without_dicom": without,
    }


def _write_csv(file: Path, predicted: list["Prediction"], asked: "Asked") -> None:
    from client.predict import as_row, columns_of
    from common.errors import OutputError
    from common.files import replacing, write_table

    task = asked.final.study.tasks[asked.task]
    rows = [as_row(one, task, asked.operating) for one in predicted]
    try:
        with replacing(file, mode=0o600) as temporary:
            write_table(temporary, columns_of(task), rows)
    except OSError as error:
        raise OutputError(
            f"Cannot write {file}: {error.strerror}.", remedy="Choose another place with --csv."
        ) from error


def _print(found: dict[str, Any], asked: "Asked") -> None:
    table = Table(
        title=f"{found['study']}, {found['task']}, round {found['model_round']}",
        title_justify="left",
    )
    for column in ("file", "class", "probability", "like training images"):
        table.add_column(column, overflow="fold")
    for one in found["predictions"]:
        chance = one["probabilities"][_shown_class(one, asked)]
        alike = {None: "unknown", True: "[bold red]NO[/]", False: "yes"}[one["unlike_training"]]
        p_value = f" (p = {one['likeness']['p_value']:.3f})" if one["likeness"] else ""
        cells = (one["file"], one["class"], f"{chance:.3f} {_shown_class(one, asked)}")
        table.add_row(*map(escape, cells), f"{alike}{p_value}")
    out_console.print(table)
    for line in _notes(found, asked):
        out_console.print(escape(line), highlight=False, soft_wrap=True)


def _shown_class(one: dict[str, Any], asked: "Asked") -> str:
    """Return whose probability stands in the table: the positive class's, else the class's own."""
    positive = asked.final.study.tasks[asked.task].positive
    return str(positive or one["class"])


def _notes(found: dict[str, Any], asked: "Asked") -> list[str]:
    from client.predict import caveats_of

    predictions = found["predictions"]
    lines = caveats_of(asked)
    if asked.known is None and predictions:
        lines.append(predictions[0]["statement"])
    return [*lines, found["notice"]]
