"""Runs every bench, one after the other, each in a process of its own, and prints a table."""

import json
import subprocess
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

BENCHES = (
    "metrics",
    "wire",
    "egress_fuzz",
    "image_fuzz",
    "epsilon",
    "ledger_kills",
    "dp_step",
    "dp_utility",
    "combine_memory",
    "engines",
    "overhead",
    "demo",
    "cache",
    "check_speed",
    "check_memory",
    "localisation",
    "cam_cost",
    "frozen",
    "onnx",
    "real",
    "half",
    "personal",
    "transfer_gain",
    "exchange",
    "federation",
    "wire_deployed",
    "big_model",
)


def measure(name: str) -> dict[str, Any] | None:
    """Run one bench and return its JSON object, or None when it gave none."""
    command = [sys.executable, "-m", f"simulations.benches.{name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own
    lines = done.stdout.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return None
    return found


def main(
    only: Annotated[list[str] | None, typer.Option(help="Run this one alone; repeatable.")] = None,
) -> None:
    """Run the benches and end with 1 if one of them does not keep its limit."""
    unknown = set(only or ()) - set(BENCHES)
    if unknown:
        raise typer.BadParameter(f"known are {', '.join(BENCHES)}", param_hint="--only")
    table = Table(title="benches", title_justify="left")
    for column in ("bench", "figure", "against", "ratio", "limit", "holds"):
        table.add_column(column)
    all_hold = True
    for name in only or BENCHES:
        with Console(stderr=True).status(f"measuring {name}"):
            found = measure(name)
        all_hold = all_hold and bool(found and found["holds"])
        table.add_row(*_row(name, found))
    Console().print(table)
    raise typer.Exit(0 if all_hold else 1)


def _row(name: str, found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [name, "-", "it failed; see above", "-", "-", "[red]no[/]"]
    against = found["against"]
    text = f"{against['what']}: {against['figure']:.4g} {against['unit']}"
    holds = "[green]yes[/]" if found["holds"] else "[red]no[/]"
    numbers = [f"{found[key]:.4g}" for key in ("figure", "ratio", "limit")]
    return [name, numbers[0], text, numbers[1], numbers[2], holds]


if __name__ == "__main__":
    typer.run(main)
