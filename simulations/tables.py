"""What a played study found, as tables for a terminal."""

from typing import Any

from rich.table import Table

SHOWN = {
    "auroc": "AUROC",
    "balanced_accuracy": "bal. acc.",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "f1": "F1",
    "brier": "Brier",
}
"""Metrics by the short names that fit a terminal of 80 columns."""


def comparison(summary: dict[str, Any]) -> Table:
    """Return one row a task and way: the federation, and the yardsticks where they were run."""
    table = Table(title=f"{summary['study']}: n test patients, all sites together")
    _add_columns(table, "model")
    for task, found in summary["tasks"].items():
        for name, figures in _ways(summary, task, found):
            table.add_row(task, name, *_cells(figures))
        table.add_section()
    return table


def per_site(summary: dict[str, Any]) -> Table:
    """Return one row a task and site: the federation's model on that site's test patients."""
    table = Table(title="The federation's model on the n test patients of each site")
    _add_columns(table, "site")
    for task, found in summary["tasks"].items():
        for site, figures in found["per_site"].items():
            table.add_row(task, site, *_cells(figures))
        table.add_section()
    return table


def _add_columns(table: Table, second: str) -> None:
    table.add_column("task", overflow="fold")
    table.add_column(second, no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name in SHOWN.values():
        table.add_column(name, justify="right", no_wrap=True)


def _cells(figures: dict[str, Any]) -> list[str]:
    """Patients, then metrics."""
    return [str(figures["n_patients"]), *(_number(figures, metric) for metric in SHOWN)]


def _ways(
    summary: dict[str, Any], task: str, found: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    ways = [("federated", found["pooled"])]
    yardsticks = summary["yardsticks"] or {}
    names = {"alone": "alone, mean", "ensemble": "ensemble", "pooled": "pooled data"}
    return ways + [(names[name], values[task]) for name, values in yardsticks.items()]


def _number(figures: dict[str, Any], metric: str) -> str:
    value = figures[metric]
    if value is None:
        return "-"
    bound = figures["auroc_bound"]
    return f"{value:.3f}±{bound:.3f}" if metric == "auroc" and bound is not None else f"{value:.3f}"
