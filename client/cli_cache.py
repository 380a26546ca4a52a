"""The hospital's commands for the prepared images that are kept on its disk."""

import json
import os
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from client.cli_daemon import AsJson, Site

if TYPE_CHECKING:
    from client.cache import Cache
    from client.config import SiteConfig

out_console = Console()
commands = typer.Typer(
    no_args_is_help=True, help="Show or clear the prepared images that are kept on this disk."
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the hospital's command line."""
    app.add_typer(commands, name="cache")


@commands.command(epilog="Example: rarefed-client cache show hospital-1")
def show(site: Site, as_json: AsJson = False) -> None:
    """Show how many images are kept, how much they take, and how much they may."""
    from client.cache import MEGABYTE, Size
    from client.config import SiteConfig

    config = SiteConfig.load(site)
    cache = _opened(config)
    size = Size(0, 0) if cache is None else cache.size()
    limit = config.limits.max_cache_mb
    if as_json:
        found = {"site": config.name, "folder": str(config.cache_folder), **size._asdict()}
        typer.echo(json.dumps(found | {"max_bytes": limit * MEGABYTE}))
        return
    out_console.print(
        f"{config.name}: {size.entries} sources prepared, {size.bytes / MEGABYTE:.1f} of "
        f"{limit} MB, in {config.cache_folder}",
        highlight=False,
        soft_wrap=True,
    )


@commands.command(epilog="Example: rarefed-client cache clear hospital-1")
def clear(site: Site, as_json: AsJson = False) -> None:
    """Remove all prepared images; a vault that is running goes on with its own.

    The next study or check reads and prepares every image anew.
    """
    from client.cache import MEGABYTE, Size
    from client.config import SiteConfig

    config = SiteConfig.load(site)
    cache = _opened(config)
    removed = Size(0, 0) if cache is None else cache.clear()
    if as_json:
        typer.echo(json.dumps({"site": config.name, **removed._asdict()}))
        return
    out_console.print(
        f"{config.name}: {removed.entries} sources removed, {removed.bytes / MEGABYTE:.1f} MB.",
        highlight=False,
    )


def _opened(config: "SiteConfig") -> "Cache | None":
    """Return the cache, or None where nothing was ever kept.

    Raises:
        DataError: The folder belongs to somebody else, who could not use what root writes there,
            or who keeps it closed.
    """
    from client.cache import MEGABYTE, Cache
    from common.errors import DataError

    folder = config.cache_folder
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        return None
    except PermissionError:
        owner = None
    if owner != os.geteuid():
        raise DataError(
            f"{folder} belongs to another user.", remedy="Run this as the vault's user."
        )
    return Cache(folder, config.limits.max_cache_mb * MEGABYTE)
