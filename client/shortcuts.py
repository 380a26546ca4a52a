"""Whether a label can be told from where an image comes from: a shortcut that a network would take.

For each class a rule is made that knows one column alone: a value speaks for the class when it is
more frequent among the class's patients than among the others. The rule's balanced accuracy (the
mean of sensitivity and specificity) is measured on patients that it was not made of, and has to be
one that shuffled labels do not reach. Each patient counts the same, however many the images.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.seeds import stream

LEAST_ACCURACY = 0.75
"""Balanced accuracy from which a class counts as told; 0.5 is chance."""
LEAST_PATIENTS = 5
"""Patients that a class, and what is not of the class, must have."""
FOLDS = 5
SHUFFLES = 199
"""With none of them as accurate, chance has at most one part in 200."""
PURE = 0.95
"""Share of a value's patients from which the value tells their class by itself."""


class Shortcut(NamedTuple):
    """A column that tells a class."""

    column: str
    label: int
    """The class that it tells best."""
    accuracy: float
    """Balanced accuracy of the best rule, in [0, 1]."""
    shares: Mapping[str, tuple[float, int]]
    """Of each value, the share of the class among its patients, in [0, 1], and their number."""

    @property
    def telling(self) -> frozenset[str]:
        """The values whose patients are nearly all of the class, or nearly none."""
        return frozenset(
            value
            for value, (share, patients) in self.shares.items()
            if patients >= LEAST_PATIENTS and not 1 - PURE < share < PURE
        )


class _Table(NamedTuple):
    """What is known of m different combinations of patient, value and label."""

    value: NDArray[np.int64]
    label: NDArray[np.int64]
    weight: NDArray[np.float64]
    fold: NDArray[np.int64]


def shortcuts(
    labels: Sequence[int], patients: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> Iterator[Shortcut]:
    """Yield the columns that nearly determine a class.

    Args:
        labels: Class of each of n rows.
        patients: Patient of each row.
        columns: What else is known of each row, by name; n texts each.
    """
    for name, texts in columns.items():
        if len(set(texts)) > 1:
            yield from _shortcut(name, labels, patients, texts)


def _shortcut(
    name: str, labels: Sequence[int], patients: Sequence[str], texts: Sequence[str]
) -> Iterator[Shortcut]:
    values, value = np.unique(np.array(texts), return_inverse=True)
    table = _table(value, labels, patients)
    weights = np.zeros((len(values), max(labels) + 1))
    np.add.at(weights, (table.value, table.label), table.weight)
    total = weights.sum()
    told = {
        label: _accuracy(table, label, len(values))
        for label, patients_of in enumerate(weights.sum(axis=0))
        if LEAST_PATIENTS <= patients_of <= total - LEAST_PATIENTS
    }
    # Of two classes both are told alike; the second is the one that is looked for.
    label = max(told, key=lambda found: (round(told[found], 6), found), default=-1)
    if label < 0 or told[label] < LEAST_ACCURACY:
        return
    if told[label] > _by_chance(table, label, len(values)):
        of = weights.sum(axis=1)
        shares = {
            str(text): (float(weights[i, label] / of[i]), round(float(of[i])))
            for i, text in enumerate(values)
        }
        yield Shortcut(name, label, told[label], shares)


def _table(value: NDArray[np.int64], labels: Sequence[int], patients: Sequence[str]) -> _Table:
    """Return each combination once, weighted so that a patient counts as one."""
    _, patient = np.unique(np.array(patients), return_inverse=True)
    found = np.unique(np.stack([patient, value, np.array(labels)]), axis=1)
    weight = 1 / np.bincount(found[0])[found[0]]
    dealt = np.random.default_rng(stream(0, "folds")).permutation(patient.max() + 1) % FOLDS
    return _Table(found[1], found[2], weight, dealt[found[0]])


def _accuracy(table: _Table, label: int, values: int) -> float:
    """Return the balanced accuracy of the rule for a class, on patients not used to make it."""
    counts = np.zeros((FOLDS, values, 2))
    np.add.at(counts, (table.fold, table.value, (table.label == label).astype(int)), table.weight)
    made_of = counts.sum(axis=0) - counts
    share = made_of / np.maximum(made_of.sum(axis=1, keepdims=True), 1e-12)
    says = share[..., 1] > share[..., 0]
    right = (counts[..., 1] * says).sum(), (counts[..., 0] * ~says).sum()
    of = counts.sum(axis=(0, 1))
    return float((right[0] / of[1] + right[1] / of[0]) / 2)


def _by_chance(table: _Table, label: int, values: int) -> float:
    """Return the best that the same rule reaches on shuffled labels."""
    rng = np.random.default_rng(stream(0, "shuffles"))
    return max(
        _accuracy(table._replace(label=rng.permutation(table.label)), label, values)
        for _ in range(SHUFFLES)
    )
