"""The clinician's page: one file of HTML that refers to nothing outside itself.

Its content security policy lets it fetch nothing and run one script, its own, by its hash. Neither
patients nor files are named unless that was asked for.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from client.benefit import Benefit
from client.bootstrap import Estimate
from client.evaluation import LocalFigures
from client.local_figures import Figures, TaskFigures
from client.report_cases import OUTCOMES
from client.report_federation import Federation
from client.report_figures import Chart, charts_of
from client.report_views import CaseView, Report, TaskView
from common.files import write_atomic

OWNER_ONLY = 0o600
METRICS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision (PPV)",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "loss": "loss (nats)",
}
"""Metrics by name, as the page calls them."""
LESS_IS_BETTER = frozenset({"brier", "calibration_error", "loss"})
RULES = {
    "youden": "Youden's J",
    "sensitivity": "sensitivity at least 0.95",
    "specificity": "specificity at least 0.95",
}


class Cell(NamedTuple):
    """A figure as a table shows it."""

    value: str
    interval: str
    reason: str
    """Why something is missing, or how the interval was made."""
    mark: str = ""
    """Letter of the table's note that says the reason; a digit would be read with the figure."""


class Row(NamedTuple):
    """A line of a table of figures."""

    name: str
    note: str
    cells: Sequence[Cell]


class Table(NamedTuple):
    """A table of figures."""

    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Mapping[str, str]
    """Reasons by letter."""


class Unit(NamedTuple):
    """Figures in which each image, or each patient, counts once, with their charts."""

    name: str
    figures: Figures
    charts: Sequence[Chart]


class Page(NamedTuple):
    """One task as the template takes it."""

    name: str
    view: TaskView
    units: Sequence[Unit]
    figures: Table
    of_classes: Table
    benefit: Table | None
    gains: Sequence[str]
    known: bool
    """Whether there are figures of all sites."""
    attention: Mapping[str, Any]
    """Where the network looks over all sites, by figure; empty where that is not known."""
    behind: str
    """Which rounds the federation's figures are of, where they are another model's."""


def write_page(report: Report, file: Path) -> None:
    """Write the page for its owner alone (0600).

    Raises:
        OSError: The file cannot be written.
    """
    write_atomic(file, page_of(report).encode(), mode=OWNER_ONLY)


