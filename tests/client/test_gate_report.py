"""Laws of the check and of its report: true to the rows, self-contained, and silent on patients."""

import base64
import io
import json
import logging
import re
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.check import SHOWN_ROWS, Checked, check_site, shown_rows
from client.config import SiteConfig
from client.gate_counts import by_column, by_split
from client.gate_report import LISTED_RANGES, as_json, page_of, ranges, write_report
from client.prepared import prepare
from client.split import SPLITS
from common.errors import DataError, EmptyManifestError, ImageError
from common.study import Study

LOG = logging.getLogger("check")
VOID = {"meta", "img", "br", "link", "input", "hr"}
MakeHospital = Callable[..., SiteConfig]
MakeStudy = Callable[..., Study]


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102 - of the library
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:  # noqa: D102 - of the library
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:  # noqa: D102 - of the library
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture
def hospital(make_hospital: MakeHospital) -> SiteConfig:
    """A hospital with a damaged file, a copy of another patient's image, and a column of sex."""
    config = make_hospital(max_unreadable=1.0)
    folder = config.data["ct"].manifest.parent
    (folder / "images/scan_0_0.png").write_bytes(b"no image")
    (folder / "images/scan_3_0.png").write_bytes((folder / "images/scan_1_0.png").read_bytes())
    lines = config.data["ct"].manifest.read_text().splitlines()
    table = [f"{lines[0]},sex", *[f"{line},{'MF'[i % 2]}" for i, line in enumerate(lines[1:])]]
    config.data["ct"].manifest.write_text("\n".join(table) + "\n")
    return config


@pytest.fixture
def checked(hospital: SiteConfig, make_study: MakeStudy) -> Checked:
    return check_site(make_study(), hospital, log=LOG)


def test_a_check_finds_what_a_study_would_leave_out(
    hospital: SiteConfig, checked: Checked, make_study: MakeStudy
) -> None:
    """Findings and declaration of the check are those of the study that begins afterwards."""
    begun = prepare(make_study(), hospital, begun=None, device=torch.device("cpu"), log=LOG)
    assert begun.declaration == checked.declaration
    assert begun.tasks["ct"].findings == checked.tasks[0].verdict.findings
    assert checked.declaration.unreadable == {"ct": 3}
    assert begun.tasks["ct"].unreadable == 3
    (found,) = checked.tasks
    assert sorted(found.verdict.left_out.values()) == [
        "duplicate_across_patients", "duplicate_across_patients", "unreadable",
    ]  # fmt: skip
    assert checked.refusal is None


def test_all_rows_are_told_of_and_read_once(hospital: SiteConfig, make_study: MakeStudy) -> None:
    """Progress goes from the first row to the last, and pictures are of rows with findings."""
    told: list[tuple[str, int, int]] = []
    checked = check_site(
        make_study(), hospital, log=LOG, workers=2, progress=lambda *done: told.append(done)
    )
    assert told == [("ct", number, 16) for number in range(1, 17)]
    rows = {line for f in checked.tasks[0].verdict.findings for line in f.rows}
    assert set(checked.tasks[0].thumbnails) < rows


def test_too_many_errors_stop_the_site(hospital: SiteConfig, make_study: MakeStudy) -> None:
    """Beyond the tolerance there is a refusal, the same as when a study begins."""
    limits = hospital.limits.model_copy(update={"max_unreadable": 0.1})
    config = hospital.model_copy(update={"limits": limits})
    refusal = check_site(make_study(), config, log=LOG).refusal
    assert type(refusal) is DataError
    assert "3 of 16 rows have errors" in refusal.message
    files = config.data["ct"].model_copy(update={"accept": ["duplicate_across_patients"]})
    config = config.model_copy(update={"data": {"ct": files}})
    assert check_site(make_study(), config, log=LOG).refusal is None


def test_several_refusals_are_told_together(
    make_hospital: MakeHospital, make_study: MakeStudy
) -> None:
    """Each task says what is wrong with it; too few training images are a refusal too."""
    config = make_hospital(tasks=("ct", "mr"), max_unreadable=0.2)
    for image in (config.data["ct"].manifest.parent / "images").iterdir():
        image.write_bytes(b"no image")
    alone = check_site(make_study(), config, log=LOG).refusal
    assert type(alone) is ImageError
    table = config.data["mr"].manifest
    table.write_text(re.sub("train", "test", table.read_text()))
    both = check_site(make_study(("ct", "mr")), config, log=LOG).refusal
    assert type(both) is DataError
    assert "16 of 16 images cannot be read" in both.message
    assert "mr: 0 images are left to train on" in both.message
    only = check_site(make_study(("mr",)), config, log=LOG).refusal
    assert type(only) is EmptyManifestError


