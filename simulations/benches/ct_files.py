"""CT phantoms as large as a scanner's images, for benches that read files."""

from pathlib import Path

import cv2
import numpy as np
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from client.manifest import Row
from common.seeds import stream
from simulations.dicom_files import Origin, write_dicom
from simulations.phantoms import TASKS, Phantom, scanner

NOISE = 12.0  # Hounsfield units, of a usual abdominal CT


def write_ct_files(
    folder: Path, count: int, *, side: int = 512, compressed: bool = True, drawn: int = 8
) -> list[Row]:
    """Write CT images of as many patients, and return their rows; labels take turns.

    Args:
        folder: Where they go; it must exist.
        count: How many.
        side: Height and width, in pixels.
        compressed: In lossless JPEG 2000, else native.
        drawn: Phantoms that are drawn; the others are those with other noise, which is quicker.
    """
    rng = np.random.default_rng(stream("benches", "ct"))
    task = TASKS["gaucher"]
    phantoms = [
        task.draw(stream("benches", number), 0, diseased=number % 2 == 1, scanner=scanner(0, rng))
        for number in range(drawn)
    ]
    rows = []
    for number in range(count):
        phantom = phantoms[number % drawn]
        enlarged = cv2.resize(phantom.pixels, (side, side), interpolation=cv2.INTER_CUBIC)
        noisy = enlarged + rng.normal(0, NOISE, enlarged.shape)
        pixels = np.clip(noisy, -1024, 3071).astype(np.int16)
        patient, file = f"p{number:05d}", folder / f"{number:05d}.dcm"
        origin = Origin("bench", "Phantom", patient, 0)
        write_dicom(
            file, Phantom(pixels, phantom.mask, phantom.label), modality="CT", origin=origin
        )
        if compressed:
            dataset = dcmread(file)
            dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
            dataset.save_as(file)
        rows.append(Row(number + 2, file, number % 2, patient, patient))
    return rows
