"""Models across sites, and what each site gained, as tables for a terminal of 80 columns."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from simulations.benefit import JUDGED_BY
from simulations.matrix import (
    ALONE,
    ALONE_AT_HOME,
    ENSEMBLE,
    GLOBAL,
    PERSONAL,
    PERSONAL_AT_HOME,
    POOLED,
)

MODELS = {
    ALONE: "alone", ALONE_AT_HOME: "alone, at home", PERSONAL: "personal",
    PERSONAL_AT_HOME: "personal, at home", GLOBAL: "global", ENSEMBLE: "ensemble",
    POOLED: "pooled data",
}  # fmt: skip
"""Models by the names that they have here."""
SITES_BESIDE = 3
"""Sites that fit beside one another."""
SITES_IN_FULL = 6
"""With more sites than these, the models of single sites are left to ``summary.json``."""


def across_tables(summary: dict[str, Any]) -> Iterator[Table]:
    """Yield each task's AUROC of every model at every site, its spread, and each site's benefit.

    Args:
        summary: Content of ``summary.json``; without yardsticks there is no table.
    """
    for task, matrix in (summary.get("matrix") or {}).items():
        sites = list(matrix["sites"])
        shown = [r for r in matrix["rows"] if r["site"] is None or len(sites) <= SITES_IN_FULL]
        for start in range(0, len(sites), SITES_BESIDE):
            yield _matrix(task, shown, sites[start : start + SITES_BESIDE])
        if len(sites) > 1:
            yield _spread(task, [row for row in matrix["rows"] if row["site"] is None])
        yield _benefit(task, summary["benefit"][task], matrix["left_out"])


def _matrix(task: str, rows: Sequence[dict[str, Any]], sites: Sequence[str]) -> Table:
    table = _empty(f"{task}: AUROC at each site, by patient")
    _columns(table, "model", *sites)
    for row in rows:
        cells = [_cell(row["per_site"].get(site)) for site in sites]
        table.add_row(" ".join(filter(None, (MODELS[row["model"]], row["site"]))), *cells)
    return table


def _spread(task: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = _empty(f"{task}: AUROC of all patients, and its spread over sites")
    _columns(table, "model", "all patients", "range", "std", "worst at")
    for row in rows:
        apart = row["spread"][JUDGED_BY]
        cells = ["-"] * 3
        if apart is not None:
            ends = f"{apart['lowest']:.3f}-{apart['highest']:.3f}"
            worst = apart["worst_site"] if apart["lowest"] < apart["highest"] else "-"
            cells = [ends, f"{apart['std']:.3f}", worst]
        table.add_row(MODELS[row["model"]], _cell(row["pooled"]), *cells)
    return table


def _benefit(task: str, found: dict[str, Any], left_out: dict[str, str]) -> Table:
    """Return a sentence for each site that can be judged, and who cannot be and why."""
    table = _empty(f"{task}: what each site gained by taking part")
    table.add_column("", overflow="fold")
    for of in (one for site, one in found.items() if site not in left_out):
        table.add_row(of["sentence"])
        for pair, difference in of["differences"].items():
            one = difference[JUDGED_BY]
            if one["low"] is not None:
                ends = f"{one['low']:+.3f} to {one['high']:+.3f}"
                table.add_row(f"  {pair}: {one['value']:+.3f} ({ends}): {of['verdicts'][pair]}")
    for why in sorted(set(left_out.values())):
        sites = ", ".join(site for site, reason in left_out.items() if reason == why)
        table.add_row(f"Not judged: {sites}: {why}.")
    return table


def _empty(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        min_width=60,  # of titles
    )


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")


def _cell(found: dict[str, Any] | None) -> str:
    """Return AUROC with its interval where it has one; a dash where there is no figure."""
    if found is None or (one := found[JUDGED_BY])["value"] is None:
        return "-"
    text = f"{one['value']:.3f}"
    return text if one["low"] is None else f"{text} {one['low']:.2f}-{one['high']:.2f}"
