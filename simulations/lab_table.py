"""The table of a lab: each row's figures by task, as JSON has them, as CSV, and for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from client.weighted_metrics import Cases
from common.files import write_table
from common.seeds import stream
from common.study import Study, Task
from simulations.lab_figures import METRICS, mean_figures, mean_plain, over_seeds
from simulations.lab_predictions import cases_of
from simulations.lab_rows import Line
from simulations.lab_run import Found, Result
from simulations.lab_significance import Test, compare, holm

JUDGED_BY = "auroc"
COSTS = {"trainable": "trained numbers", "bytes_per_round": "bytes a round", "seconds": "seconds"}
"""What a row costs, by name, as a table calls it."""
_MILLION = 1e6
_SHORT = ("acc.", "error", "prec.", "sens.", "spec.", "F1", "AUROC", "p")
"""Columns for a terminal of 80 characters, in the order of ``headings``."""


def table_of(name: str, found: Found) -> dict[str, Any]:
    """Return the table, ready for JSON; docs/lab.md says what stands where."""
    study = _any_study(found.lines)
    return {
        "lab": name,
        "seeds": list(found.seeds),
        "sites": list(found.sites),
        "hospitals": found.hospitals,
        "tasks": {task: _of_task(found, task, of) for task, of in study.tasks.items()},
    }


def cases_by_row(found: Found, name: str, task: Task) -> dict[str, list[list[Cases]]]:
    """Return what the models of each row say of the test patients, by seed; none that failed."""
    by_row = {
        row: [cases_of(result.said[name], task) if result.said else [] for result in of]
        for row, of in found.results.items()
    }
    return {row: [models for models in of if models] for row, of in by_row.items()}


def _of_task(found: Found, name: str, task: Task) -> dict[str, Any]:
    said = cases_by_row(found, name, task)
    rows = {line.name: _row(line, found.results[line.name], name, task) for line in found.lines}
    known = {row: auroc for row, of in rows.items() if (auroc := _auroc(of)) is not None}
    best = max(known, key=known.__getitem__, default=None)
    tests: dict[str, Test] = {}
    if best is not None:
        models = {row: list(chain.from_iterable(of)) for row, of in said.items()}
        seed = stream("lab", name)
        tests = {r: compare(models[best], models[r], seed=seed) for r in known if r != best}
    corrected = holm({row: test.p for row, test in tests.items() if test.p is not None})
    for row, test in tests.items():
        rows[row]["against_best"] = test._asdict() | {"p_holm": corrected.get(row)}
    first = next((models[0] for of in said.values() for models in of), None)
    return {
        "classes": list(task.classes),
        "positive": task.positive,
        "per_patient": task.per_patient,
        "patients": 0 if first is None else int(first.owners.max()) + 1,
        "best": best,
        "rows": list(rows.values()),
    }


def _row(line: Line, results: Sequence[Result], name: str, task: Task) -> dict[str, Any]:
    figures = [
        mean_figures(cases_of(result.said[name], task)) if result.said else dict.fromkeys(METRICS)
        for result in results
    ]
    costs = {key: [result.facts.get(key) for result in results] for key in COSTS}
    return {
        "row": line.name,
        "kind": line.kind,
        "trained": sum(bool(result.said) for result in results),
        "reasons": list(dict.fromkeys(result.reason for result in results if result.reason)),
        "metrics": {
            metric: mean_plain(over_seeds([of[metric] for of in figures])) for metric in METRICS
        },
        "costs": {key: over_seeds(values).mean for key, values in costs.items()},
        "against_best": None,
    }


def _auroc(row: Mapping[str, Any]) -> float | None:
    value: float | None = row["metrics"][JUDGED_BY]["mean"]
    return value


def _any_study(lines: Sequence[Line]) -> Study:
    return next(line.study for line in lines if line.study is not None)


def write_csv(path: Path, table: Mapping[str, Any]) -> None:
    """Write every figure of every task and row, a column each."""
    ends = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    of_test = ["difference", "p", "p_holm", "patients", "method"]
    columns = ["task", "row", "kind", "seeds", *ends, *COSTS, *of_test, "reasons"]
    write_table(path, columns, _csv_rows(table))


def _csv_rows(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, found in table["tasks"].items():
        for row in found["rows"]:
            cells = {"task": task, "row": row["row"], "kind": row["kind"], "seeds": row["trained"]}
            for metric, mean in row["metrics"].items():
                cells |= {metric: mean["mean"]}
                cells |= {f"{metric}_{end}": mean[end] for end in ("low", "high")}
            against = (row["against_best"] or {}).items()
            test = {key: value for key, value in against if key != "reason"}
            yield cells | row["costs"] | test | {"reasons": "; ".join(row["reasons"])}


def headings() -> list[str]:
    """Return the names of the columns that ``cells`` fills."""
    return ["row", *METRICS.values(), "p", "trained numbers", "MB a round", "seconds"]


def cells(row: Mapping[str, Any], best: str | None) -> list[tuple[str, str]]:
    """Return a row's cells as a reader sees them: the figure, and the half of its interval."""
    found = [(row["row"], "")]
    for mean in row["metrics"].values():
        half = "" if mean["high"] is None else f"{mean['high'] - mean['mean']:.3f}"
        found.append(("-" if mean["mean"] is None else f"{mean['mean']:.3f}", half))
    found.append((_p(row, best), ""))
    costs = row["costs"]
    found.append((_counted(costs["trainable"]), ""))
    sent = costs["bytes_per_round"]
    found.append(("-" if sent is None else f"{sent / _MILLION:.1f}", ""))
    found.append(("-" if costs["seconds"] is None else f"{costs['seconds']:.0f}", ""))
    return found


