"""``rarefed-client``: the hospital's commands."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client import (
    cli_audit,
    cli_cache,
    cli_check,
    cli_daemon,
    cli_evaluate,
    cli_explain,
    cli_manifest,
    cli_personal,
    cli_predict,
    cli_privacy,
    cli_report,
    cli_studies,
)
from client.cli_daemon import AsJson, Site, folder_of
from client.cli_studies import Yes, confirmed
from common import command_line
from common.command_line import err

if TYPE_CHECKING:
    from client.probes import Finding

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


@app.command(epilog="Example: rarefed-client join kit.json --site hospital-1")
def join(
    kit: Annotated[Path, typer.Argument(help="The enrolment kit that the coordinator sent.")],
    site: Annotated[Path, typer.Option(help="The hospital's folder; made when it is missing.")],
    fingerprint: Annotated[
        str,
        typer.Option(
            help="The kit's fingerprint as the coordinator told it by telephone, in quotes; asked "
            "for on a terminal when it is left out."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Join a coordinator: make this site's key, and write the request that goes back.

    The key never leaves this machine.
    """
    from client import enrol
    from common.enrolment import Kit
    from common.errors import KitError

    offered = Kit.load(kit)
    if not fingerprint:
        err.print(f"{offered.coordinator} at {offered.address} invites {offered.site}.")
        err.print(f"Fingerprint: {offered.fingerprint}", highlight=False, soft_wrap=True)
        if not confirmed("Is this what the coordinator read out to you?", "--fingerprint"):
            raise KitError(
                "The fingerprint was not confirmed; nothing has changed.",
                remedy="Call the coordinator on a number that you did not get with the kit.",
            )
    request = enrol.join(kit, site, fingerprint or None)
    found = {
        "site": offered.site,
        "coordinator": offered.coordinator,
        "address": offered.address,
        "fingerprint": offered.fingerprint,
        "request": str(request),
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    out_console.print(f"Send to the coordinator: {request}", highlight=False, soft_wrap=True)
    out_console.print(
        f"Meanwhile name the images in {site / 'site.toml'}; then: rarefed-client doctor {site}",
        highlight=False,
        soft_wrap=True,
    )


@app.command(epilog="Example: rarefed-client renew hospital-1 renewal.pem")
def renew(
    site: Site,
    bundle: Annotated[Path, typer.Argument(help="The coordinator's renewal.pem.")],
    as_json: AsJson = False,
) -> None:
    """Trust the coordinator's new authority, for which the old one vouches; restart the courier.

    No new kit is needed.
    """
    from client import enrol
    from common.errors import KitError

    try:
        content = bundle.read_bytes()
    except OSError as error:
        raise KitError(
            f"Cannot read {bundle}: {error.strerror}.", remedy="Give the path of renewal.pem."
        ) from error
    fingerprint = enrol.renew_trust(folder_of(site), content)
    if as_json:
        typer.echo(json.dumps({"fingerprint": fingerprint}))
        return
    out_console.print(f"New fingerprint: {fingerprint}", highlight=False)


@app.command(epilog="Example: rarefed-client doctor hospital-1 --study study.toml")
def doctor(
    site: Site,
    study: Annotated[
        Path | None,
        typer.Option(help="Also try disk and graphics card against this study: study.toml."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at everything that must be right before this hospital takes part.

    The way to the coordinator, the clock, the key, versions, permissions, disk and graphics
    card; each line green or red with the remedy. Ends with 70 when a line is red.
    """
    from client.config import SiteConfig
    from client.doctor import examine
    from common.errors import DoctorError
    from common.study import Study

    config = SiteConfig.load(site)
    agreed = None if study is None else Study.load(study)
    with err.status("looking"):
        findings = examine(config, agreed)
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings]))
    else:
        out_console.print(_diagnosis(config.name, findings))
    red = [finding.name for finding in findings if not finding.ok]
    if red:
        raise DoctorError(
            f"Red at {config.name}: {', '.join(red)}.",
            remedy="Follow the remedies from the top, and run the doctor again.",
        )


@app.command(epilog="Example: rarefed-client leave hospital-1")
def leave(site: Site, yes: Yes = False, as_json: AsJson = False) -> None:
    """Leave the coordinator: destroy this site's key and withdraw every approval.

    Ledger, logs and the key of the split stay. To take part again, a new kit is needed.
    """
    from client import enrol

    _check_stopped(site)
    if not yes and not confirmed("Leave the coordinator for good?", "--yes"):
        raise typer.Abort
    left = enrol.leave(folder_of(site))
    if as_json:
        typer.echo(json.dumps({"site": left.site, "left": left.coordinator}))
        return
    out_console.print(
        f"{left.site} has left {left.coordinator}; ask the coordinator to revoke it.",
        highlight=False,
    )


cli_check.register(app)
cli_studies.register(app)
cli_daemon.register(app)
cli_privacy.register(app)
cli_audit.register(app)
cli_cache.register(app)
cli_manifest.register(app)
cli_explain.register(app)
cli_evaluate.register(app)
cli_personal.register(app)
cli_predict.register(app)
cli_report.register(app)


def _check_stopped(site: Path) -> None:
    """Refuse to go on while the vault is running; a folder without data has none."""
    from client.config import SiteConfig
    from client.doctor import vault_state
    from common.errors import DataError, ServiceError

    try:
        config = SiteConfig.load(site)
    except DataError:
        return
    if vault_state(config) in ("answers", "forbidden"):
        raise ServiceError(
            f"{config.name} is still running.", remedy="Stop vault and courier first."
        )


def _diagnosis(name: str, findings: list["Finding"]) -> Table:
    table = Table(title=f"{name}: the doctor", title_justify="left", show_header=False)
    for finding in findings:
        advised = ("yellow", "note") if finding.remedy else ("green", "ok")
        colour, word = advised if finding.ok else ("red", "RED")
        text = f"{finding.message}\n{finding.remedy}" if finding.remedy else finding.message
        table.add_row(f"[{colour}]{word}[/]", finding.name, escape(text))
    return table


def main() -> None:
    """Run ``rarefed-client``."""
    command_line.run(app, program="rarefed-client")
