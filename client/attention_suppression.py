"""Which sums of attention a site keeps to itself: by its policy, or since too few are behind them.

They leave in the reply to a study's last order alone, if the study asks for them and the hospital
says ``limits.attention = "report"``, and of a task only beside the metrics of its test images. Each
figure has patients of its own: those whose map is not empty, on whose image there is text, whose
lesion is marked. Each needs ``limits.minimum_patients``, and so does the difference of its number
to any other that is reported: of a metric state, of a class, of another figure.

The numbers of patients follow ``limits.patients``; sums follow their numbers, so that means stay.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from client.config import Limits
from client.suppression import Behind, Key, differ_by_few, stated
from common.arrays import Arrays
from common.attention import ATTENTION, FIGURES, Table, from_arrays, to_arrays
from common.errors import ReplyError
from common.messages import Order, Reply

Looked = Mapping[str, tuple[frozenset[str], ...]]
"""Who stands behind each of the ``FIGURES``, by task; known to the site alone."""


def may_report(order: Order, limits: Limits) -> bool:
    """Say whether attention is asked for in an order, and whether the hospital lets it go."""
    asked = order.study.evaluation.attention != "none"
    return order.kind == "evaluate" and asked and limits.attention == "report"


def suppress_attention(
    reply: Reply, order: Order, limits: Limits, behind: Mapping[Key, Behind], looked: Looked
) -> Reply:
    """Return ``reply`` without the sums that may not leave; what is left is rounded if asked.

    What is of no known form stays as it is: ``client/egress.py`` holds it back.

    Args:
        reply: After ``suppression.suppress``, since what is kept is compared with.
        order: What was asked.
        limits: The hospital's.
        behind: Who stands behind the metric states.
        looked: Who stands behind the sums of attention.
    """
    reported: Any = reply.metrics
    if not isinstance(reported, Mapping):
        return reply
    tables = {
        key[0]: table
        for key in ((task, ATTENTION) for task in looked)
        if key in reported and (table := _table_of(reported[key])) is not None
    }
    withheld = withheld_attention(tables, reported, order, limits, behind, looked)
    kept: dict[Key, Arrays] = dict(reported)
    for task, table in tables.items():
        rows = [row for row in range(len(FIGURES)) if (task, FIGURES[row]) not in withheld]
        left = _restated(table, rows, limits)
        if left[:, 0].any():
            kept[task, ATTENTION] = to_arrays(left)
        else:
            del kept[task, ATTENTION]
    return reply._replace(metrics=kept)


def withheld_attention(
    tables: Mapping[str, Table],
    reported: Iterable[Key],
    order: Order,
    limits: Limits,
    behind: Mapping[Key, Behind],
    looked: Looked,
) -> dict[tuple[str, str], str]:
    """Return which figures may not leave, by task and figure, and why.

    Args:
        tables: Sums by task, each a key of ``looked``; a row without patients is not there.
        reported: What is reported beside them; of that, the metric states count.
        order: What was asked.
        limits: The hospital's.
        behind: Who stands behind the metric states.
        looked: Who stands behind the sums.
    """
    states = set(reported) & behind.keys()
    others = [behind[key] for key in sorted(states)]
    found: dict[tuple[str, str], str] = {}
    for task, table in sorted(tables.items()):
        for row, figure in enumerate(FIGURES):
            if not table[row, 0]:
                continue
            own = Behind((dict.fromkeys(looked[task][row], 1),))
            if not may_report(order, limits):
                found[task, figure] = "not asked for, or kept by the hospital"
            elif (task, "test") not in states:
                found[task, figure] = "the metrics of its images are not among them"
            elif len(looked[task][row]) < limits.minimum_patients:
                found[task, figure] = "too few patients"
            elif any(differ_by_few(own, other, limits) for other in others):
                found[task, figure] = "too few patients make the difference to another figure"
            else:
                others.append(own)
    return found


def _table_of(arrays: Any) -> Table | None:
    """Return a table of a reply; None if it is none."""
    try:
        return from_arrays(arrays)
    except (ReplyError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _restated(table: Table, rows: list[int], limits: Limits) -> Table:
    """Return some rows of a table, their patients as the site states numbers; others are zero."""
    left = np.zeros_like(table)
    for row in rows:
        patients = int(table[row, 0])
        if patients:
            told = stated(patients, limits)
            left[row] = table[row] * (told / patients)
            left[row] = np.minimum(left[row], told)  # a product may end just beyond it
            left[row, 0] = told
    return left
