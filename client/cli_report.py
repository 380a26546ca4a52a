"""The hospital's command that makes the clinician's page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from client.cli_agreed import Alone, Classical, Method, ModelFolder, agreed_at
from client.cli_daemon import AsJson, Site
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig
    from client.report_views import Report, Wanted
    from common.study import Study

out_console = Console()


class Made(NamedTuple):
    """What the command has done."""

    report: "Report"
    new_opinions: int | None
    """None where no feedback was given."""


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client report hospital-1 --study study.toml --alone")(
        report
    )


def report(
    site: Site,
    study: Annotated[Path, typer.Option(help="The study whose network is shown.")],
    model: ModelFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; by default state/report.html.")
    ] = None,
    cases: Annotated[
        int, typer.Option(min=0, max=200, help="Cases shown of each kind, at most.")
    ] = 6,
    method: Method = "hirescam",
    alone: Alone = False,
    classical: Classical = None,
    feedback: Annotated[
        Path | None, typer.Option(help="A file that the page saved: check it and keep it first.")
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Name the files of the cases on the page.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make one page for clinicians: figures, curves, and cases with where the network looks.

    Nothing leaves the machine. The page shows patients: it is for the hospital's eyes. What
    clinicians note on it comes back with --feedback, and is kept in the folder 'state'.
    """
    from common.errors import OutputError

    agreed, config = agreed_at(site, study)
    file = out or config.state / "report.html"
    try:
        from client.report_views import Wanted  # seconds to load: first what fails at once

        wanted = Wanted(cases, method, alone, names, classical or ())
        made = _made(agreed, config, model, feedback, file, wanted)
    except OSError as error:
        raise OutputError(
            f"The page cannot be written: {error.strerror}.",
            remedy="Choose a place with --out, or free space.",
        ) from error
    said = _said(made, file)
    if as_json:
        typer.echo(json.dumps(said))
    else:
        _tell(said)


def _made(
    study: "Study",
    config: "SiteConfig",
    folder: Path | None,
    feedback: Path | None,
    out: Path,
    wanted: "Wanted",
) -> Made:
    """Keep the feedback if there is some, and make the page."""
    with err.status("getting ready") as status:
        from client import evaluation, report_page
        from client import feedback as opinions
        from client.device import device_of
        from client.report import gather
        from client.report_federation import federation_of
        from client.site_log import open_log

        device = device_of(config.device)
        models = evaluation.models_of(config, study, folder, device)
        kept, model, new = opinions.file_of(config, study), models.final.sha256, None
        if feedback is not None:
            known = opinions.known_cases(config, study)
            given = opinions.read_feedback(
                feedback, study, site=config.name, model=model, known=known
            )
            new = opinions.merge(kept, study, given)
        found = gather(
            config,
            study,
            models,
            wanted,
            federation=None if folder is None else federation_of(folder, study),
            opinions=opinions.newest(opinions.kept(kept, study), model),
            device=device,
            log=open_log(config),
            progress=status.update,
        )
        report_page.write_page(found, out)
        return Made(found, new)


def _said(made: Made, file: Path) -> dict[str, Any]:
    figures = made.report.figures
    return {
        "site": figures.site,
        "study": figures.study,
        "digest": figures.digest,
        "model_round": figures.model_round,
        "model_sha256": figures.sha256,
        "file": str(file),
        "bytes": file.stat().st_size,
        "cases": {name: len(view.cases) for name, view in made.report.tasks.items()},
        "outcomes": {name: dict(view.outcomes) for name, view in made.report.tasks.items()},
        "opinions": {
            name: sum(case.opinion is not None for case in view.cases)
            for name, view in made.report.tasks.items()
        },
        "new_opinions": made.new_opinions,
        "disclaimer": figures.disclaimer,
    }


def _tell(said: dict[str, Any]) -> None:
    if said["new_opinions"] is not None:
        out_console.print(f"New opinions that are kept: {said['new_opinions']}", highlight=False)
    for name, cases in said["cases"].items():
        outcomes = ", ".join(f"{n} {kind}" for kind, n in said["outcomes"][name].items())
        out_console.print(
            f"{escape(name)}: {outcomes or 'no test rows'}; {cases} shown", highlight=False
        )
    out_console.print(
        f"The page, for this hospital's eyes alone: {escape(said['file'])}",
        highlight=False,
        soft_wrap=True,
    )
    out_console.print(said["disclaimer"], highlight=False, soft_wrap=True)
