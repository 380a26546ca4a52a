"""Laws of the sums of where a network looks."""

from typing import Any

import numpy as np
import pytest

from common.attention import COLUMNS, FIGURES, from_arrays, means, merge, to_arrays
from common.errors import ReplyError

TABLE = np.array([[8, 2.0, 1.5], [0, 0, 0], [5, 0.1, 0.5], [6, 6.0, 0.6], [6, 0.3, 0.0]], float)


def changed(row: int, column: int, value: float) -> np.ndarray:
    table = TABLE.copy()
    table[row, column] = value
    return table


def test_names_and_form_are_frozen() -> None:
    """Two releases of one protocol must agree on rows, columns and the array's name."""
    assert FIGURES == ("border", "text", "outside", "pointing", "energy")
    assert COLUMNS == ("patients", "sum", "even")
    assert list(to_arrays(TABLE)) == ["sums"]
    assert np.array_equal(from_arrays(to_arrays(TABLE)), TABLE)


def test_means_are_sums_over_patients() -> None:
    """A figure without patients has none; the others are divided once."""
    found = means(TABLE)
    assert list(found) == ["border", "outside", "pointing", "energy"]
    assert found["border"] == {"mean": 0.25, "even": 0.1875, "patients": 8}
    assert found["pointing"]["mean"] == 1.0


def test_merging_counts_each_patient_once() -> None:
    """The merged mean is that of all patients together, in any order of the sites."""
    rng = np.random.default_rng(0)
    patients = [rng.uniform(0, 1, (n, 2)) for n in (3, 17, 40)]
    tables = []
    for each in patients:
        table = np.zeros((len(FIGURES), len(COLUMNS)))
        table[:] = len(each), *each.sum(axis=0)
        tables.append(table)
    mean, even = np.concatenate(patients).mean(axis=0)
    found = means(merge(tables))["energy"]
    assert found["patients"] == 60
    assert found["mean"] == pytest.approx(mean, rel=1e-12)
    assert found["even"] == pytest.approx(even, rel=1e-12)
    assert np.array_equal(merge(tables), merge(tables[::-1]))


ODD: list[Any] = [
    {}, {"sums": TABLE, "map": TABLE}, {"map": TABLE}, {"sums": TABLE.astype(np.float32)},
    {"sums": TABLE[:4]}, {"sums": TABLE.T}, {"sums": TABLE[None]},
    *({"sums": changed(0, 1, value)} for value in (np.nan, np.inf, -0.1, 8.1)),
    *({"sums": changed(0, 0, value)} for value in (np.nan, -1, 7.5, 1e10)),
    {"sums": changed(1, 1, 0.1)}, {"sums": changed(1, 2, 0.1)}, {"sums": changed(0, 2, 9)},
]  # fmt: skip


@pytest.mark.parametrize("arrays", ODD, ids=range(len(ODD)))
def test_what_no_patients_can_have_is_refused(arrays: Any) -> None:
    """Numbers are finite, patients whole, and no sum is more than its patients."""
    with pytest.raises(ReplyError):
        from_arrays(arrays)
