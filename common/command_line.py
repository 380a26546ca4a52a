"""What the three command lines do alike: one way to fail, one way to show progress."""

import os
import sys
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape

from common.errors import RarefedError

INTERRUPTED = 130

err = Console(stderr=True)
"""Where everything goes that is not a command's result."""


def run(app: typer.Typer, *, program: str) -> None:
    """Run a command line, and end the process with the exit code of what happened.

    0 is success, 2 wrong usage, 130 an interruption; the others stand in ``common/errors.py``.
    With ``RAREFED_DEBUG=1`` an error is raised in full instead of told.
    """
    # Flower must not call home from a hospital, whoever starts it.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        _told(lambda: app(prog_name=program))
    except KeyboardInterrupt:
        err.print("[yellow]Interrupted.[/]")
        sys.exit(INTERRUPTED)


def _told(call: Callable[[], None]) -> None:
    try:
        call()
    except RarefedError as error:
        if os.environ.get("RAREFED_DEBUG"):
            raise
        # Escaped: a message may hold brackets, [data.TASK] for one, which are no markup.
        title, message = f"[bold red]{type(error).__name__}[/]", escape(error.message)
        err.print(title, message, sep=": ", highlight=False, soft_wrap=True)
        if error.remedy:
            remedy = f"[bold]Remedy:[/] {escape(error.remedy)}"
            err.print(remedy, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
