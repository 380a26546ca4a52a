"""What the gate can find in a hospital's images and tables: every code, and what to do about it.

``docs/findings.md`` explains each at length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Meaning(NamedTuple):
    """What a code stands for."""

    severity: Severity
    """Rows with an error are left out of training; a warning may spoil a study's figures; a note
    is worth knowing."""
    title: str
    remedy: str


CODES: Mapping[str, Meaning] = {
    "unreadable": Meaning(
        "error",
        "The image cannot be read",
        "Export the image again, or take its row out of the manifest.",
    ),
    "set_aside": Meaning(
        "error",
        "The object is no image of the patient",
        "Take the row out of the manifest, or name the image that the object belongs to.",
    ),
    "constant": Meaning(
        "error",
        "The image has one value everywhere",
        "Look at the image in a viewer; correct the study's window, or take the row out.",
    ),
    "duplicate_across_splits": Meaning(
        "error",
        "The same image is in two splits",
        "Find out whose image it is and keep one row; or give all of them one group.",
    ),
    "duplicate_across_patients": Meaning(
        "error",
        "The same image stands for two patients",
        "Find out whose image it is and keep one row; or give all of them one group.",
    ),
    "labels_differ": Meaning(
        "error",
        "The same image has two labels",
        "Find out which label is right, and keep that row alone.",
    ),
    "patient_in_two_splits": Meaning(
        "error",
        "A patient is trained on here and held out in another task",
        "Give all rows of the patient the same split, in every task, or leave the column empty.",
    ),
    "near_duplicate_across_splits": Meaning(
        "warning",
        "Nearly the same image is in two splits",
        "Look at the pairs: neighbouring slices and copies of one patient need a common group.",
    ),
    "near_duplicate_across_patients": Meaning(
        "warning",
        "Nearly the same image stands for two patients",
        "Look at the pairs: neighbouring slices and copies of one patient need a common group.",
    ),
    "shortcut": Meaning(
        "warning",
        "The label can be told without looking at the image",
        "Add images of the other classes from the same source, or judge the model where the "
        "sources are mixed; accept it only when you know why it is so.",
    ),
    "class_below_minimum": Meaning(
        "warning",
        "A class has too few patients for its figures to leave",
        "Add patients of that class; otherwise the site's figures of that split stay here.",
    ),
    "burned_in_flag": Meaning(
        "warning",
        "The header says that text is burned into the image",
        "Export the image without annotations, or black them out, if they name the patient or "
        "tell the label.",
    ),
    "burned_in_text": Meaning(
        "warning",
        "There seems to be text in the image",
        "Look at the image: black the text out, if it names the patient or tells the label.",
    ),
    "sideways": Meaning(
        "warning",
        "The image lies on its side",
        "Export it in the usual view, as the other images of the task are.",
    ),
    "mirrored": Meaning(
        "warning",
        "The image is mirrored",
        "Export it in the usual view, as the other images of the task are.",
    ),
    "upside_down": Meaning(
        "warning",
        "The image is upside down",
        "Export it in the usual view, as the other images of the task are.",
    ),
    "no_orientation": Meaning(
        "warning",
        "The file does not say how the image lies",
        "Look whether the image is in the usual view; export it with its orientation if not.",
    ),
    "clipped": Meaning(
        "warning",
        "Much of the image is at the end of the range",
        "Look whether the study's window fits, or whether the image was exported too bright or "
        "too dark.",
    ),
    "narrow_range": Meaning(
        "warning",
        "The image uses little of its range and comes out dark",
        "Export it again with its own bit depth spread over the file's, or as DICOM.",
    ),
    "implausible_hounsfield": Meaning(
        "warning",
        "The values cannot be Hounsfield units",
        "Look at the rescale slope and intercept in the header; export the original image.",
    ),
    "gaps": Meaning(
        "warning",
        "Slices are missing from the volume",
        "Export the whole series, or take the row out.",
    ),
    "mixed_spacing": Meaning(
        "warning",
        "The slices of the volume lie at different distances",
        "Export one reconstruction alone, of equal spacing.",
    ),
    "no_positions": Meaning(
        "warning",
        "The slices of the volume do not say where they lie",
        "Look whether the slices are in their order; export the original series.",
    ),
    "other_unit": Meaning(
        "warning",
        "The values of a CT image are in another unit",
        "Take maps of flow, fat or iodine out of the manifest; name the plain series.",
    ),
    "header_differs": Meaning(
        "warning",
        "The manifest says another side or sex than the image's header",
        "Find out which is right; a row may name another patient's image.",
    ),
    "odd_column": Meaning(
        "warning",
        "A column is ignored whose name looks like a slip",
        "Correct the column's name in the manifest's first line, if it was meant to count.",
    ),
    "duplicate": Meaning(
        "warning",
        "The same image of a patient stands there twice",
        "Keep one row: a repeated image counts twice in training and in every figure.",
    ),
    "near_duplicate": Meaning(
        "note",
        "Images of a patient are nearly the same",
        "Nothing needs to be done: they are in one split.",
    ),
    "several_windows": Meaning(
        "note",
        "The header offers several windows",
        "Nothing needs to be done: the first one counts, except on CT, where the study's does.",
    ),
    "tilted": Meaning(
        "note",
        "The slices of the volume lie askew",
        "Nothing needs to be done for single slices; planes through the volume are sheared.",
    ),
    "folder_objects": Meaning(
        "note",
        "The folder also holds objects that are no images",
        "Nothing needs to be done: they are left out.",
    ),
    "folder_copies": Meaning(
        "note",
        "The folder holds a slice twice",
        "Nothing needs to be done: one of the two counts.",
    ),
    "constant_slices": Meaning(
        "note",
        "Empty slices of a volume are left out",
        "Nothing needs to be done.",
    ),
    "label_empty": Meaning(
        "note",
        "Rows without a label of this task are left out",
        "Fill in the labels, if the images are meant for this task.",
    ),
    "each_image": Meaning(
        "note",
        "Each image counts as a patient of its own",
        "Name the patients, if they are known: nothing else keeps one of them in one split.",
    ),
}
"""Every code, the severest first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the gate has found in the rows of one task."""

    code: str
    """One of ``CODES``."""
    what: str
    """What is so here, in one sentence."""
    rows: tuple[int, ...] = ()
    """Lines of the manifest, in their order; none where it is about the table as a whole."""
    groups: tuple[tuple[int, ...], ...] = ()
    """The lines that belong together, such as copies of one image."""
    why: Mapping[int, str] = field(default_factory=dict)
    """What is so of single lines."""
    accepted: bool = False
    """Whether the hospital's configuration accepts the code."""

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return CODES[self.code].severity

    @property
    def title(self) -> str:
        """What the code stands for, in a few words."""
        return CODES[self.code].title

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        return CODES[self.code].remedy


def plural(count: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
