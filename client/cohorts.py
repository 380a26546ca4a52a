"""Cohorts: which patients, by their keyed hashes, stood in a training, and what they have spent.

What a patient has spent is composed over the trainings that the patient was in, so the ledger
names the cohort of each. A cohort is a file of its own, named by the SHA-256 of its content: most
trainings share one. It stays at the site.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from client.accounting import Mechanism, epsilon
from common.errors import ChainError
from common.files import canonical_json, sync, write_atomic

COHORTS_FOLDER = "cohorts"
_PRIVATE = 0o600


def save_cohort(state: Path, patients: Collection[str]) -> str:
    """Keep a cohort, synced before the return; one that is there already stays.

    Args:
        state: The site's state folder.
        patients: Keyed hashes of the patients, in any order.

    Returns:
        Its digest.

    Raises:
        OSError: It cannot be written.
    """
    content = canonical_json(sorted(set(patients)))
    digest = hashlib.sha256(content).hexdigest()
    file = _file(state, digest)
    if file.is_file() and file.read_bytes() == content:
        sync(file)  # a vault killed before may have written it and not have come to this
        sync(file.parent)
        return digest
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(file, content, mode=_PRIVATE)
    sync(state)  # the folder's own name
    return digest


def load_cohort(state: Path, digest: str) -> frozenset[str]:
    """Return a cohort that the ledger names.

    Raises:
        ChainError: The file is missing or is not what was written.
        OSError: It cannot be read.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ChainError(
            f"The ledger in {state} names a cohort {digest[:80]!r}, which is no digest.",
            remedy="Keep the ledger, find out who changed it, and restore a backup.",
        )
    file = _file(state, digest)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise _damage(file, "is missing") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damage(file, "is not as it was written")
    return frozenset(json.loads(content))


def fullest_cases(cohorts: Mapping[str, frozenset[str]]) -> list[frozenset[str]]:
    """Return which sets of cohorts some patient was in, without those within a larger one.

    Whoever was in more cohorts has spent at least as much, so the patient who has spent most is
    among these few cases.

    Args:
        cohorts: Patients by the cohort's digest.
    """
    memberships: dict[str, set[str]] = {}
    for digest, patients in cohorts.items():
        for patient in patients:
            memberships.setdefault(patient, set()).add(digest)
    cases = sorted({frozenset(found) for found in memberships.values()}, key=len, reverse=True)
    fullest: list[frozenset[str]] = []
    for case in cases:
        if not any(case < larger for larger in fullest):
            fullest.append(case)
    return fullest


def among(
    cohorts: Mapping[str, frozenset[str]], patients: frozenset[str]
) -> dict[str, frozenset[str]]:
    """Return who of some patients was in each cohort."""
    return {digest: found & patients for digest, found in cohorts.items()}


def worst_epsilon(
    entered: Sequence[tuple[str, Mechanism]],
    cohorts: Mapping[str, frozenset[str]],
    more: Sequence[Mechanism],
    delta: float,
) -> float:
    """Return the epsilon of the patient who has spent most.

    Args:
        entered: Each training with privacy: the digest of its cohort, and its steps.
        cohorts: Patients by the cohort's digest.
        more: What every patient is to spend besides.
        delta: In (0, 1).

    Returns:
        As ``client/accounting.py`` counts; that of ``more`` alone when nobody was in a cohort.
    """
    cases = fullest_cases({digest: cohorts[digest] for digest, _ in entered})
    histories = [
        [mechanism for digest, mechanism in entered if digest in case]
        for case in cases or [frozenset[str]()]
    ]
    return max(epsilon([*history, *more], delta) for history in histories)


def largest_fit(
    entered: Sequence[tuple[str, Mechanism]],
    cohorts: Mapping[str, frozenset[str]],
    round_: Mechanism,
    delta: float,
    most: float,
    rounds: int,
) -> int:
    """Return how many of so many rounds can be trained until a patient has spent ``most``.

    Args:
        entered: Each training with privacy: the digest of its cohort, and its steps.
        cohorts: Patients by the cohort's digest.
        round_: The steps of one round more.
        delta: In (0, 1).
        most: The epsilon that may be spent.
        rounds: No more than these are asked for.
    """

    def fits(number: int) -> bool:
        more = round_._replace(steps=number * round_.steps)
        return worst_epsilon(entered, cohorts, [more], delta) <= most

    low, high = 0, 1
    while high <= rounds and fits(high):
        low, high = high, 2 * high
    high = min(high, rounds + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _file(state: Path, digest: str) -> Path:
    return state / COHORTS_FOLDER / f"{digest}.json"


def _damage(file: Path, what: str) -> ChainError:
    return ChainError(
        f"{file} {what}: the ledger cannot say what these patients have spent.",
        remedy="Restore it from a backup; no training begins without it.",
    )
