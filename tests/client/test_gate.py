"""Laws of the gate: what is left out, what is accepted, what stops a site."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.burned_in import LEAST_SIGNS
from client.config import SiteConfig
from client.findings import CODES
from client.gate import Terms, Verdict, judge, log_verdict, terms_of
from client.looks import Look
from client.manifest import Manifest, Row
from client.pictures import Facts
from client.prepared import deal
from client.reading_pass import RowRead
from common.errors import DataError, ImageError
from common.study import Study, Task

TASK = Task(modality="CT", classes=["healthy", "ill"])
FACTS = Facts(kind="DICOM", rows=512, columns=512, low=-1000.0, high=900.0)
RNG = np.random.default_rng(0)


def look(**changes: Any) -> Look:
    """Return the look of a good image, unlike all others."""
    facts = FACTS._replace(**{k: v for k, v in changes.items() if k in Facts._fields})
    made = Look(
        facts, ("",), RNG.bytes(8).hex(), RNG.bytes(32).hex(), 0, dark=0.3, bright=0.01, mean=0.2
    )
    return made._replace(**{k: v for k, v in changes.items() if k in Look._fields})


def read_of(line: int, patient: str = "", *, label: int = 0, **changes: Any) -> RowRead:
    """Return a row that was read well; each line is its own patient unless one is named."""
    patient = patient or f"patient-{line}"
    own = {k: changes.pop(k) for k in ("sex", "laterality", "scanner", "site") if k in changes}
    unit = changes.pop("unit", patient)
    row = Row(line, Path(f"/data/{line}.dcm"), label, patient, unit, **own)
    seen = look(**changes)
    return RowRead(row, content=RNG.bytes(32).hex(), look=seen)


def unread(line: int, error: str = "it is of no known kind", code: str = "image") -> RowRead:
    row = read_of(line).row
    return RowRead(row, f"{row.path}: {error}.", code)


def judged(
    train: Sequence[RowRead],
    validation: Sequence[RowRead] = (),
    test: Sequence[RowRead] = (),
    *,
    task: Task = TASK,
    **terms: Any,
) -> Verdict:
    asked = Terms(**{"max_unreadable": 1.0, "minimum_patients": 0} | terms)
    return judge({"train": train, "validation": validation, "test": test}, task, asked)


def codes(verdict: Verdict) -> dict[str, tuple[int, ...]]:
    return {finding.code: finding.rows for finding in verdict.findings}


def copy_of(read: RowRead, line: int, patient: str = "", **changes: Any) -> RowRead:
    """Return another row of the same bytes."""
    row = replace(
        read.row, line=line, patient=patient or read.row.patient, unit=patient or read.row.unit
    )
    return read._replace(row=replace(row, **changes))


def alike(read: RowRead, line: int, patient: str = "", bits: int = 3) -> RowRead:
    """Return a row whose image looks like another's."""
    assert read.look is not None
    near = f"{int(read.look.phash, 16) ^ ((1 << bits) - 1):016x}"
    found = copy_of(read, line, patient)._replace(content=RNG.bytes(32).hex())
    return found._replace(look=read.look._replace(phash=near))


def test_good_rows_pass() -> None:
    """Without anything odd there is no finding, and nothing is left out."""
    verdict = judged([read_of(line, label=line % 2) for line in range(2, 40)])
    assert verdict == Verdict((), {}, None)


