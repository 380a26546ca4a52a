"""Figures by scanner, sex and age band, where enough patients stand behind each cell.

A cell is what one subgroup has of one class. A cell below the site's ``minimum_patients`` is
suppressed, an empty one too: that nobody is there tells of everybody who is. The totals of the
classes are known, so further cells of the same class are suppressed with it. The subgroups, in the
order of their names, make pairs (the last three together where their number is odd), and of a class
a pair is given or suppressed as one; where fewer patients than the minimum are behind all that is
suppressed, the next pair is too. Who knows this rule and the totals still finds for each suppressed
cell that it may be empty or hold all of them: with one empty cell in each suppressed pair, every
distribution looks the same. The total of a subgroup, and figures that need all of its classes, are
given where none of its cells is suppressed; so only the totals of the classes bind cells together.
Tables by scanner, sex and age have nothing but these in common.

Shapes: Q cases, P patients, V subgroups, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.bootstrap import Estimate, intervals
from client.dataset import Images, Origin
from client.weighted_metrics import Cases
from common.ranking import Ints

UNKNOWN, SEVERAL = "unknown", "several"
"""Of patients of whom nothing is known, and of those whose images differ."""


@dataclass(frozen=True)
class Subgroup:
    """One line of a table: the patients of one scanner, sex or age band."""

    value: str
    patients: tuple[int | None, ...]
    """Patients of each class, K of them; None where suppressed."""
    right: tuple[float | None, ...]
    """Share of those patients who are given their class at the highest probability."""
    metrics: Mapping[str, Estimate] | None
    """Every metric with its interval, each patient counting once; None where a cell is
    suppressed."""


def values_of_patients(images: Images) -> dict[str, list[str]]:
    """Return scanner, sex and age band of each patient, P each, patients sorted by hash.

    The manifest comes before the header. Where the images of a patient differ the value is
    ``SEVERAL``.
    """
    patients, owners = np.unique(np.array(images.patients, str), return_inverse=True)
    table = [_said(origin) for origin in images.origins]
    found: dict[str, list[str]] = {}
    for column, name in enumerate(("scanner", "sex", "age")):
        of_patient: list[set[str]] = [set() for _ in patients]
        for owner, said in zip(owners.tolist(), table, strict=False):
            of_patient[owner].add(said[column])
        known = [values - {"", UNKNOWN} for values in of_patient]
        found[name] = [
            UNKNOWN if not values else min(values) if len(values) == 1 else SEVERAL
            for values in known
        ]
    return found


def _said(origin: Origin) -> tuple[str, str, str]:
    row, facts = origin.row, origin.facts
    return row.scanner or facts.scanner, row.sex or facts.sex, row.age or facts.age


def subgroups(
    cases: Cases, values: Mapping[str, Sequence[str]], *, minimum: int, seed: int
) -> dict[str, list[Subgroup]]:
    """Return a table for each column that tells patients apart.

    Args:
        cases: What the model says of each patient; ``owners`` count the patients sorted by hash.
        values: By column, the value of each patient, P of them.
        minimum: The site's ``minimum_patients``.
        seed: Of the intervals' draws.
    """
    return {
        name: _table(cases, np.array(column, str), minimum, seed)
        for name, column in values.items()
        if len(set(column)) > 1
    }


def _table(cases: Cases, column: NDArray[np.str_], minimum: int, seed: int) -> list[Subgroup]:
    names, of_patient = np.unique(column, return_inverse=True)
    of_case, k = of_patient[cases.owners], cases.logits.shape[1]
    right = cases.logits.argmax(axis=1) == cases.labels
    places = of_case * k + cases.labels
    counts = np.bincount(places, minlength=len(names) * k).reshape(-1, k)
    hits = np.bincount(places[right], minlength=len(names) * k).reshape(-1, k)
    hidden = hidden_cells(counts, minimum)
    return [
        Subgroup(
            str(name),
            tuple(None if h else int(n) for n, h in zip(counts[row], hidden[row], strict=True)),
            tuple(
                None if h or not n else float(r / n)
                for r, n, h in zip(hits[row], counts[row], hidden[row], strict=True)
            ),
            None if hidden[row].any() else _metrics(cases, of_case == row, seed),
        )
        for row, name in enumerate(names)
    ]


def _metrics(cases: Cases, chosen: NDArray[np.bool_], seed: int) -> dict[str, Estimate]:
    owners = np.unique(cases.owners[chosen], return_inverse=True)[1]
    own = Cases(cases.logits[chosen], cases.labels[chosen], owners, cases.positive)
    return intervals(own, seed=seed)


def hidden_cells(counts: Ints, minimum: int) -> NDArray[np.bool_]:
    """Return which cells are suppressed, (V, K), so that none can be had from the classes' totals.

    Args:
        counts: (V, K): patients of each subgroup and class; subgroups in the order of their names.
        minimum: Patients that a cell must hold; with 1, cells may be empty and all are given.
    """
    if minimum <= 1:
        return np.zeros(counts.shape, bool)
    return np.stack([_hidden(column, minimum) for column in counts.T], axis=1)


def _hidden(counts: Ints, minimum: int) -> NDArray[np.bool_]:
    """Return which subgroups' cells of one class are suppressed, (V,)."""
    pairs = np.minimum(np.arange(len(counts)) // 2, max(0, len(counts) // 2 - 1))
    hidden = np.isin(pairs, pairs[counts < minimum])
    if not hidden.any():
        return hidden
    after = int(pairs[hidden][-1]) + 1
    for pair in np.roll(np.arange(pairs[-1] + 1), -after):  # from the next one on, round the table
        if counts[hidden].sum() >= minimum:
            break
        hidden |= pairs == pair
    return hidden
