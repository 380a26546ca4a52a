"""What the gate asks of each image by itself, from what was kept of it when it was read."""

import re
from collections.abc import Iterator, Sequence

from client.findings import CODES, Finding, plural
from client.looks import Look
from client.pictures import Facts
from client.pixels import SAME_VALUE
from client.reading_pass import RowRead

UNREAD = ("unreadable", "set_aside", "constant")
"""Codes of rows that gave no image."""
BRIGHTEST = 0.25
"""Share of an image's pixels at the upper end of the range from which it counts as clipped."""
DARKEST = 0.98
"""The same of the lower end. Air and what surrounds the retina are 0 on good images too."""
AIR, BONE, LARGEST = -200.0, 100.0, 20_000.0
"""In Hounsfield units: an image of a body on CT has values below the first and above the second,
and none beyond the third. Air is -1000, fat -100, water 0, bone 300 to 2000."""
_HOUNSFIELD = ("DICOM", "DICOM series", "NIfTI")

_OF_FOLDERS = {"set_aside": "folder_objects", "copies": "folder_copies"}
"""Notes of a folder that was read, by the codes that tell them from what befalls a whole row."""
_WHAT = {
    "unreadable": "cannot be read",
    "set_aside": "no image of the patient",
    "constant": "the same value everywhere",
    "clipped": f"more than {BRIGHTEST:.0%} of the pixels at the upper end of the range, or more "
    f"than {DARKEST:.0%} at the lower end",
    "implausible_hounsfield": f"no value below {AIR:g}, none above {BONE:g}, or one beyond "
    f"{LARGEST:g} HU",
    "burned_in_flag": "Burned In Annotation (0028,0301) is YES",
    "burned_in_text": "signs of one height stand in a line at the top or the bottom",
    "header_differs": "the manifest and the header differ",
}


def image_findings(reads: Sequence[RowRead], modality: str) -> Iterator[Finding]:
    """Yield what single images of a task gave, one finding for each code.

    Args:
        reads: The task's rows, as they were read.
        modality: The task's modality.
    """
    found: dict[str, dict[int, str]] = {}
    for read in reads:
        for code, why in _codes(read, modality):
            found.setdefault(code, {})[read.row.line] = why
    for code, lines in found.items():
        rows = tuple(sorted(lines))
        what = _WHAT.get(code, CODES[code].title[:1].lower() + CODES[code].title[1:])
        told = {line: text for line, text in lines.items() if text}
        yield Finding(code, f"{plural(len(rows), 'row')}: {what}.", rows, why=told)


def _codes(read: RowRead, modality: str) -> Iterator[tuple[str, str]]:
    """Yield the codes of one row, each with what is special of this row."""
    if read.look is None:
        yield _unread(read)
        return
    look, facts = read.look, read.look.facts
    yield from _of_header(facts)
    if look.signs:
        yield "burned_in_text", f"{look.signs} signs"
    if look.bright > BRIGHTEST or look.dark > DARKEST:
        yield "clipped", f"{look.dark:.0%} darkest, {look.bright:.0%} brightest"
    if modality == "CT" and facts.kind in _HOUNSFIELD and _implausible(look):
        yield "implausible_hounsfield", f"{facts.low:g} to {facts.high:g} HU"
    for name, said, header in (
        ("side", read.row.laterality, facts.laterality),
        ("sex", read.row.sex, facts.sex),
    ):
        if said and header and said != header:
            yield "header_differs", f"{name} {said} in the manifest, {header} in the header"


def _of_header(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield what the header says by itself."""
    for note in facts.notes:
        code = _OF_FOLDERS.get(note, note)
        if code in CODES and (code != "no_positions" or facts.slices > 1):
            yield code, ""
    if facts.orientation in CODES:
        yield facts.orientation, ""
    if facts.burned_in == "YES":
        yield "burned_in_flag", ""


def _unread(read: RowRead) -> tuple[str, str]:
    """Return why a row gave no image, without paths, which may name a patient."""
    why = read.error.removeprefix(f"{read.row.path}: ")
    why = re.sub(rf"{re.escape(str(read.row.path))}(/[^:]*)?", "the file", why)
    if read.code == "set_aside":
        return "set_aside", why
    return ("constant" if SAME_VALUE in read.error else "unreadable"), why


def _implausible(look: Look) -> bool:
    low, high = look.facts.low, look.facts.high
    if low is None or high is None:
        return False
    return low > AIR or high < BONE or max(-low, high) > LARGEST
