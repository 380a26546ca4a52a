"""Laws of dealing patients into train, validation and test."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from client.manifest import Row
from client.split import SPLITS, assign, split_rows
from common.errors import SplitError

KEY = bytes(range(32))
UNITS = [f"{index:032x}" for index in range(2000)]


def make_row(line: int, patient: str, unit: str, fixed: str | None = None) -> Row:
    return Row(line, Path(f"/{line}.png"), 0, patient, unit, None, fixed)


def deal(rows: list[Row], key: bytes = KEY) -> dict[str, list[Row]]:
    return split_rows(rows, key=key, validation=0.2, test=0.3)


pairs = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("12345678")), max_size=30)
fixes = st.lists(st.sampled_from([None, None, None, *SPLITS]), min_size=30, max_size=30)


def test_shares_are_those_of_the_study() -> None:
    """Over 2,000 units each share lies within the binomial distribution's 99.99 % interval."""
    dealt = [assign(unit, key=KEY, validation=0.15, test=0.25) for unit in UNITS]
    for split, share in (("train", 0.6), ("validation", 0.15), ("test", 0.25)):
        low, high = binom.interval(0.9999, len(UNITS), share)
        assert low <= dealt.count(split) <= high


def test_a_share_of_zero_is_empty() -> None:
    """With no validation and no test share, every unit trains."""
    assert {assign(unit, key=KEY, validation=0, test=0) for unit in UNITS} == {"train"}


def test_a_larger_test_share_keeps_its_patients() -> None:
    """Raising a share only adds to the test split: nobody who was held out begins to train."""
    for unit in UNITS:
        if assign(unit, key=KEY, validation=0.1, test=0.2) == "test":
            assert assign(unit, key=KEY, validation=0.1, test=0.3) == "test"


def test_another_key_deals_another_way() -> None:
    """Two keys agree on no more units than chance does: 0.5² + 0.2² + 0.3² = 0.38 of them."""
    one, two = (
        [assign(unit, key=key, validation=0.2, test=0.3) for unit in UNITS]
        for key in (KEY, bytes(32))
    )
    agreed = sum(a == b for a, b in zip(one, two, strict=True))
    assert agreed <= binom.ppf(0.9999, len(UNITS), 0.38)


@given(pairs, st.randoms(use_true_random=False))
def test_every_row_is_dealt_once_in_any_order(pairs: list[tuple[str, str]], random: object) -> None:
    """The splits hold each row once, in the table's order, and do not depend on that order."""
    rows = [make_row(line, patient, unit) for line, (patient, unit) in enumerate(pairs)]
    dealt = deal(rows)
    assert tuple(dealt) == SPLITS
    assert sorted(row.line for part in dealt.values() for row in part) == list(range(len(rows)))
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = deal(shuffled)
    for split in SPLITS:
        assert dealt[split] == [row for row in rows if row in again[split]]


@given(pairs, fixes)
def test_no_patient_and_no_unit_straddles(
    pairs: list[tuple[str, str]], fixes: list[str | None]
) -> None:
    """No patient and no unit is in two splits and fixed rows are where they must, or all fails."""
    rows = [
        make_row(line, patient, unit, fixed)
        for line, ((patient, unit), fixed) in enumerate(zip(pairs, fixes, strict=False))
    ]
    try:
        dealt = deal(rows)
    except SplitError:
        assert len({row.fixed_split for row in rows} - {None}) > 1
        return
    where = {row.line: split for split, part in dealt.items() for row in part}
    for row in rows:
        assert row.fixed_split in (None, where[row.line])
        for other in rows:
            if row.patient == other.patient or row.unit == other.unit:
                assert where[row.line] == where[other.line]


@given(pairs.filter(bool))
def test_new_patients_move_nobody(pairs: list[tuple[str, str]]) -> None:
    """Adding patients who share no group with the others leaves the others' splits as they are."""
    rows = [make_row(line, patient, unit) for line, (patient, unit) in enumerate(pairs)]
    new = [make_row(100 + index, f"new{index}", f"0new{index}") for index in range(5)]
    before, after = deal(rows), deal([*new, *rows])
    for split in SPLITS:
        assert before[split] == [row for row in after[split] if row.line < 100]


def test_one_patient_in_two_tasks_has_one_split() -> None:
    """Two tables that share patients deal them alike: the task is not in the hash."""
    one = deal([make_row(line, unit, unit) for line, unit in enumerate(UNITS[:100])])
    two = deal([make_row(line, unit, unit) for line, unit in enumerate(UNITS[50:150])])
    for split in SPLITS:
        shared = set(UNITS[50:100])
        assert {row.unit for row in one[split]} & shared == {
            row.unit for row in two[split]
        } & shared


def test_one_fixed_row_takes_its_patient_along() -> None:
    """A row that the hospital put into a split takes all rows tied to it by patient or group."""
    for split in SPLITS:
        rows = [make_row(2, "a", "1"), make_row(3, "a", "2", split), make_row(4, "b", "2")]
        assert deal(rows)[split] == rows


def test_contradictions_are_listed_together() -> None:
    """All lines that put one patient or group into two splits come in one error."""
    rows = [
        make_row(2, "a", "1", "train"), make_row(3, "a", "1", "test"), make_row(4, "a", "1"),
        make_row(5, "b", "2", "test"), make_row(6, "c", "2", "validation"),
        make_row(7, "d", "2", "test"), make_row(8, "e", "3", "test"),
    ]  # fmt: skip
    with pytest.raises(SplitError) as refusal:
        deal(rows)
    assert "train in line 2 but test in line 3" in refusal.value.message
    assert "test in line 5, 7 but validation in line 6" in refusal.value.message
    assert "8" not in refusal.value.message
    assert refusal.value.remedy
