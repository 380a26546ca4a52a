"""ROC curves and confusion matrices of a lab, as PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.weighted_metrics import Cases
from common.ranking import Floats
from simulations.lab_figures import GRID, confusion, roc

_ACROSS = 4
"""Confusion matrices beside one another."""

Said = Mapping[str, Sequence[Sequence[Cases]]]
"""By row, then seed, then model."""


def draw_roc(path: Path, title: str, said: Said) -> None:
    """Draw the curve of each row: the mean over its seeds, models and, without a positive, classes.

    Args:
        path: The PNG file.
        title: What stands above it.
        said: What the rows' models say of the test patients.
    """
    plt = _pyplot()
    curves: dict[str, Floats] = {}
    for row, of in said.items():
        curve = roc([cases for models in of for cases in models])
        if curve is not None:
            curves[row] = curve
    figure, axis = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    colours = plt.get_cmap("tab20")
    for number, (row, curve) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[number // 20 % 4]
        axis.plot(GRID, curve, style, label=row, color=colours(number % 20), linewidth=1.4)
    axis.plot((0, 1), (0, 1), color="0.7", linewidth=0.8)
    axis.set(
        title=title, xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01)
    )
    axis.grid(alpha=0.3)
    if curves:
        axis.legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_confusions(path: Path, title: str, said: Said, classes: Sequence[str]) -> None:
    """Draw a matrix for each row: shares of each true class, summed over seeds and models.

    Args:
        path: The PNG file.
        title: What stands above it.
        said: What the rows' models say of the test patients.
        classes: Their names.
    """
    plt = _pyplot()
    tables = {
        row: confusion([cases for models in of for cases in models])
        for row, of in said.items()
        if of
    }
    across = min(_ACROSS, max(len(tables), 1))
    down = max(1, math.ceil(len(tables) / across))
    side = 1.6 + 0.35 * len(classes)
    figure, axes = plt.subplots(
        down, across, figsize=(side * across, side * down + 0.5), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize="small")
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    for axis, (row, counts) in zip(axes.flat, tables.items(), strict=False):
        _draw_matrix(axis, row, counts.astype(np.float64), classes)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_matrix(axis: Any, row: str, counts: Floats, classes: Sequence[str]) -> None:
    of_class = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, of_class, out=np.zeros_like(counts), where=of_class > 0)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    for i in places:
        for j in places:
            colour = "white" if shares[i, j] > 0.5 else "black"  # noqa: PLR2004 - half of dark
            axis.text(
                j,
                i,
                f"{100 * shares[i, j]:.0f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=7,
            )
    axis.set_title(row, fontsize=7)
    axis.set_xticks(places, classes, fontsize=6, rotation=30, ha="right")
    axis.set_yticks(places, classes, fontsize=6)
    axis.set_xlabel("said", fontsize=6)
    axis.set_ylabel("true", fontsize=6)


def _pyplot() -> Any:
    """Return matplotlib's drawing functions, without a screen."""
    import matplotlib as mpl  # noqa: PLC0415 - seconds to load, and an extra

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of backend

    return plt
