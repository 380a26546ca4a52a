"""A lab from its file to its tables and pictures."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from common.files import write_json
from simulations import lab_pages, lab_pictures, lab_table
from simulations.lab import Loaded
from simulations.lab_run import Found, run
from simulations.pictures import check_can_draw

TABLES = ("table.json", "table.csv", "table.tex", "table.html")


def compare(
    loaded: Loaded, out: Path, *, threads: int = 0, console: Console | None = None
) -> dict[str, Any]:
    """Run a lab and write its tables and pictures.

    Args:
        loaded: The lab.
        out: Folder for everything; what is there of the lab is not done again.
        threads: Torch threads; 0 is all cores.
        console: Where rows that cannot apply are told, and progress is shown if it is a terminal.

    Returns:
        The content of ``table.json``.

    Raises:
        RarefedError: As ``lab_run.run`` says.
        OutputError: matplotlib is not installed.
    """
    check_can_draw()
    with _progress(console) as bar:
        task = bar.add_task("reading", total=0)

        def watch(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total)

        def tell(text: str) -> None:
            if console is not None:
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        found = run(loaded, out, threads=threads, watch=watch, tell=tell)
    table = lab_table.table_of(loaded.lab.name, found)
    write_json(out / "table.json", table)
    lab_table.write_csv(out / "table.csv", table)
    lab_pages.write_tex(out / "table.tex", table)
    lab_pages.write_html(out / "table.html", table, _draw(found, table, out))
    return table


def _draw(found: Found, table: dict[str, Any], out: Path) -> dict[str, list[Path]]:
    """Draw what there is of each task, and return the files."""
    study = next(line.study for line in found.lines if line.study is not None)
    drawn = {}
    for name, task in study.tasks.items():
        said = lab_table.cases_by_row(found, name, task)
        of_seeds = f"{table['tasks'][name]['patients']} test patients, {len(found.seeds)} seed(s)"
        files = [out / f"roc-{name}.png", out / f"confusion-{name}.png"]
        lab_pictures.draw_roc(files[0], f"{name}: means; {of_seeds}", said)
        lab_pictures.draw_confusions(
            files[1], f"{name}: % of each true class; {of_seeds}", said, task.classes
        )
        drawn[name] = files
    return drawn


def _progress(console: Console | None) -> Progress:
    """A bar that shows itself on a terminal only."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    )
