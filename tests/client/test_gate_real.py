"""The gate finds the traps that the public data sets are known to have."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from client.findings import Finding
from client.gate import Terms, judge
from client.manifest import Row
from client.reading_pass import read_rows
from client.split import split_rows
from common.imaging import Modality
from common.study import Task

LOG = logging.getLogger("gate")


def findings_of(
    folder: Path, modality: Modality, *, grouped: bool = True, every: int = 1
) -> dict[str, Finding]:
    """Read a data set as a hospital would, deal it, and return what the gate finds."""
    with (folder / "labels.csv").open() as file:
        table = list(csv.DictReader(file))[::every]
    classes = sorted({row["label"] for row in table})
    rows = []
    for line, row in enumerate(table, 2):
        unit = row["patient_id"] or row["group"] if grouped else row["path"]
        label = classes.index(row["label"])
        rows.append(Row(line, folder / row["path"], label, unit, unit, site=row["site"]))
    task = Task(modality=modality, classes=classes)
    return _judged(rows, task)


def _judged(rows: Sequence[Row], task: Task) -> dict[str, Finding]:
    dealt = split_rows(rows, key=bytes(32), validation=0.15, test=0.25)
    reads = {
        split: [
            read._replace(pixels=None)
            for read in read_rows(part, task, size=32, cache=None, workers=2, apart=False)
        ]
        for split, part in dealt.items()
    }
    verdict = judge(reads, task, Terms(0.02))
    assert verdict.refusal is None
    return {finding.code: finding for finding in verdict.findings}


def test_ct_without_groups_has_near_duplicates_across_splits(shared: Path) -> None:
    """Neighbouring slices of unknown patients are found when nothing ties them together."""
    found = findings_of(shared / "data" / "ct_iqoth", "CT", grouped=False)
    assert len(found["near_duplicate_across_splits"].rows) > 100


def test_ct_with_groups_has_none_across_splits(shared: Path) -> None:
    """The folder's own groups tie them, so that the gate only notes them."""
    found = findings_of(shared / "data" / "ct_iqoth", "CT")
    assert len(found["near_duplicate"].rows) > 100
    assert not {code for code in found if code.startswith("near_duplicate_across")}


def test_the_camera_tells_macular_oedema(shared: Path) -> None:
    """One camera of the Mexican set is all positive, one all negative, and both are named."""
    found = findings_of(shared / "data" / "fundus_mexico", "fundus")
    shortcut = found["shortcut"]
    assert "The site alone tells no_dme with a balanced accuracy of 0.9" in shortcut.what
    assert set(shortcut.why.values()) == {"site mex-A", "site mex-B"}


def test_the_device_tells_macular_oedema_on_oct(shared: Path) -> None:
    """One of the two devices of the Mexican OCT set has no positive patient."""
    shortcut = findings_of(shared / "data" / "oct_mexico", "OCT")["shortcut"]
    assert set(shortcut.why.values()) == {"site mex-B"}


@pytest.mark.parametrize(
    ("name", "modality"), [("fundus_idrid", "fundus"), ("mri_brain_tumour", "MR")]
)
def test_sets_without_such_traps_are_nearly_silent(
    shared: Path, name: str, modality: Modality
) -> None:
    """No shortcut, no text and no clipping; near-duplicates in at most one row of twenty."""
    every = 4
    found = findings_of(shared / "data" / name, modality, every=every)
    assert set(found) <= {
        "near_duplicate", "near_duplicate_across_splits", "near_duplicate_across_patients",
    }  # fmt: skip
    across = [f for code, f in found.items() if code.startswith("near_duplicate_across")]
    assert sum(len(finding.rows) for finding in across) <= 20
