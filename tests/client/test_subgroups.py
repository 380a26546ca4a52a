"""Laws of figures by subgroup, and of what must not be had from them by subtraction."""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.dataset import Images, Origin
from client.manifest import Row
from client.pictures import Facts
from client.subgroups import SEVERAL, UNKNOWN, hidden_cells, subgroups, values_of_patients
from client.weighted_metrics import Cases

columns = st.lists(st.integers(0, 9), min_size=2, max_size=5)


def origin(patient: str, sex: str = "", scanner: str = "", said: str = "") -> Origin:
    row = Row(2, Path("a.png"), 0, patient, patient, sex=sex, scanner=scanner)
    return Origin(row, "", Facts(scanner=said))


def consistent(column: list[int], hidden: list[bool], minimum: int) -> list[list[int]]:
    """Return all columns that would be told in the same way, by trying every one."""
    places = [i for i, h in enumerate(hidden) if h]
    total, found = sum(column[i] for i in places), []
    for values in product(range(total + 1), repeat=len(places)):
        if sum(values) != total:
            continue
        tried = list(column)
        for place, value in zip(places, values, strict=True):
            tried[place] = value
        if hidden_cells(np.array([tried]).T, minimum)[:, 0].tolist() == hidden:
            found.append([tried[i] for i in places])
    return found


@settings(max_examples=60, deadline=None)
@given(column=columns, minimum=st.integers(2, 5))
def test_no_suppressed_cell_can_be_told(column: list[int], minimum: int) -> None:
    """Even who knows the rule finds several counts for each, and enough patients behind them."""
    hidden = hidden_cells(np.array([column]).T, minimum)[:, 0].tolist()
    for count, h in zip(column, hidden, strict=True):
        assert h or count >= minimum
    if not any(hidden):
        return
    behind = sum(count for count, h in zip(column, hidden, strict=True) if h)
    assert sum(hidden) > 1
    if sum(column) < minimum:
        assert all(hidden)  # the class itself is small, and its subgroups are not told apart
        return
    assert behind >= minimum
    for counts in zip(*consistent(column, hidden, minimum), strict=True):
        assert len(set(counts)) > 1


@settings(max_examples=100, deadline=None)
@given(column=columns, minimum=st.integers(1, 5))
def test_nothing_is_suppressed_without_need(column: list[int], minimum: int) -> None:
    """Where every cell holds enough, and where one patient is enough, all are given."""
    hidden = hidden_cells(np.array([column]).T, minimum)
    if min(column) >= minimum or minimum == 1:
        assert not hidden.any()


def made(cells: list[list[int]], names: list[str]) -> tuple[Cases, list[str]]:
    """Return patients of a table of subgroup by class, of whom all but one in a cell are right."""
    labels, values, said = [], [], []
    for name, row in zip(names, cells, strict=True):
        for label, n in enumerate(row):
            labels += [label] * n
            values += [name] * n
            said += [label] * (n - 1) + [1 - label] * min(n, 1)
    n = len(labels)
    noise = np.random.default_rng(0).normal(size=(n, 2)) / 10
    return Cases(3 * np.eye(2)[said] + noise, np.array(labels), np.arange(n), 1), values


def test_a_table_gives_what_it_may() -> None:
    """A whole subgroup has metrics, a suppressed cell none, and its class's neighbour neither."""
    cases, values = made([[20, 10], [30, 8], [15, 2], [18, 9]], ["A", "B", "C", "D"])
    table = subgroups(cases, {"scanner": values}, minimum=5, seed=1)["scanner"]
    assert [line.value for line in table] == ["A", "B", "C", "D"]
    assert [line.patients for line in table] == [(20, 10), (30, 8), (15, None), (18, None)]
    assert [line.right[0] for line in table] == [19 / 20, 29 / 30, 14 / 15, 17 / 18]
    assert [line.right[1] for line in table] == [9 / 10, 7 / 8, None, None]
    assert [line.metrics is None for line in table] == [False, False, True, True]
    assert table[0].metrics is not None
    assert table[0].metrics["sensitivity"].value == 9 / 10
    assert table[0].metrics["specificity"].value == 19 / 20
    assert table[0].metrics["accuracy"].low is not None


def test_a_column_of_one_value_says_nothing() -> None:
    """Where all patients are alike there is no table."""
    cases, _ = made([[20, 10]], ["F"])
    assert subgroups(cases, {"sex": ["F"] * 30}, minimum=5, seed=1) == {}


def test_a_patient_has_one_value() -> None:
    """Manifest before header, known before unknown; patients whose images differ are apart."""
    origins = (
        origin("b", scanner="X", said="Y"),
        origin("b", said="X"),
        origin("a", sex="F", scanner="X"),
        origin("a", scanner="Z"),
        origin("c", sex="unknown"),
    )
    patients = tuple(each.row.patient for each in origins)
    images = Images(torch.zeros(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64), patients, origins)
    assert values_of_patients(images) == {
        "scanner": [SEVERAL, "X", UNKNOWN],
        "sex": ["F", UNKNOWN, UNKNOWN],
        "age": [UNKNOWN] * 3,
    }
