"""Laws of a manifest's columns and of what their cells say."""

import calendar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.manifest_columns import OPTIONAL, Details, age_band, column_notes, details_of


def value(column: str, text: str) -> Any:
    details, faults = details_of({column: text})
    assert faults == []
    return getattr(details, column)


def is_refused(column: str, text: str) -> bool:
    details, faults = details_of({column: text})
    return details == Details() and [name for name, _ in faults] == [column]


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        ("laterality", "L", "L"),
        ("laterality", "right", "R"),
        ("laterality", "OD", "R"),
        ("laterality", "os", "L"),
        ("date", "2024-01-31", "2024-01-31"),
        ("date", "20240131", "2024-01-31"),
        ("date", "2024-02-29 08:15:00.000", "2024-02-29"),
        ("date", "2024-02-29T08:15:00+01:00", "2024-02-29"),
        ("scanner", "ACME Scan 1", "ACME Scan 1"),
        ("scanner", "x" * 100, "x" * 64),
        ("site", "St Mary", "St Mary"),
        ("source", "IDRiD", "IDRiD"),
        ("box", "10,20,300,200", (10, 20, 300, 200)),
        ("box", "0 0 1 1", (0, 0, 1, 1)),
        ("age", "45", "40-49"),
        ("age", "45.0", "40-49"),
        ("age", "045Y", "40-49"),
        ("age", "0", "0-9"),
        ("age", "109", "100-109"),
        ("age", "40-49", "40-49"),
        ("age", "100-109", "100-109"),
        ("age", "0-9", "0-9"),
        ("sex", "f", "F"),
        ("sex", "Male", "M"),
        ("sex", "O", "O"),
        ("slices", "3 7 12", (3, 7, 12)),
        ("slices", "12; 7,3", (12, 7, 3)),
        ("slices", "1", (1,)),
    ],
)
def test_a_cell_says_what_it_says(column: str, text: str, expected: Any) -> None:
    """Each way of writing a value gives the one value."""
    assert value(column, text) == expected


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("laterality", "B"),
        ("laterality", "OU"),
        ("date", "31.01.2024"),
        ("date", "2024-02-30"),
        ("date", "2024-0131"),
        ("date", "2024"),
        ("date", "2024-13-01"),
        ("date", "٢٠٢٤٠١٣١"),
        ("box", "1,2,3"),
        ("box", "1,2,3,4,5"),
        ("box", "1,2,0,4"),
        ("box", "-1,2,3,4"),
        ("box", "1.5,2,3,4"),
        ("box", "1,2,3,9999999"),
        ("age", "old"),
        ("age", "150"),
        ("age", "-3"),
        ("age", "018M"),
        ("age", "40-50"),
        ("age", "41-49"),
        ("age", "00-09"),
        ("sex", "X"),
        ("slices", "0"),
        ("slices", "3 3"),
        ("slices", "3-7"),
        ("slices", ","),
    ],
)
def test_a_cell_that_says_nothing_known_is_refused(column: str, text: str) -> None:
    """A value of no known form is a fault of its column, and gives no value."""
    assert is_refused(column, text)


@given(st.dictionaries(st.sampled_from(OPTIONAL), st.text(max_size=20)))
def test_no_cell_is_too_odd(cells: dict[str, str]) -> None:
    """Whatever stands in the cells, each is a value or a fault, and no fault quotes a cell."""
    details, faults = details_of(cells)
    for column, what in faults:
        assert getattr(details, column) == getattr(Details(), column)
        assert len(cells[column]) < 8 or cells[column] not in what


@given(st.integers(0, 149))
def test_a_band_holds_its_age(years: int) -> None:
    """The band of an age begins with a ten, ends nine years later, and has the age in it."""
    low, high = map(int, age_band(years).split("-"))
    assert low % 10 == 0
    assert low <= years <= high == low + 9
    assert value("age", age_band(years)) == age_band(years) == value("age", str(years))


@given(st.dates())
def test_every_day_of_the_calendar_is_a_date(day: Any) -> None:
    """A date is the same in both forms; a day after the month's last is none."""
    iso = day.isoformat()
    assert value("date", iso) == value("date", iso.replace("-", "")) == iso
    last = calendar.monthrange(day.year, day.month)[1]
    assert is_refused("date", f"{iso[:8]}{last + 1:02d}")


def test_a_slip_in_a_columns_name_is_pointed_out() -> None:
    """A column that nearly bears the name of one that is not there is named, others are not."""
    columns = ["path", "label", "patient_id", "Splits", "GROUP", "bbox", "page", "dr_grade", ""]
    notes = " ".join(column_notes(columns))
    for like, meant in (("Splits", "split"), ("GROUP", "group"), ("bbox", "box"), ("page", "age")):
        assert f"{like!r} is ignored; is it meant to be {meant!r}?" in notes
    assert "dr_grade" not in notes
    assert column_notes(["path", "label", "patient_id", "split", "splits", "image", "stage"]) == ()
    assert "'PatientID'" in column_notes(["path", "label", "PatientID"])[0]
