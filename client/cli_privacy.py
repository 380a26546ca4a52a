"""The hospital's command that shows what trainings have cost its patients."""

import json
import math
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_daemon import AsJson, Site
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig
    from client.ledger import Ledger
    from client.ledger_entries import Spending

out_console = Console()


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client ledger hospital-1")(ledger)


def ledger(site: Site, as_json: AsJson = False) -> None:
    """Show what trainings have cost the patients: spent, left, and how many rounds still fit.

    Every figure is that of the patient who has spent most. It may run beside the vault.
    """
    from client.config import SiteConfig
    from common.errors import DataError

    config = SiteConfig.load(site)
    try:
        with err.status("composing"):
            found = _report(config)
    except OSError as error:
        raise DataError(
            f"Cannot read the ledger in {config.state}: {error.strerror}.",
            remedy="Run this as the vault's user, or as root.",
        ) from error
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    out_console.print(_overview(found))
    if found["studies"]:
        out_console.print(_studies(found["studies"]))
    for torn in found["torn"]:
        out_console.print(
            f"[yellow]Torn:[/] {torn['at']}, the end of the ledger was moved to "
            f"{escape(torn['file'])}; its training had not begun.",
            highlight=False,
            soft_wrap=True,
        )


def _report(config: "SiteConfig") -> dict[str, Any]:
    """Return the ledger's figures as JSON values; an infinite epsilon is null."""
    from client.ledger import Ledger

    opened, limits = Ledger(config.state), config.limits
    overall = opened.spent(delta=limits.delta)
    left = None if limits.max_epsilon is None else max(0.0, limits.max_epsilon - overall.epsilon)
    return {
        "site": config.name,
        **_figures(overall),
        "max_epsilon": limits.max_epsilon,
        "left": left,
        "studies": [
            _study(opened, config, digest, name) for digest, name in opened.studies().items()
        ],
        "torn": opened.torn(),
    }


def _study(opened: "Ledger", config: "SiteConfig", digest: str, name: str) -> dict[str, Any]:
    planned = opened.plan_limits(digest)
    delta = config.limits.delta if planned is None else planned[1]
    left = opened.rounds_left(digest, config.limits)
    return {
        "study": name,
        "digest": digest,
        **_figures(opened.spent(digest, delta)),
        "allowed": None if planned is None else planned[0],
        "rounds_left": None if left is None else left._asdict(),
    }


def _figures(spent: "Spending") -> dict[str, Any]:
    return spent._asdict() | {"epsilon": spent.epsilon if math.isfinite(spent.epsilon) else None}


def _overview(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['site']}: ledger", title_justify="left", show_header=False)
    table.add_row("trainings", str(found["trainings"]))
    table.add_row("patients", str(found["patients"]))
    table.add_row("spent", f"{_epsilon(found)} at delta {found['delta']:.2g}")
    if found["max_epsilon"] is None:
        table.add_row("left", "no limit: limits.max_epsilon is not set")
    else:
        table.add_row("left", f"{found['left']:.3g} of {found['max_epsilon']:.3g}")
    if found["without_privacy"]:
        table.add_row("without privacy", f"{found['without_privacy']} trainings, of unbounded cost")
    if found["unknown"]:
        table.add_row("of old versions", f"{found['unknown']} trainings, of unknown patients")
    return table


def _studies(studies: list[dict[str, Any]]) -> Table:
    table = Table(title="studies", title_justify="left")
    for column in ("study", "digest", "trainings", "patients", "epsilon", "allowed", "delta"):
        table.add_column(column)
    table.add_column("rounds left")
    for entry in studies:
        table.add_row(
            entry["study"],
            entry["digest"][:16],
            str(entry["trainings"]),
            str(entry["patients"]),
            _epsilon(entry),
            "-" if entry["allowed"] is None else f"{entry['allowed']:.3g}",
            f"{entry['delta']:.2g}",
            _rounds(entry["rounds_left"]),
        )
    return table


def _epsilon(found: dict[str, Any]) -> str:
    """Return what was spent, in words where there is no bound."""
    value = found["epsilon"]
    shown = "too much to be told" if value is None else f"{value:.3g}"
    if not found["without_privacy"]:
        return shown
    if found["without_privacy"] == found["trainings"]:
        return "not private"
    return f"not private (with privacy: {shown})"


def _rounds(left: dict[str, int | None] | None) -> str:
    if left is None:
        return "-"
    if left["site"] is None:
        return str(left["study"])
    return f"{left['study']} (of the site's limit: {left['site']})"
