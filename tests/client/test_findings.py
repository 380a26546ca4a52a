"""Laws of the findings' table: complete, in order, and in step with its page."""

import re
from pathlib import Path

import pytest

from client.findings import CODES, Finding, plural

PAGE = Path(__file__).resolve().parents[2] / "docs" / "findings.md"
NOTES = {  # what readers put into the facts of an image
    "constant_slices", "gaps", "mixed_spacing", "narrow_range", "no_orientation", "other_unit",
    "no_positions", "several_windows", "tilted",
}  # fmt: skip


def test_the_severest_come_first() -> None:
    """Errors stand before warnings, and warnings before notes."""
    order = [meaning.severity for meaning in CODES.values()]
    assert order == sorted(order, key=("error", "warning", "note").index)


def test_the_page_has_every_code_with_its_words() -> None:
    """Code, severity, title and remedy of each row of the page are those of the software."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == list(CODES)
    for code, severity, meaning, remedy in rows:
        assert severity == CODES[code].severity
        assert meaning.startswith(f"{CODES[code].title}. ")
        assert meaning.removeprefix(f"{CODES[code].title}. ").strip(), f"{code} is not explained"
        assert remedy == CODES[code].remedy


def test_what_readers_note_is_a_finding() -> None:
    """Each note of a reader has its row in the table."""
    assert set(CODES) >= NOTES


@pytest.mark.parametrize("code", CODES)
def test_codes_can_be_accepted(code: str) -> None:
    """A code has the form that the site's configuration takes, and its remedy is a sentence."""
    assert re.fullmatch(r"[a-z_]{3,40}", code)
    finding = Finding(code, "something.")
    assert finding.remedy.endswith(".")
    assert not finding.title.endswith(".")


def test_one_thing_is_singular() -> None:
    """Numbers of things are English."""
    assert (plural(1, "row"), plural(2, "row"), plural(0, "row")) == ("1 row", "2 rows", "0 rows")
