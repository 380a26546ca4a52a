"""Curves of a played study, as PNG."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import OutputError
from server.history import RoundRecord

SHOWN = ("auroc", "balanced_accuracy", "loss")


def check_can_draw() -> None:
    """Find out before a long run whether its curves can be drawn.

    Raises:
        OutputError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise OutputError(
            "matplotlib is not installed, and curves.png needs it.",
            remedy="Install rarefed[simulation].",
        )


def draw_curves(records: Sequence[RoundRecord], path: Path) -> None:
    """Draw each task's pooled figures over the rounds, test solid and validation dashed."""
    import matplotlib as mpl  # noqa: PLC0415 - seconds to load, and an extra

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of backend

    tasks = sorted({task for record in records for task in record.tasks})
    figure, axes = plt.subplots(
        1, len(SHOWN), figsize=(4 * len(SHOWN), 3.4), squeeze=False, layout="constrained"
    )
    for axis, metric in zip(axes[0], SHOWN, strict=True):
        for number, task in enumerate(tasks):
            for split, style in (("test", "-"), ("validation", "--")):
                points = _points(records, task, split, metric)
                label = f"{task} ({split})"
                axis.plot(*points, style, color=f"C{number}", marker=".", label=label)
        axis.set(title=metric.replace("_", " "), xlabel="rounds trained")
        axis.grid(alpha=0.3)
        if metric != "loss":
            axis.set_ylim(0.3, 1.02)
    axes[0][0].legend(fontsize="x-small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _points(
    records: Sequence[RoundRecord], task: str, split: str, metric: str
) -> tuple[list[int], list[Any]]:
    found = [
        (record.model_round, record.tasks[task][split]["pooled"][metric])
        for record in records
        if split in record.tasks.get(task, {})
    ]
    kept = [(x, y) for x, y in found if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]