def page_of(report: Report) -> str:
    """Return the page."""
    loader = PackageLoader("client")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (loader.get_source(environment, f"report.{end}")[0] for end in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = [_page(name, view, report) for name, view in report.tasks.items()]
    return environment.get_template("report.html").render(
        report=report,
        figures=report.figures,
        pages=pages,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        rules=RULES,
        outcomes=[o for o in OUTCOMES if any(o in page.view.outcomes for page in pages)],
        groups=sorted({
            group for page in pages for case in page.view.cases for group in _groups_of(case)
        }),
        classes=list(dict.fromkeys(c for page in pages for c in page.view.figures.classes)),
        places=sorted({p for page in pages for case in page.view.cases for p in case.places}),
        groups_of=_groups_of,
        stored=_stored,
        script=script,
        style=style,
        script_hash=digest,
    )  # fmt: skip


def _groups_of(case: CaseView) -> list[str]:
    return [f"{name}: {value}" for name, value in case.groups.items()]


def _stored(case: CaseView) -> dict[str, Any] | None:
    """Return the opinion that is kept of a case, as the page's script holds it."""
    return None if case.opinion is None else case.opinion.model_dump(exclude={"model"})


def _page(name: str, view: TaskView, report: Report) -> Page:
    found = view.figures
    units = [_unit("per image", found.of_images, found)]
    if found.of_patients is not None:
        units.insert(0, _unit("per patient", found.of_patients, found))
    together = report.federation
    pooled = together.tasks.get(name) if together else None
    benefit = report.figures.benefit.get(name)
    other = together is not None and not _is_same_model(together, report.figures)
    return Page(
        name=name,
        view=view,
        units=units,
        figures=_table(_columns(found, pooled)),
        of_classes=_of_classes(found),
        benefit=_benefit(benefit) if benefit else None,
        gains=_gains(benefit) if benefit else (),
        known=bool(pooled),
        attention=((pooled or {}).get("attention") or {}).get("pooled", {}),
        behind=f"{together.model_round}" if together is not None and pooled and other else "",
    )


def _is_same_model(together: Federation, figures: LocalFigures) -> bool:
    """Say whether the figures of all sites are of the model that the page shows.

    A network with the site's own normalisation or heads in it has a digest of its own.
    """
    whole = figures.model == "global" and together.sha256 is not None
    alike = together.sha256 == figures.sha256 if whole else True
    return alike and together.model_round == figures.model_round


def _unit(name: str, figures: Figures, found: TaskFigures) -> Unit:
    total = max(figures.cases, 1)
    pairs = zip(found.classes, figures.by_class, strict=True)
    return Unit(name, figures, charts_of(_plain(figures), {c: n / total for c, n in pairs}))


def _plain(figures: Figures) -> dict[str, Any]:
    return {
        "classes": {name: vars(of) for name, of in figures.classes.items()},
        "reliability": figures.reliability,
    }


def _columns(found: TaskFigures, pooled: Mapping[str, Any] | None) -> dict[str, Mapping[str, Cell]]:
    """Return the figures by column: this site's, and those of all sites where they are known."""
    units = [("per image", found.of_images, pooled)]
    if found.of_patients is not None:
        units.insert(0, ("per patient", found.of_patients, (pooled or {}).get("patients")))
    columns: dict[str, Mapping[str, Cell]] = {}
    for unit, own, others in units:
        columns[f"this site, {unit}"] = {
            metric: cell(estimate) for metric, estimate in own.metrics.items()
        }
        if others:
            columns[f"all sites, {unit}"] = _pooled(others)
    return columns


def _pooled(figures: Mapping[str, Any]) -> dict[str, Cell]:
    around = (figures.get("intervals") or {}).get("pooled") or {}
    found = {}
    for metric in METRICS:
        value, ends = figures["pooled"].get(metric), around.get(metric)
        found[metric] = Cell(
            "-" if value is None else f"{value:.3f}",
            f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "",
            "" if ends or value is None else "the sums give no interval",
        )
    return found


def cell(estimate: Estimate) -> Cell:
    """Return a figure with its interval, or why one of them is missing."""
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
    return Cell("-" if estimate.value is None else f"{estimate.value:.3f}", interval,
                estimate.reason)  # fmt: skip


def _table(columns: Mapping[str, Mapping[str, Cell]]) -> Table:
    """Return a table of every metric that a column has."""
    rows = [
        Row(
            title,
            "less is better" if metric in LESS_IS_BETTER else "",
            [column.get(metric, Cell("-", "", "not known here")) for column in columns.values()],
        )
        for metric, title in METRICS.items()
        if any(metric in column for column in columns.values())
    ]
    return _noted(list(columns), rows)


def _noted(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Say each reason once, in a note."""
    reasons = dict.fromkeys(c.reason for row in rows for c in row.cells if c.reason)
    marks = dict(zip(reasons, ascii_lowercase, strict=False))
    marked = [
        row._replace(cells=[c._replace(mark=marks.get(c.reason, "")) for c in row.cells])
        for row in rows
    ]
    return Table(columns, marked, {mark: reason for reason, mark in marks.items()})


def _of_classes(found: TaskFigures) -> Table:
    """Return AUROC and average precision of each class against the others, of several classes."""
    figures = found.of_images if found.of_patients is None else found.of_patients
    shown = ("auroc", "average_precision")
    rows = [
        Row(name, "", [cell(of.metrics[metric]) for metric in shown])
        for name, of in figures.classes.items()
        if of.metrics
    ]
    return _noted([METRICS[metric] for metric in shown], rows)


def _benefit(benefit: Benefit) -> Table:
    columns = {**benefit.metrics, **benefit.differences}
    return _table(
        {name: {metric: cell(e) for metric, e in of.items()} for name, of in columns.items()}
    )


def _gains(benefit: Benefit) -> list[str]:
    """Say of each pair of models what the paired interval of the AUROC allows to be said."""
    found = []
    for pair, metrics in benefit.differences.items():
        one, other = pair.split(" - ")
        auroc = metrics["auroc"]
        if auroc.value is None or auroc.low is None or auroc.high is None:
            why = f": {auroc.reason}" if auroc.reason else ""
            found.append(f"Whether the {one} model is better than {other} cannot be said{why}.")
            continue
        told = f"AUROC {auroc.value:+.3f} ({auroc.low:+.3f} to {auroc.high:+.3f})"
        if auroc.low > 0:
            verdict = f"the {one} model is better than {other} on these patients"
        elif auroc.high < 0:
            verdict = f"the {one} model is worse than {other} on these patients"
        else:
            verdict = f"no difference between {one} and {other} can be told from chance"
        found.append(f"{pair}: {told}; {verdict}.")
    return found