A, B = read_of(2, "a"), read_of(3, "b")
CASES: list[tuple[str, Callable[[], Verdict], tuple[int, ...]]] = [
    ("unreadable", lambda: judged([A, unread(5)]), (5,)),
    ("set_aside", lambda: judged([A, unread(5, "it is a report", "set_aside")]), (5,)),
    ("constant", lambda: judged([A, unread(5, "every pixel has the same value")]), (5,)),
    ("duplicate_across_splits", lambda: judged([A], [copy_of(A, 9, "b")]), (2, 9)),
    ("duplicate_across_patients", lambda: judged([A, copy_of(A, 9, "b")]), (2, 9)),
    ("labels_differ", lambda: judged([A, copy_of(A, 9, label=1)]), (2, 9)),
    ("patient_in_two_splits", lambda: judged([A, B], held_elsewhere=frozenset("b")), (3,)),
    ("near_duplicate_across_splits", lambda: judged([A], [alike(A, 9, "b")]), (2, 9)),
    ("near_duplicate_across_patients", lambda: judged([A, alike(A, 9, "b")]), (2, 9)),
    ("class_below_minimum", lambda: judged([A, B], minimum_patients=2), ()),
    ("burned_in_flag", lambda: judged([A, read_of(5, burned_in="YES")]), (5,)),
    ("burned_in_text", lambda: judged([A, read_of(5, signs=LEAST_SIGNS)]), (5,)),
    ("sideways", lambda: judged([A, read_of(5, orientation="sideways")]), (5,)),
    ("mirrored", lambda: judged([A, read_of(5, orientation="mirrored")]), (5,)),
    ("upside_down", lambda: judged([A, read_of(5, orientation="upside_down")]), (5,)),
    ("clipped", lambda: judged([A, read_of(5, bright=0.3), read_of(6, dark=0.99)]), (5, 6)),
    (
        "implausible_hounsfield",
        lambda: judged([A, read_of(5, low=0.0), read_of(6, high=50.0), read_of(7, high=4e4)]),
        (5, 6, 7),
    ),
    (
        "header_differs",
        lambda: judged([read_of(5, sex="F"), read_of(6, laterality="L")]),
        (),
    ),
    ("folder_objects", lambda: judged([A, read_of(5, notes=("set_aside",))]), (5,)),
    ("folder_copies", lambda: judged([A, read_of(5, notes=("copies",))]), (5,)),
    ("odd_column", lambda: judged([A], notes=("the column 'lable' is ignored",)), ()),
    ("duplicate", lambda: judged([A, copy_of(A, 9)]), (2, 9)),
    ("near_duplicate", lambda: judged([A, alike(A, 9)]), (2, 9)),
    ("label_empty", lambda: judged([A], unlabelled=3), ()),
    ("each_image", lambda: judged([A], each_image=True), ()),
    *[
        (note, lambda note=note: judged([A, read_of(5, notes=(note,), slices=9)]), (5,))
        for note in (
            "gaps", "mixed_spacing", "tilted", "no_orientation", "narrow_range", "other_unit",
            "several_windows", "constant_slices", "no_positions",
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("code", "case", "rows"), CASES, ids=[case[0] for case in CASES])
def test_each_code_has_its_case(
    code: str, case: Callable[[], Verdict], rows: tuple[int, ...]
) -> None:
    """What is odd is found, at its rows, alone; only errors leave rows out."""
    if code == "header_differs":
        seen = judged([read_of(5, sex="F")._replace(look=look(sex="M")), read_of(6, sex="F")])
        rows = (5,)
    else:
        seen = case()
    assert codes(seen)[code] == rows
    left_out = rows if CODES[code].severity == "error" else ()
    assert tuple(sorted(seen.left_out)) == left_out
    assert set(codes(seen)) - {"class_below_minimum"} <= {code}


def test_every_code_has_a_case() -> None:
    """The table above has each code of the software; a shortcut has a test of its own."""
    assert {case[0] for case in CASES} | {"shortcut"} == set(CODES)


def test_a_scanner_that_tells_the_label_is_a_shortcut() -> None:
    """By the manifest or by the header, and the rows of the telling values are named."""
    rows = [read_of(n, label=n % 2, scanner=f"camera {n % 2}") for n in range(2, 42)]
    (finding,) = judged(rows).findings
    assert (finding.code, len(finding.rows)) == ("shortcut", 40)
    assert {len(group) for group in finding.groups} == {20}
    assert "scanner alone tells ill with a balanced accuracy of 1.00" in finding.what
    sizes = [read_of(n, label=n % 2, rows=512 + n % 2) for n in range(2, 42)]
    assert [f.what.split(" alone")[0] for f in judged(sizes).findings] == ["The image size"]
    mixed = [read_of(n, label=n % 2, scanner=f"camera {n % 3}") for n in range(2, 80)]
    assert judged(mixed).findings == ()


def test_another_file_around_the_same_pixels_is_a_copy() -> None:
    """An image that was exported again, with another header or encoding, is still the same."""
    again = copy_of(A, 9, "b")._replace(content=RNG.bytes(32).hex())
    assert set(codes(judged([A, again]))) == {"duplicate_across_patients"}
    assert A.look is not None
    other = again._replace(look=A.look._replace(mean=A.look.mean + 1e-6))
    assert set(codes(judged([A, other]))) == {"near_duplicate_across_patients"}


def test_patients_of_one_group_may_share_an_image() -> None:
    """The hospital knows that they belong together; they are in one split."""
    first = read_of(2, "a", unit="group")
    verdict = judged([first, copy_of(first, 9, "b", unit="group")])
    assert set(codes(verdict)) == {"duplicate"}


def test_other_slices_of_one_file_are_other_images() -> None:
    """Rows that name different slices of a volume are no copies of one another."""
    row = replace(A.row, slices=(3,))
    other = read_of(9, "a")
    verdict = judged(
        [
            A._replace(row=row),
            other._replace(content=A.content, row=replace(other.row, slices=(4,))),
        ]
    )
    assert verdict.findings == ()


def test_a_volume_counts_by_its_notes_on_png_too() -> None:
    """Hounsfield units are asked of CT in DICOM and NIfTI alone."""
    grey = read_of(5, kind="PNG", low=0.0, high=1.0)
    assert judged([grey]).findings == ()
    other = Task(modality="MR", classes=["healthy", "ill"])
    assert judged([read_of(5, low=0.0, high=4e4)], task=other).findings == ()


def test_accepting_keeps_rows_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Accepted copies are trained on; accepted files that cannot be read still are not."""
    rows = [A, copy_of(A, 9, "b"), unread(5)]
    plain = judged(rows, max_unreadable=0.0)
    assert set(plain.left_out) == {2, 5, 9}
    assert isinstance(plain.refusal, DataError)
    accept = frozenset({"duplicate_across_patients", "unreadable"})
    accepted = judged(rows, max_unreadable=0.0, accept=accept)
    assert accepted.left_out == {5: "unreadable"}
    assert accepted.refusal is None
    assert all(finding.accepted for finding in accepted.findings)
    with caplog.at_level(logging.WARNING):
        log_verdict(accepted, rows, logging.getLogger("gate"))
    assert "accepted: duplicate_across_patients, 2 rows" in caplog.text
    assert "left out: line 5: /data/5.dcm" in caplog.text


def test_the_tolerance_is_a_share_of_rows() -> None:
    """Two rows in a hundred are within 2 %, three are not; a row with two errors is one."""
    good = [read_of(line) for line in range(100, 198)]
    assert judged([*good, unread(2), unread(3)], max_unreadable=0.02).refusal is None
    refusal = judged([*good[:97], unread(2), unread(3), unread(4)], max_unreadable=0.02).refusal
    assert isinstance(refusal, ImageError)
    assert "3 of 100 images cannot be read" in refusal.message
    twice = [copy_of(A, 9, "b", label=1), A]
    assert judged([*good, *twice], max_unreadable=0.02).refusal is None
    more = judged([*good[:97], *twice, unread(5)], max_unreadable=0.02).refusal
    assert type(more) is DataError
    assert "3 of 100 rows have errors" in more.message
    for line in (2, 5, 9):
        assert f"line {line}: /data/" in more.message
    assert "patient-" not in more.message


def test_the_reason_names_no_file() -> None:
    """What a finding says of a line has no path, of a slice within a folder neither."""
    row = read_of(5).row
    error = f"{row.path}: of its slices, {row.path}/DOE_JANE/1.dcm: cannot be decoded."
    (finding, *_) = judged([A, RowRead(row, error, "image")]).findings
    assert finding.why == {5: "of its slices, the file: cannot be decoded."}


def test_the_severest_reason_counts() -> None:
    """Where a row has several errors, it is left out for the first in the table."""
    assert judged([A], [copy_of(A, 9, "b", label=1)]).left_out == dict.fromkeys(
        (2, 9), "duplicate_across_splits"
    )


def test_left_out_rows_are_not_counted_again() -> None:
    """Patients of a class are those that are kept."""
    rows = [A, B, unread(5)]
    (_, finding) = judged(rows, minimum_patients=3).findings
    assert finding.code == "class_below_minimum"
    assert "healthy in train: 2" in finding.what
    assert "ill in test: 0" in finding.what


def test_an_unknown_code_is_refused(make_hospital: Callable[..., SiteConfig]) -> None:
    """A slip in accept would accept nothing, so it is told."""
    config = make_hospital()
    files = config.data["ct"].model_copy(update={"accept": ["near_duplicates"]})
    config = config.model_copy(update={"data": {"ct": files}})
    with pytest.raises(DataError, match="near_duplicates") as refusal:
        terms_of(config, "ct", Manifest([]))
    assert "near_duplicate?" in refusal.value.remedy


def test_who_is_held_out_in_another_task_is_known(
    make_hospital: Callable[..., SiteConfig], make_study: Callable[..., Study]
) -> None:
    """A patient in training here and in test there is found before an image is read."""
    config = make_hospital(tasks=("ct", "mr"))
    table = config.data["mr"].manifest
    table.write_text(table.read_text().replace("PATIENT-mr-7", "PATIENT-ct-0"))
    dealt = deal(make_study(("ct", "mr")), config)
    shared = {row.patient for row in dealt["ct"].rows["train"]} & dealt["ct"].terms.held_elsewhere
    assert len(shared) == 1
    assert not dealt["mr"].terms.held_elsewhere & {row.patient for row in dealt["mr"].rows["train"]}