def caption(task: str, found: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Say on whom and over what a task's figures are."""
    n, seeds = found["patients"], len(table["seeds"])
    means = "" if found["positive"] else "; means over the classes"
    interval = "mean and 95 % interval (±) over" if seeds > 1 else "of"
    return (
        f"{task}: {n} test patients of {len(table['sites'])} sites, each counted once{means}; "
        f"{interval} {seeds} seed{'s' * (seeds > 1)}; p of AUROC against the best row "
        f"({_method(found)}, Holm)"
    )


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return what must be said of a task's rows: who failed, and why there is no p."""
    told = [f"{row['row']}: {why}" for row in found["rows"] for why in row["reasons"]]
    for row in found["rows"]:
        test = row["against_best"]
        if test is not None and test["reason"]:
            told.append(f"{row['row']}: no p, {test['reason']}")
    return told


def terminal(table: Mapping[str, Any]) -> Iterator[Table | str]:
    """Yield each task's table and its notes, and a last table of what the rows cost."""
    figures = len(METRICS) + 2  # with the row's name, and p
    for task, found in table["tasks"].items():
        shown = _empty(caption(task, found, table), _SHORT)
        for row in found["rows"]:
            texts = [_two_lines(*cell) for cell in cells(row, found["best"])[:figures]]
            shown.add_row(*texts, style="bold" if row["row"] == found["best"] else None)
        yield shown
        yield from notes(found)
    costs = _empty("what they cost, means over the seeds", headings()[figures:])
    for row in next(iter(table["tasks"].values()))["rows"]:
        costs.add_row(escape(row["row"]), *(text for text, _ in cells(row, None)[figures:]))
    yield costs


def _empty(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=escape(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("row", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _two_lines(text: str, half: str) -> str:
    """Return a cell of six characters at most: the figure, and below it the half interval."""
    return escape(text) + (f"\n[dim]±{half.removeprefix('0')[:4]}[/]" if half else "")


def _method(found: Mapping[str, Any]) -> str:
    return "DeLong" if found["positive"] else "bootstrap over patients"


def _p(row: Mapping[str, Any], best: str | None) -> str:
    if row["row"] == best:
        return "best"
    test = row["against_best"]
    if test is None or test["p_holm"] is None:
        return "-"
    return "<0.001" if test["p_holm"] < 0.001 else f"{test['p_holm']:.3f}"  # noqa: PLR2004 - three digits


def _counted(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / _MILLION:.2f} M" if value >= _MILLION else f"{value:,.0f}"
