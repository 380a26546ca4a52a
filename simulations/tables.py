"""What a played study found, as tables for a terminal of 80 columns."""

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

SHOWN = {
    "auroc": "AUROC, 95 %",
    "balanced_accuracy": "bal.acc.",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "f1": "F1",
    "brier": "Brier",
}
"""Metrics by the short names that they have here."""

YARDSTICKS = {"alone": "alone, mean", "ensemble": "ensemble", "pooled": "pooled data"}


def tables(summary: dict[str, Any]) -> Iterator[Table]:
    """Yield a task's table: each model on all test patients, then the federation's by site.

    Where patients have several images, a second one follows, in which each patient counts once.

    Args:
        summary: Content of ``summary.json``.
    """
    for task, found in summary["tasks"].items():
        yardsticks = {name: v[task] for name, v in (summary["yardsticks"] or {}).items()}
        yield _table(f"{task}: n test patients", found, yardsticks)
        if "patients" in found:
            of_patients = {name: v["patients"] for name, v in yardsticks.items() if "patients" in v}
            title = f"{task}, each patient counted once: n test patients"
            yield _table(title, found["patients"], of_patients)


def _table(title: str, found: dict[str, Any], yardsticks: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,  # without it, five digits of patients are cut
    )
    table.add_column("model", no_wrap=True)
    for name in ("n", *SHOWN.values()):
        table.add_column(name, justify="right", no_wrap=True)
    intervals = found.get("intervals", {"pooled": {}, "per_site": {}})
    table.add_row("federated", *_cells(found["pooled"], intervals["pooled"]), style="bold")
    for name, values in yardsticks.items():
        table.add_row(YARDSTICKS[name], *_cells(values, {}))
    table.add_section()
    for site, figures in found["per_site"].items():
        table.add_row(f"at {site}", *_cells(figures, intervals["per_site"].get(site, {})))
    return table


def _cells(figures: dict[str, Any], intervals: dict[str, list[float] | None]) -> list[str]:
    """Patients, then metrics; AUROC with its interval where it has one."""
    cells = [str(figures["n_patients"])]
    for metric in SHOWN:
        value = figures[metric]
        text = "-" if value is None else f"{value:.3f}"
        if metric == "auroc" and (ends := intervals.get(metric)) is not None:
            text += " {:.2f}-{:.2f}".format(*ends)
        cells.append(text)
    return cells
