"""Epsilon as the ledger composes it, against Google's dp-accounting.

Each row is a history that a site may have: alike or mixed steps, few or many, all patients or
next to none, from an epsilon of a twentieth to hundreds. The figure is the largest distance to
dp-accounting's privacy loss distributions, as a share of theirs, above or below.
"""

from typing import Any

import typer
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant

from client.accounting import Mechanism, epsilon
from simulations.benches.result import Result

LIMIT = 0.02
MESH = 1e-5
"""Of the reference, as a share of epsilon: its own error is far below the limit then."""

HISTORIES: tuple[tuple[float, tuple[Mechanism, ...]], ...] = (
    (1e-3, (Mechanism(1, 1 / 3, 12),)),
    (1e-5, (Mechanism(1, 0.05, 500),)),
    (1e-5, (Mechanism(1.1, 0.01, 1000),)),
    (1e-4, (Mechanism(0.6, 0.1, 100),)),
    (1e-4, (Mechanism(4, 1, 50),)),
    (1e-3, (Mechanism(10, 1, 50),)),
    (1e-4, (Mechanism(0.3, 0.1, 100),)),
    (1e-4, (Mechanism(0.3, 1, 1),)),
    (1e-4, (Mechanism(0.1, 0.01, 10),)),
    (1e-4, (Mechanism(0.5, 1, 200),)),
    (1e-6, (Mechanism(1, 0.02, 100_000),)),
    (1e-8, (Mechanism(1, 0.01, 1000),)),
    (1e-4, (Mechanism(27.6, 0.05, 500),)),
    (1e-3, (Mechanism(0.734, 1 / 13, 130),)),
    (1e-3, (Mechanism(1.185, 1 / 13, 130),)),
    (1e-3, (Mechanism(2.451, 1 / 13, 130),)),
    (1e-5, (Mechanism(1, 0.01, 1000), Mechanism(2, 0.3, 50), Mechanism(3, 1, 4))),
    (1e-4, (Mechanism(0.8, 0.2, 10), Mechanism(50, 0.001, 500), Mechanism(1.5, 1, 1))),
    (1e-3, tuple(Mechanism(1 + k / 10, 1 / (3 + k), 6) for k in range(12))),
)
"""Delta and steps; the first ones stand in models.md, 2.5."""


def main() -> None:
    """Measure, print, and end with 1 above the limit."""
    rows = [_row(delta, history) for delta, history in HISTORIES]
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    figure = abs(worst["ratio"] - 1)
    result = Result(
        name="epsilon",
        figure=figure,
        against={
            "what": "dp-accounting, PLD, of the worst row",
            "figure": worst["dp_accounting"],
            "unit": "epsilon",
        },
        ratio=worst["ratio"],
        limit=LIMIT,
        holds=figure <= LIMIT,
        details={"lowest_ratio": min(row["ratio"] for row in rows), "rows": rows},
    )
    raise typer.Exit(result.tell())


def _row(delta: float, history: tuple[Mechanism, ...]) -> dict[str, Any]:
    ours = epsilon(history, delta)
    reference = pld_privacy_accountant.PLDAccountant(value_discretization_interval=MESH * ours)
    for part in history:
        gaussian = dp_event.GaussianDpEvent(part.noise_multiplier)
        event = dp_event.PoissonSampledDpEvent(part.sample_rate, gaussian)
        reference.compose(gaussian if part.sample_rate == 1 else event, part.steps)
    theirs = float(reference.get_epsilon(delta))
    parts = [list(part) for part in history]
    return {"delta": delta, "parts": parts, "epsilon": ours, "dp_accounting": theirs} | {
        "ratio": ours / theirs
    }


if __name__ == "__main__":
    typer.run(main)
