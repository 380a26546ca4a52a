"""Synthetic CT, MR and fundus studies with known lesions: which there are, and which scanner.

A patient is a seed; a view is the number of one image of that patient. The same patient, view,
disease and scanner give the same pixels on every machine of one NumPy and Pillow version. Mean
brightness says nothing of the disease: bodies, distractors and exposure vary more than it does.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from simulations.drawing import Phantom, Pixels, Scanner
from simulations.phantoms_ct import ct_abdomen, ct_pretext
from simulations.phantoms_fundus import fundus, fundus_pretext
from simulations.phantoms_mr import mr_brain, mr_pretext

__all__ = ["PRETEXT", "TASKS", "Draw", "Phantom", "PhantomTask", "Scanner", "pretext", "scanner"]


class Draw(Protocol):
    """A function that draws one image of a patient; its own docstring says of what."""

    def __call__(self, patient: int, view: int, *, diseased: bool, scanner: Scanner) -> Phantom:
        """Draw view number ``view`` of the patient."""


@dataclass(frozen=True)
class PhantomTask:
    """One diagnosis.

    Attributes:
        modality: What makes the image; CT and MR are DICOM's terms, CID 29.
        classes: The two labels, the healthy one first.
        draw: Draws an image of either class.
    """

    modality: Literal["CT", "MR", "fundus"]
    classes: tuple[str, str]
    draw: Draw

    @property
    def positive(self) -> str:
        """The label of the disease."""
        return self.classes[1]


TASKS: dict[str, PhantomTask] = {
    "gaucher": PhantomTask("CT", ("healthy", "gaucher"), ct_abdomen),
    "neurofibromatosis": PhantomTask("MR", ("healthy", "neurofibroma"), mr_brain),
    "ocular-melanoma": PhantomTask("fundus", ("healthy", "melanoma"), fundus),
}

# Other diseases by the same brushes, for pretraining a backbone that never saw those above.
PRETEXT = (
    (ct_pretext, "none"),
    (ct_pretext, "liver lesion"),
    (ct_pretext, "kidney stone"),
    (mr_pretext, "none"),
    (mr_pretext, "mass with oedema"),
    (mr_pretext, "lacune"),
    (fundus_pretext, "none"),
    (fundus_pretext, "drusen"),
    (fundus_pretext, "haemorrhages"),
    (fundus_pretext, "naevus"),
)


def scanner(site_index: int, rng: np.random.Generator) -> Scanner:
    """Draw the device of a site.

    Args:
        site_index: Number of the site, for the device's name.
        rng: Where its properties come from.
    """
    return Scanner(
        name=f"Phantom {site_index}",
        noise=rng.uniform(0.6, 1.5),
        blur=rng.uniform(0.4, 1.0),
        gain=rng.uniform(0.8, 1.2),
        bias=rng.uniform(0, 1),
        tint=(rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1)),
    )


def pretext(rng: np.random.Generator, index: int) -> tuple[Pixels, int]:
    """Draw an image for pretraining, of a new patient on a new scanner.

    Args:
        rng: Where patient and scanner come from.
        index: Any number; it walks through the classes of ``PRETEXT`` in turn.

    Returns:
        The pixels of CT, MR or fundus, as ``Phantom`` has them, and the place in ``PRETEXT``.
    """
    number = index % len(PRETEXT)
    draw, finding = PRETEXT[number]
    patient = int(rng.integers(2**62))
    return draw(patient, finding, scanner(index, rng)).pixels, number
