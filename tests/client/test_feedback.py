"""Laws of ``client/feedback``: whose opinions are taken, what is kept, what is never lost."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.config import SiteConfig, site_key
from client.feedback import (
    Feedback,
    Known,
    case_id,
    file_of,
    kept,
    known_cases,
    merge,
    newest,
    read_feedback,
)
from client.prepared import deal
from common.errors import DataError, MissingFolderError, StudyMismatchError
from common.study import Study

MODEL = "a" * 64
TIME = "2026-01-02T03:04:05.678Z"


@pytest.fixture
def site(
    make_hospital: Callable[..., SiteConfig], make_study: Callable[..., Study]
) -> tuple[SiteConfig, Study, dict[str, Known]]:
    """Return a hospital, a study, and the cases that a report may show."""
    config, study = make_hospital(), make_study()
    return config, study, known_cases(config, study)


Site = tuple[SiteConfig, Study, dict[str, Known]]


def opinion(case: str, /, **said: Any) -> dict[str, Any]:
    given = {"case": case, "task": "ct", "opinion": "agree", "label": "", "note": "", "time": TIME}
    return {**given, **said}


def written(folder: Path, site: Site, cases: list[Any], /, **head: Any) -> Path:
    config, study, _ = site
    values = {
        "format": "rarefed-feedback-1",
        "study": study.digest(),
        "model": MODEL,
        "site": config.name,
        "cases": cases,
    }
    file = folder / "feedback.json"
    file.write_text(json.dumps({**values, **head}))
    return file


def read(file: Path, site: Site) -> Feedback:
    config, study, known = site
    return read_feedback(file, study, site=config.name, model=MODEL, known=known)


def test_a_case_is_a_test_row_under_a_keyed_hash(site: Site) -> None:
    """Every test row has a name of its own; it tells no file and needs the key."""
    config, study, known = site
    rows = deal(study, config)["ct"].rows["test"]
    assert [known[case].row for case in known] == rows
    assert all(len(case) == 32 and set(case) <= set("0123456789abcdef") for case in known)
    folder = config.data["ct"].manifest.parent
    one = rows[0]
    assert known[case_id(site_key(config), "ct", one, folder)].row == one
    assert case_id(b"x" * 32, "ct", one, folder) not in known
    assert case_id(site_key(config), "mr", one, folder) not in known


def test_opinions_go_there_and_back(site: Site, tmp_path: Path) -> None:
    """What was saved is what is kept; the file is the owner's alone."""
    config, study, known = site
    case = next(iter(known))
    label = study.tasks["ct"].classes[0]
    given = opinion(case, opinion="disagree", label=label, note="no spleen <b> é")
    file = file_of(config, study)
    assert merge(file, study, read(written(tmp_path, site, [given]), site)) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = newest(kept(file, study), MODEL)
    assert found[case].model_dump() == {**given, "model": MODEL}
    assert newest(kept(file, study), "b" * 64) == {}


def test_the_newest_counts_and_nothing_is_lost(site: Site, tmp_path: Path) -> None:
    """Files may come in any order and more than once: what is kept is their union."""
    _, study, known = site
    one, two = list(known)[:2]
    early = written(tmp_path, site, [opinion(one, note="early"), opinion(two)])
    first = read(early, site)
    later = opinion(one, opinion="unsure", note="later", time="2026-02-02T03:04:05.678Z")
    second = read(written(tmp_path, site, [later]), site)
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    assert [merge(there, study, f) for f in (first, second, first)] == [2, 1, 0]
    assert [merge(back, study, f) for f in (second, first)] == [1, 2]
    assert there.read_bytes() == back.read_bytes()
    assert newest(kept(there, study), MODEL)[one].note == "later"
    assert [o.note for o in kept(there, study) if o.case == one] == ["early", "later"]
    assert two in newest(kept(there, study), MODEL)


@pytest.mark.parametrize("what", ["study", "model", "site"])
def test_feedback_on_something_else_is_refused(site: Site, tmp_path: Path, what: str) -> None:
    """A file of another study, network or site says so, and no fault of its cases."""
    file = written(tmp_path, site, [{"nonsense": 1}], **{what: "c" * 64})
    with pytest.raises(StudyMismatchError, match=f"another {what}"):
        read(file, site)


def test_all_faults_are_listed_at_once(site: Site, tmp_path: Path) -> None:
    """Unknown cases, tasks, labels and times of the future are named together by their place."""
    case = next(iter(site[2]))
    faulty = [
        opinion("0" * 32),
        opinion(case, task="mr"),
        opinion(case, label="nobody"),
        opinion(case, time="9999-01-02T03:04:05.678Z"),
    ]
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, site, faulty), site)
    text = str(caught.value)
    assert all(
        where in text for where in ("4 faults", "cases.0.case", "cases.1.case", "cases.2.label",
                                    "cases.3.time")
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"opinion": "perhaps"},
        {"time": "yesterday"},
        {"time": "2026-99-02T03:04:05.678Z"},
        {"note": "x" * 2001},
        {"case": "short"},
        {"more": 1},
        {"note": 3},
        {"note": "\ud800"},
    ],
)
def test_a_malformed_opinion_is_refused(site: Site, tmp_path: Path, wrong: dict[str, Any]) -> None:
    """What is no opinion is a fault with an exit code, never a crash, and nothing is kept."""
    file = written(tmp_path, site, [opinion(next(iter(site[2])), **wrong)])
    with pytest.raises(DataError, match="fault"):
        read(file, site)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"1e999", b"{}"])
def test_what_is_no_feedback_is_refused(site: Site, tmp_path: Path, content: bytes) -> None:
    """Any bytes at all are refused by an error of the tree."""
    file = tmp_path / "feedback.json"
    file.write_bytes(content)
    with pytest.raises(DataError):
        read(file, site)


def test_a_missing_file_is_named(site: Site, tmp_path: Path) -> None:
    """A file that is not there has its own error."""
    with pytest.raises(MissingFolderError):
        read(tmp_path / "none.json", site)


def test_damaged_opinions_are_not_written_over(site: Site, tmp_path: Path) -> None:
    """Where what is kept cannot be read, it stays for someone to repair."""
    _, study, known = site
    file = tmp_path / "kept.json"
    file.write_text('{"format": "rarefed-feedback-kept-1"')
    given = read(written(tmp_path, site, [opinion(next(iter(known)))]), site)
    with pytest.raises(DataError):
        merge(file, study, given)
    assert file.read_text() == '{"format": "rarefed-feedback-kept-1"'
