"""A lab's table for a paper, in LaTeX, and as one page of HTML that refers to nothing outside."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.files import write_atomic
from simulations.lab_table import caption, cells, headings, notes

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "±": r"$\pm$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}  # fmt: skip


def write_tex(path: Path, table: Mapping[str, Any]) -> None:
    """Write a ``table`` environment for each task; the document needs the package booktabs."""
    parts = [_environment(task, found, table) for task, found in table["tasks"].items()]
    write_atomic(path, "\n".join(parts).encode())


def write_html(
    path: Path, table: Mapping[str, Any], pictures: Mapping[str, Sequence[Path]]
) -> None:
    """Write the page.

    Args:
        path: Where.
        table: As ``lab_table.table_of`` returns it.
        pictures: PNG files by task, which become part of the page.
    """
    environment = Environment(
        loader=PackageLoader("simulations", "templates"), autoescape=True, undefined=StrictUndefined
    )
    tasks = [
        {
            "caption": caption(task, found, table),
            "best": found["best"],
            "rows": [cells(row, found["best"]) for row in found["rows"]],
            "notes": notes(found),
            "pictures": [_embedded(picture) for picture in pictures.get(task, ())],
        }
        for task, found in table["tasks"].items()
    ]
    page = environment.get_template("lab.html").render(
        lab=table["lab"], headings=headings(), tasks=tasks
    )
    write_atomic(path, page.encode())


def escaped(text: str) -> str:
    """Return text as LaTeX prints it."""
    return re.sub(r"[\\~^<>±&%$#_{}]", lambda found: _SPECIAL[found[0]], text)


def _environment(task: str, found: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    names = headings()
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption(task, found, table))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        r"\toprule",
        " & ".join(map(escaped, names)) + r" \\",
        r"\midrule",
    ]
    for row in found["rows"]:
        texts = [_cell(text, half) for text, half in cells(row, found["best"])]
        if row["row"] == found["best"]:
            texts = [rf"\textbf{{{text}}}" for text in texts]
        lines.append(" & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {escaped(note)}" for note in notes(found)]
    return "\n".join([*lines, r"\end{table}", ""])


def _cell(text: str, half: str) -> str:
    return escaped(text) + (rf" $\pm$ {half}" if half else "")


def _embedded(picture: Path) -> dict[str, str]:
    return {"name": picture.stem, "data": base64.b64encode(picture.read_bytes()).decode()}
