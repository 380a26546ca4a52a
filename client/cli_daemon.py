"""The hospital's commands that run, stop and show its two processes."""

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.command_line import err

out_console = Console()

# The users of vault and courier may pass through the folder, and not list it (0711).
Site = Annotated[
    Path, typer.Argument(help="The hospital's folder, or its site.toml.", readable=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the hospital's command line."""
    name = "rarefed-client"
    app.command(epilog=f"Example: {name} start hospital-1")(start)
    app.command(epilog=f"Example: {name} status hospital-1")(status)
    app.command(epilog=f"Example: {name} pause hospital-1 --off")(pause)
    app.command(epilog=f"Example: {name} vault hospital-1")(vault)
    app.command(epilog=f"Example: {name} courier hospital-1")(courier)


def start(
    site: Site,
    vault_user: Annotated[
        str, typer.Option(help="As root: run the vault as this user; for example rarefed-vault.")
    ] = "",
    courier_user: Annotated[
        str,
        typer.Option(help="As root: run the courier as this user; for example rarefed-courier."),
    ] = "",
) -> None:
    """Run vault and courier here, without systemd, until Ctrl-C or SIGTERM.

    Whichever ends is started again. What protection is missing in comparison with the systemd
    units is said first.
    """
    from client import service
    from client.config import SiteConfig

    if bool(vault_user) != bool(courier_user) or (vault_user and vault_user == courier_user):
        raise typer.BadParameter("give --vault-user and --courier-user, two different users")
    config = SiteConfig.load(site)
    users = service.Users(vault_user, courier_user) if vault_user else None
    plan = service.plan(config, folder_of(site), users)
    for line in service.missing_protection(plan, getpass.getuser()):
        err.print(f"[yellow]Not protected:[/] {escape(line)}", highlight=False, soft_wrap=True)
    err.print(f"{config.name} is starting; Ctrl-C stops it.", highlight=False)
    service.run(plan)


def status(
    site: Site,
    rounds: Annotated[int, typer.Option(min=0, help="How many last exchanges to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show processes, connection, approvals and the last exchanges; nothing of any patient."""
    from client.config import SiteConfig
    from client.situation import situation_of

    found = situation_of(SiteConfig.load(site), folder_of(site), last=rounds)
    if as_json:
        typer.echo(json.dumps(found))
        return
    out_console.print(_overview(found))
    if found["exchanges"]:
        out_console.print(_exchanges(found["exchanges"]))


def pause(
    site: Site,
    off: Annotated[bool, typer.Option("--off", help="Take orders again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take no orders until --off; the order at hand is still finished.

    The coordinator is told that the hospital has paused, and goes on without it.
    """
    from client.config import SiteConfig
    from client.situation import PAUSED_FILE, keep_owner
    from common.errors import DataError
    from common.files import write_atomic

    config = SiteConfig.load(site)
    flag = config.state / PAUSED_FILE
    try:
        if off:
            flag.unlink(missing_ok=True)
        elif not flag.exists():
            write_atomic(flag, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), mode=0o600)
            keep_owner(flag)
    except OSError as error:
        raise DataError(
            f"Cannot change {flag}: {error.strerror}.",
            remedy="Run this as the vault's user, or as root.",
        ) from error
    if as_json:
        typer.echo(json.dumps({"site": config.name, "paused": not off}))
        return
    word = "takes orders" if off else "has paused"
    out_console.print(f"{config.name} {word}.", highlight=False)


def vault(site: Site) -> None:
    """Run the vault alone, in the foreground; for systemd and containers."""
    from client.config import SiteConfig

    config = SiteConfig.load(site)
    from client.daemon import run  # seconds to load: first what can fail at once

    run(config)


def courier(site: Site) -> None:
    """Run the courier alone, in the foreground; for systemd and containers."""
    from client.config import SiteConfig
    from client.courier import run

    run(SiteConfig.load(site))


def folder_of(site: Path) -> Path:
    """Return the hospital's folder, whichever of the two was given."""
    return (site if site.is_dir() else site.parent).absolute()


def _overview(found: dict[str, Any]) -> Table:
    table = Table(title=found["site"], title_justify="left", show_header=False)
    joined = found["coordinator"]
    shown = f"{joined['name']} at {joined['address']}" if joined else "none joined"
    table.add_row("coordinator", shown)
    table.add_row("socket", found["vault"])
    for name, entry in found["processes"].items():
        up = f"process {entry['pid']} since {entry['since']}" if entry["pid"] else "down"
        table.add_row(name, f"{up}, {entry['restarts']} restarts")
    table.add_row("paused", "yes" if found["paused"] else "no")
    approvals = [
        f"{entry['name']} {entry['digest'][:16]}, {entry['trainings']} of {entry['rounds']} rounds"
        for entry in found["approved"]
    ]
    table.add_row("approved", "\n".join(approvals) or "nothing")
    table.add_row("last exchange", found["last_exchange"] or "none yet")
    if found["disputed"]:
        told = f"{found['disputed']} heads that the coordinator holds; see: audit verify"
        table.add_row("disputed", told)
    for name in found["unreadable"]:
        table.add_row("not shown", escape(name))
    return table


def _exchanges(entries: list[dict[str, Any]]) -> Table:
    table = Table(title="last exchanges", title_justify="left")
    for column in ("at", "study", "round", "kind", "what"):
        table.add_column(column)
    for entry in entries:
        what = f"refused: {entry['code']}" if entry["code"] else entry["event"]
        table.add_row(entry["at"], entry["study"][:16], str(entry["round"]), entry["kind"], what)
    return table
