"""The hospital's command that says which studies it takes part in."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli_daemon import AsJson, Site
from common.command_line import err

if TYPE_CHECKING:
    from client.config import SiteConfig

out_console = Console()

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; for a script.")]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the hospital's command line."""
    app.command(epilog="Example: rarefed-client approve hospital-1 study.toml")(approve)


def approve(
    site: Site,
    study: Annotated[
        Path | None, typer.Argument(help="The study file that the coordinator sent.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show what is approved.")] = False,
    revoke: Annotated[
        str, typer.Option(help="Take back the approval of the study with this digest: 3f2a...")
    ] = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Approve a study, after saying what that means. Nothing else is ever trained here.

    The approval is for this very study: with one setting changed it is another.
    """
    from client.config import SiteConfig

    if [study is not None, show, bool(revoke)].count(True) != 1:
        raise typer.BadParameter("give one of: a study file, --list, --revoke DIGEST")
    config = SiteConfig.load(site)
    if study is not None:
        found = _approve(config, study, yes=yes)
    else:
        found = _revoke(config, revoke) if revoke else _approvals(config)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for entry in [found] if study is not None or revoke else found["approved"]:
        word = "approved" if entry["approved"] else "no longer approved"
        out_console.print(f"{entry['study']} {entry['digest']} {word}", highlight=False)


def confirmed(question: str, option: str) -> bool:
    """Ask on the terminal; without one, name the option that answers instead."""
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"there is no terminal to ask on; give {option}")
    return typer.confirm(question, err=True)


def _approve(config: "SiteConfig", file: Path, *, yes: bool) -> dict[str, Any]:
    from client import approvals
    from client.situation import keep_owner
    from client.terms import lines_of, terms_of
    from common.study import Study

    study = Study.load(file)
    terms = terms_of(study, config)
    table = Table(show_header=False, title="What you approve", title_justify="left")
    for line in lines_of(terms):
        table.add_row(*map(escape, line))
    err.print(table)
    if not yes and not confirmed("Approve this study?", "--yes"):
        raise typer.Abort
    approvals.approve(config, study, datetime.now(UTC))
    keep_owner(config.state / approvals.APPROVALS_FILE)
    return {**terms, "approved": True}


def _revoke(config: "SiteConfig", digest: str) -> dict[str, Any]:
    from client import approvals
    from client.situation import keep_owner
    from common.errors import NotApprovedError

    known = approvals.approved(config)
    meant = [found for found in known if found.startswith(digest.lower())]
    if len(meant) != 1:
        raise NotApprovedError(
            f"{len(meant)} approved studies have a digest that begins with {digest}.",
            remedy="Give more of it; rarefed-client approve SITE --list shows them.",
        )
    approvals.withdraw(config, meant[0])
    keep_owner(config.state / approvals.APPROVALS_FILE)
    return {"study": known[meant[0]].name, "digest": meant[0], "approved": False}


def _approvals(config: "SiteConfig") -> dict[str, Any]:
    from client.approvals import approved

    entries = approved(config).items()
    found = [
        {"study": entry.name, "digest": digest, "at": entry.at.isoformat(), "approved": True}
        for digest, entry in entries
    ]
    return {"approved": found}