def test_the_page_is_valid_and_stands_alone(checked: Checked) -> None:
    """Elements close in order, ids are unique, links stay within, and nothing is fetched."""
    page = Page(page_of(checked))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.seen:
        assert tag not in {"script", "link", "iframe", "object", "form"}
        for name, value in attributes.items():
            if name == "href":
                assert (value or "").removeprefix("#") in ids
            if name == "src":
                assert (value or "").startswith("data:image/jpeg;base64,")
            assert not name.startswith("on")
    policy = next(a["content"] for t, a in page.seen if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "url(" not in page_of(checked)
    assert all(a.get("alt") for tag, a in page.seen if tag == "img")


def test_no_report_names_a_patient_or_a_file(checked: Checked, hospital: SiteConfig) -> None:
    """Neither identifiers, nor their hashes, nor paths stand in the page or the JSON."""
    hashes = [read.row.patient for reads in checked.tasks[0].reads.values() for read in reads]
    for text in (page_of(checked), json.dumps(as_json(checked))):
        for private in ("PATIENT", "scan_", str(hospital.state.parent), *hashes):
            assert private not in text


def test_labels_are_escaped(hospital: SiteConfig, make_study: MakeStudy) -> None:
    """What a table or a study says is text, whatever signs are in it."""
    table = hospital.data["ct"].manifest
    lines = table.read_text().splitlines()
    rows = [f"{lines[0]},scanner", *[f"{line},<script>alert(1)</script>" for line in lines[1:]]]
    table.write_text("\n".join(rows))
    page = Page(page_of(check_site(make_study(), hospital, log=LOG)))
    assert "<script>alert(1)</script>" in page.text
    assert "script" not in [tag for tag, _ in page.seen]


def test_the_counts_are_those_of_the_rows(checked: Checked) -> None:
    """Patients, rows and images by class and split, and by each column that is known."""
    (one,) = checked.tasks
    lines = by_split(one.reads, one.task)
    assert [line.value for line in lines] == ["normal", "gaucher", "all"]
    for split, counted in zip(SPLITS, lines[-1].counts[:3], strict=True):
        reads = one.reads[split]
        assert counted.rows == len(reads)
        assert counted.patients == len({read.row.patient for read in reads})
        assert counted.images == sum(read.look is not None for read in reads)
    columns = by_column(one.reads, one.task)
    assert set(columns) == {"sex", "kind of file", "image size"}
    assert {line.value: line.counts[-1].rows for line in columns["sex"]} == {"F": 8, "M": 7}
    assert as_json(checked)["counts"]["ct"]["sex"]["F"]["all"]["rows"] == 8


def test_the_reports_are_closed_to_others(checked: Checked, tmp_path: Path) -> None:
    """Both files are for their owner alone, and the JSON is what the page was made of."""
    files = tmp_path / "report.json", tmp_path / "check.html"
    write_report(checked, *files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    found = json.loads(files[0].read_text())
    assert found == json.loads(json.dumps(as_json(checked)))
    assert found["joins"] is True
    assert {finding["code"] for finding in found["findings"]["ct"]} >= {"unreadable"}
    assert found["left_out"]["ct"]["2"] == "unreadable"


def test_a_picture_is_the_prepared_image(checked: Checked, hospital: SiteConfig) -> None:
    """A bright image gives a bright picture of the stated size."""
    line, uri = next(iter(checked.tasks[0].thumbnails.items()))
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert picture.size == (144, 144)
    reads = [read for part in checked.tasks[0].reads.values() for read in part]
    (path,) = [read.row.path for read in reads if read.row.line == line]
    assert path.is_relative_to(hospital.data["ct"].manifest.parent)
    assert np.mean(np.asarray(picture)) == pytest.approx(
        np.mean(np.asarray(Image.open(path))), abs=2
    )


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], ""),
        ([2], "2"),
        ([2, 3, 4, 9, 11, 12], "2-4, 9, 11-12"),
        (list(range(2, 2 + 2 * LISTED_RANGES + 6, 2)), "and 3 more"),
    ],
)
def test_lines_are_told_as_ranges(lines: list[int], text: str) -> None:
    """Runs of lines are short, and a long list is cut and says so."""
    found = ranges(lines)
    assert found == text or (text.startswith("and") and found.endswith(text))


def test_rows_of_every_group_are_shown() -> None:
    """At most so many rows; of two large groups half each, of many small ones whole groups."""
    large = [list(range(100)), list(range(100, 200))]
    chosen = shown_rows(range(200), large)
    assert len(chosen) == SHOWN_ROWS
    assert sum(line < 100 for line in chosen) == SHOWN_ROWS // 2
    small = [[i, i + 1] for i in range(0, 100, 2)]
    assert shown_rows(range(100), small) == list(range(SHOWN_ROWS))
    assert shown_rows(list(range(100)), []) == list(range(SHOWN_ROWS))
