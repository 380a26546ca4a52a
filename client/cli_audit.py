"""The hospital's commands that check and show its audit log."""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_daemon import AsJson, Site

if TYPE_CHECKING:
    from client.config import SiteConfig

out_console = Console()
commands = typer.Typer(
    no_args_is_help=True, help="Check or show what was asked of this site, and what went out."
)

Found = TypeVar("Found")


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the hospital's command line."""
    app.add_typer(commands, name="audit")


@commands.command(epilog="Example: rarefed-client audit verify hospital-1")
def verify(
    site: Site,
    head: Annotated[
        str, typer.Option(help="A hash that you or the coordinator hold: it must be of a line.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check the whole log, its trainings against the ledger, and what was countersigned.

    Ends with 71 when a line was changed, or taken out of the middle, or when the log is not the
    one whose head the coordinator countersigned. Lines cut off at the end show by --head.
    """
    from client import audit_check
    from client.config import SiteConfig

    held = head.strip().lower()
    if held and not re.fullmatch("[0-9a-f]{64}", held):
        raise typer.BadParameter("give --head the 64 hexadecimal digits of a hash")
    config = SiteConfig.load(site)
    found = _readable(config, lambda: audit_check.verify(config.state, held))
    if as_json:
        typer.echo(json.dumps({"site": config.name, **found._asdict()}))
        return
    out_console.print(
        f"{config.name}: {found.lines} lines of the audit log follow from one another; "
        f"{found.trainings} of {found.ledger_lines} lines of the ledger are named in it.",
        highlight=False,
        soft_wrap=True,
    )
    told = [f"countersigned up to line {found.countersigned} of {found.lines}"]
    if found.disputed:
        told.append(f"{found.disputed} disputed heads stand in it, and are countersigned by now")
    if found.held is not None:
        told.append(f"line {found.held} has the hash {held}")
    told.append(f"head {found.head}")
    out_console.print("\n".join(told), highlight=False, soft_wrap=True)


@commands.command(epilog="Example: rarefed-client audit head hospital-1")
def head(site: Site, as_json: AsJson = False) -> None:
    """Print the hash of the last line and the number of lines, to be noted elsewhere.

    Who holds them can tell later whether the log was rewritten or cut.
    """
    from client.audit import AUDIT_FILE
    from client.config import SiteConfig
    from common.chained_log import FIRST

    config = SiteConfig.load(site)
    lines = _entries(config, AUDIT_FILE)
    found = {"head": lines[-1]["hash"] if lines else FIRST, "lines": len(lines)}
    if as_json:
        typer.echo(json.dumps({"site": config.name, **found}))
        return
    out_console.print(f"{found['head']} {found['lines']}", highlight=False, soft_wrap=True)


@commands.command(epilog="Example: rarefed-client audit show hospital-1 --last 50")
def show(
    site: Site,
    last: Annotated[int, typer.Option(min=0, help="How many of the last lines to show.")] = 20,
    study: Annotated[
        str, typer.Option(help="Of this study alone: its name, or how its digest begins.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show the log like a bank statement: what was asked, what it cost, and what went out."""
    from client.audit import AUDIT_FILE
    from client.config import SiteConfig

    config = SiteConfig.load(site)
    lines, names = _entries(config, AUDIT_FILE), _names(config)
    if study:
        meant = [digest for digest, name in names.items() if name == study] or [study.lower()]
        lines = [x for x in lines if str(x.get("study", "")).startswith(tuple(meant))]
    shown = lines[max(0, len(lines) - last) :]
    if as_json:
        typer.echo(json.dumps({"site": config.name, "lines": shown}))
        return
    out_console.print(_statement(config.name, shown, names))


def _statement(site: str, lines: list[dict[str, Any]], names: dict[str, str]) -> Table:
    table = Table(title=f"{site}: audit log", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("time (UTC)", "study", "round", "what", "epsilon after", "bytes", "decision"):
        right = column in {"round", "epsilon after", "bytes"}
        table.add_column(column, justify="right" if right else "left")
    for line in lines:
        digest, epsilon = str(line.get("study", "")), line.get("epsilon")
        cells = (
            str(line["at"])[:19].replace("T", " "),
            names.get(digest, digest[:16]),
            str(line.get("round", "")),
            _what(line),
            "" if epsilon is None else f"{epsilon:.4f}",
            f"{line['bytes']:,}" if line.get("bytes") else "",
            _decided(line),
        )
        table.add_row(*map(escape, cells))
    return table


def _what(line: dict[str, Any]) -> str:
    """Say in words what a line is of."""
    signed = (line.get("countersigned") or {}).get("entries")
    if "kind" not in line:
        lines = f": {line['lines']} lines" if "lines" in line else ""
        disputed = "" if signed is None else f": what the coordinator holds of line {signed}"
        return f"{line.get('event', '')}{lines}{disputed}"
    parts = [str(line["kind"]) or "no order"]
    if line.get("declaration"):
        parts.append("numbers of patients and images")
    parts += [f"change of {group}" for group in line.get("groups", ())]
    parts += [f"metrics {key}" for key in line.get("metrics", ())]
    parts += [f"kept back: metrics {key}" for key in line.get("suppressed", ())]
    parts += [] if signed is None else [f"countersigned up to line {signed}"]
    return "\n".join([f"{parts[0]}:" if parts[1:] else parts[0], *(f"  {p}" for p in parts[1:])])


def _decided(line: dict[str, Any]) -> str:
    if "kind" not in line:
        return ""
    # Lines of an older release have the event alone.
    older = {"answered": "sent"}.get(line.get("event", ""), line.get("event", ""))
    code = f": {line['code']}" if line.get("code") else ""
    return f"{line.get('decision', older)}{code}"


def _names(config: "SiteConfig") -> dict[str, str]:
    """Return the names of approved studies by digest; none where they cannot be read."""
    from client.approvals import approved
    from common.errors import DataError

    try:
        return {digest: entry.name for digest, entry in approved(config).items()}
    except (DataError, OSError):
        return {}


def _entries(config: "SiteConfig", file: str) -> list[dict[str, Any]]:
    from common.chained_log import ChainedLog

    return _readable(config, ChainedLog(config.state / file).entries)


def _readable(config: "SiteConfig", read: Callable[[], Found]) -> Found:
    """Read a log, and tell what to do where this user may not."""
    from common.errors import DataError

    try:
        return read()
    except OSError as error:
        raise DataError(
            f"Cannot read the logs in {config.state}: {error.strerror}.",
            remedy="Run this as the vault's user, or as root.",
        ) from error
