"""Train, validation and test, dealt by patient.

A keyed hash decides, so nothing is stored, no one without the site's key can tell where a
patient is, and patients who come later leave the others where they are.
"""

import hmac
from collections import defaultdict
from collections.abc import Sequence

from client.manifest import FIXED_SPLITS, Row
from common.errors import SplitError

SPLITS = FIXED_SPLITS


def assign(unit: str, *, key: bytes, validation: float, test: float) -> str:
    """Return the split of one unit.

    The task is not in the hash: a patient with images in two tasks is in one split.

    Args:
        unit: Keyed hash of what may not be divided.
        key: The site's key.
        validation: Share of the units for validation, in [0, 1).
        test: Share of the units for testing, in [0, 1); both together below 1.
    """
    digest = hmac.digest(key, b"split\0" + unit.encode(), "sha256")
    # 53 bits are what a float holds exactly; with more, the fraction could round up to 1.
    fraction = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    if fraction < test:
        return "test"
    return "validation" if fraction < test + validation else "train"


def split_rows(
    rows: Sequence[Row], *, key: bytes, validation: float, test: float
) -> dict[str, list[Row]]:
    """Deal rows so that no patient and no unit is in two splits.

    Units that share a patient are dealt together, by the smallest hash among them. One row that
    the hospital put into a split takes all rows of its patient and unit with it.

    Args:
        rows: The manifest's rows.
        key: The site's key.
        validation: Share of the units for validation, in [0, 1).
        test: Share of the units for testing, in [0, 1); both together below 1.

    Returns:
        The rows of each split of ``SPLITS``, in the manifest's order.

    Raises:
        SplitError: The ``split`` column puts one patient or unit into two splits; all such
            lines are listed.
    """
    roots = _roots(rows)
    fixed: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.fixed_split is not None:
            fixed[roots[row.unit]][row.fixed_split].append(row.line)
    _refuse_contradictions(list(fixed.values()))
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        root = roots[row.unit]
        dealt = next(iter(fixed[root]), None) if root in fixed else None
        splits[dealt or assign(root, key=key, validation=validation, test=test)].append(row)
    return splits


def _roots(rows: Sequence[Row]) -> dict[str, str]:
    """Return, for each unit, the smallest of the units that patients tie to it (union-find)."""
    parent = {row.unit: row.unit for row in rows}

    def root(unit: str) -> str:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    unit_of: dict[str, str] = {}
    for row in rows:
        one, other = root(row.unit), root(unit_of.setdefault(row.patient, row.unit))
        parent[max(one, other)] = min(one, other)
    return {unit: root(unit) for unit in parent}


def _refuse_contradictions(fixed: Sequence[dict[str, list[int]]]) -> None:
    faults = [
        " but ".join(f"{split} in line {_listed(lines)}" for split, lines in by_split.items())
        for by_split in fixed
        if len(by_split) > 1
    ]
    if faults:
        raise SplitError(
            "The column 'split' puts rows of one patient or group into different splits:\n"
            + "\n".join(f"  - {fault}" for fault in faults),
            remedy="Give all rows of a patient and of a group the same split, or leave it empty.",
        )


def _listed(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines))
