"""The hospital's command that trains a study's final network further, for the hospital alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from client.cli_agreed import agreed_at
from client.cli_daemon import AsJson, Site
from client.cli_evaluate import benefit_tables
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig
    from client.personal import Personalised
    from common.study import Study

out_console = Console()
_ROUNDS = 5
"""Where neither the hospital nor the study says how many."""


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client personalise hospital-1 --study study.toml")(
        personalise
    )


def personalise(
    site: Site,
    study: Annotated[Path, typer.Option(help="The study whose final network is trained further.")],
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Rounds of training, each as in the study; by default as many as the study says, "
            f"else {_ROUNDS}.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a study's final network further on this hospital's patients, and keep it if better.

    It is kept for the tasks in which it beats the final network on validation patients; then
    evaluate and predict use it with --personal. Nothing leaves the machine.
    """
    from common.errors import OutputError

    agreed, config = agreed_at(site, study)
    try:
        found = _made(agreed, config, rounds or agreed.evaluation.tuned_rounds or _ROUNDS)
    except OSError as error:
        raise OutputError(
            f"The network cannot be kept: {error.strerror}.", remedy="Free space in 'state'."
        ) from error
    if as_json:
        typer.echo(json.dumps(_plain(found)))
    else:
        _tell(found)


def _made(study: "Study", config: "SiteConfig", rounds: int) -> "Personalised":
    """Train and compare, with a word on what is being done."""
    with err.status("getting ready") as status:
        from client.device import device_of  # seconds to load: first what fails at once
        from client.personal import personalise as train_further
        from client.site_log import open_log

        return train_further(
            config,
            study,
            rounds=rounds,
            device=device_of(config.device),
            log=open_log(config),
            progress=lambda done: status.update(f"round {done} of {rounds}"),
        )


def _plain(found: "Personalised") -> dict[str, Any]:
    plain = asdict(found)
    for name, choice in found.tasks.items():
        plain["tasks"][name]["score"] = choice.score._asdict()
    return plain


def _tell(found: "Personalised") -> None:
    plain = _plain(found)
    for name, choice in plain["tasks"].items():
        title = f"{name} at {found.site}: {found.rounds} rounds further, on test patients"
        for table in benefit_tables(title, choice["test"]):
            out_console.print(table)
        out_console.print(_sentence(name, choice), highlight=False, soft_wrap=True)
    for note in found.notes:
        out_console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    out_console.print(found.disclaimer, highlight=False, soft_wrap=True)


def _sentence(name: str, choice: dict[str, Any]) -> str:
    """Say what was decided for a task, and by what."""
    score = choice["score"]
    if score["tuned"] is None:
        return escape(f"{name}: not kept, as there are no validation patients.")
    what = {"auroc": "AUROC", "loss": "loss"}[score["metric"]]
    said = (
        f"{what} {score['tuned']:.3f} against {score['final']:.3f} of the final network, on "
        f"{score['patients']} validation patients"
    )
    return escape(f"{name}: {'kept' if choice['kept'] else 'not kept'}: {said}.")
