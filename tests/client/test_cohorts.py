"""Laws of the cohorts that the ledger names."""

import json
import stat
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.accounting import Mechanism, epsilon
from client.cohorts import (
    among,
    fullest_cases,
    largest_fit,
    load_cohort,
    save_cohort,
    worst_epsilon,
)
from common.errors import ChainError

PATIENTS = {"b" * 32, "a" * 32}


def file_of(state: Path, digest: str) -> Path:
    return state / "cohorts" / f"{digest}.json"


def test_a_cohort_comes_back(tmp_path: Path) -> None:
    """Whatever the order of its patients, it is one file, for its owner alone."""
    digest = save_cohort(tmp_path, PATIENTS)
    assert load_cohort(tmp_path, digest) == PATIENTS
    assert save_cohort(tmp_path, sorted(PATIENTS, reverse=True) * 2) == digest
    (file,) = (tmp_path / "cohorts").iterdir()
    assert json.loads(file.read_text()) == sorted(PATIENTS)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    """It is not written anew; one that is not as it was written is."""
    file = file_of(tmp_path, save_cohort(tmp_path, PATIENTS))
    before = file.stat().st_ino
    save_cohort(tmp_path, PATIENTS)
    assert file.stat().st_ino == before
    file.write_text("[]")
    assert load_cohort(tmp_path, save_cohort(tmp_path, PATIENTS)) == PATIENTS


def test_a_missing_or_changed_cohort_is_told(tmp_path: Path) -> None:
    """With the file and the remedy; a name that is no digest opens no file."""
    digest = save_cohort(tmp_path, PATIENTS)
    file_of(tmp_path, digest).write_text(json.dumps(["a" * 32]))
    with pytest.raises(ChainError, match="not as it was written") as refusal:
        load_cohort(tmp_path, digest)
    assert digest in refusal.value.message
    assert "backup" in refusal.value.remedy
    file_of(tmp_path, digest).unlink()
    with pytest.raises(ChainError, match="missing"):
        load_cohort(tmp_path, digest)
    with pytest.raises(ChainError, match="no digest"):
        load_cohort(tmp_path, "../site")


@given(st.dictionaries(st.sampled_from("abcdef"), st.frozensets(st.sampled_from("123456"))))
def test_every_patient_is_within_a_fullest_case(cohorts: dict[str, frozenset[str]]) -> None:
    """Each case is of some patient, none lies within another, and all patients are covered."""
    cases = fullest_cases(cohorts)
    patients = frozenset[str]().union(*cohorts.values())
    memberships = {frozenset(c for c in cohorts if p in cohorts[c]) for p in patients}
    assert set(cases) <= memberships
    assert all(any(found <= case for case in cases) for found in memberships)
    assert all(not (one <= other or other <= one) for one, other in combinations(cases, 2))


NAMED = {"a": frozenset("12"), "b": frozenset("23"), "c": frozenset("3")}
STEP = Mechanism(2.0, 0.5, 4)


def cost(trainings: int) -> float:
    return epsilon([STEP._replace(steps=4 * trainings)], 1e-2)


def test_the_patient_of_most_trainings_has_spent_most() -> None:
    """Each is charged with the trainings of the cohorts that hold it, and with no others."""
    entered = [("a", STEP), ("b", STEP), ("c", STEP), ("a", STEP)]
    assert worst_epsilon(entered, NAMED, [], 1e-2) == cost(3)  # patient 2: a, b, a
    assert worst_epsilon(entered, among(NAMED, frozenset("1")), [], 1e-2) == cost(2)
    assert worst_epsilon(entered, among(NAMED, frozenset("3")), [STEP], 1e-2) == cost(3)
    assert worst_epsilon(entered, among(NAMED, frozenset("9")), [STEP], 1e-2) == cost(1)
    assert worst_epsilon([], {}, [], 1e-2) == 0.0


@pytest.mark.parametrize(("most", "asked", "found"), [(2.5, 9, 0), (3, 9, 1), (7, 9, 5), (7, 3, 3)])
def test_rounds_fit_until_the_worst_patient_has_spent_all(
    most: float, asked: int, found: int
) -> None:
    """Neither one more nor more than are asked for."""
    entered = [("a", STEP), ("b", STEP)]
    bound = cost(int(most)) if most == int(most) else (cost(2) + cost(3)) / 2
    assert largest_fit(entered, NAMED, STEP, 1e-2, bound, asked) == found
