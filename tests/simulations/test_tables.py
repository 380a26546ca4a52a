"""Laws of the tables on the terminal."""

from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from simulations.run import read_summary
from simulations.tables import SHOWN, tables

WIDTH = 80


def printed(summary: dict[str, Any]) -> list[str]:
    """Return, table by table, what a terminal of 80 columns shows."""
    shown = []
    for table in tables(summary):
        console = Console(file=StringIO(), width=WIDTH)
        console.print(table)
        shown.append(console.file.getvalue())  # type: ignore[attr-defined]
    return shown


def shown(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return what each table is of, in their order: a task's images, then its patients."""
    parts = []
    for task, found in summary["tasks"].items():
        parts += [(task, found), (f"{task}, each patient", found["patients"])]
    return parts


def federated(text: str) -> str:
    (row,) = [line for line in text.splitlines() if line.strip().startswith("federated")]
    return row


def test_tables_fit_a_terminal_whole(finished: Path) -> None:
    """No line is wider than 80 columns, and no cell is cut."""
    for text in printed(read_summary(finished)):
        assert max(map(len, text.splitlines())) <= WIDTH
        assert "…" not in text


def test_thousands_of_patients_fit_too(finished: Path) -> None:
    """Five digits of patients and two of sites leave every cell whole."""
    summary = read_summary(finished)
    for _, found in shown(summary):
        found["pooled"]["n_patients"] = 12345
        (figures, *_) = found["per_site"].values()
        found["per_site"] = {"hospital-99": {**figures, "auroc": 1.0}}
        found["intervals"]["per_site"] = {"hospital-99": {"auroc": [0.981, 1.0]}}
    for text in printed(summary):
        assert max(map(len, text.splitlines())) <= WIDTH
        assert "12345" in text
        assert "hospital-99" in text
        assert "1.000 0.98-1.00" in text
        assert "…" not in text


def test_each_task_has_tables_of_every_model(finished: Path) -> None:
    """A table names its task, the federation, the three yardsticks and each site of the task.

    Where patients have several images there is a second one, of patients.
    """
    summary = read_summary(finished)
    for text, (task, found) in zip(printed(summary), shown(summary), strict=True):
        sites = [f"at {site}" for site in found["per_site"]]
        for word in (task, "federated", "alone, mean", "ensemble", "pooled data", *sites):
            assert word in text


def test_the_numbers_are_those_of_the_summary(finished: Path) -> None:
    """Each row has patients and metrics to three digits, AUROC with its interval if it has one."""
    summary = read_summary(finished)
    for text, (_, found) in zip(printed(summary), shown(summary), strict=True):
        row = federated(text)
        figures = found["pooled"]
        cells = [f"{figures[name]:.3f}" for name in SHOWN]
        if ends := found["intervals"]["pooled"]["auroc"]:
            cells[0] += f" {ends[0]:.2f}-{ends[1]:.2f}"
        assert " ".join(row.split()[1:]) == " ".join([str(figures["n_patients"]), *cells])


def test_what_is_undefined_is_a_dash(finished: Path) -> None:
    """A metric that the patients leave undefined is shown as such, not as zero."""
    summary = read_summary(finished)
    summary["yardsticks"] = None
    for _, found in shown(summary):
        found["pooled"] |= {"auroc": None, "sensitivity": None}
        found["intervals"]["pooled"] |= {"auroc": None}
    for text in printed(summary):
        assert federated(text).split().count("-") == 2
        assert "ensemble" not in text


def test_one_image_of_each_patient_needs_one_table(finished: Path) -> None:
    """Without figures of patients, of the federation or of a yardstick, none are shown."""
    summary = read_summary(finished)
    for values in summary["yardsticks"].values():
        for found in values.values():
            del found["patients"]
    texts = printed(summary)
    assert len(texts) == 2 * len(summary["tasks"])
    assert all(("ensemble" in text) == ("each patient" not in text) for text in texts)
    for found in summary["tasks"].values():
        del found["patients"]
    assert len(printed(summary)) == len(summary["tasks"])
