"""Laws of the text detector: it fires on drawn text and is silent on images without."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from client.burned_in import LEAST_SIGNS, signs_of_text
from client.images import read_image
from client.intensity import windowed
from simulations.phantoms import TASKS, scanner

RNG = np.random.default_rng(0)


def phantom(number: int, name: str = "gaucher") -> np.ndarray:
    task = TASKS[name]
    drawn = task.draw(number, 0, diseased=bool(number % 2), scanner=scanner(number, RNG))
    if task.modality == "CT":
        return windowed(drawn.pixels.astype(np.float32), 40, 400)
    return np.asarray(drawn.pixels / drawn.pixels.max(), np.float32)


def with_text(
    image: np.ndarray, text: str, *, height: int = 12, at: str = "top", grey: float = 1.0
) -> np.ndarray:
    """Return an image with text drawn near a corner, signs of a height in pixels."""
    image = np.ascontiguousarray(image, np.float32).copy()
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = height / cv2.getTextSize("D", font, 1, 1)[0][1]
    y = height + 4 if at == "top" else image.shape[0] - 6
    colour = (grey,) * (1 if image.ndim == 2 else 3)
    cv2.putText(image, text, (4, y), font, scale, colour, 1, cv2.LINE_AA)
    return image


@pytest.mark.parametrize("name", TASKS)
def test_phantoms_are_silent_until_text_is_drawn(name: str) -> None:
    """No phantom has text; at least nine of ten have when a line of 12 pixels is drawn on them."""
    images = [phantom(number, name) for number in range(10)]
    assert [signs_of_text(image) for image in images] == [0] * 10
    for at in ("top", "bottom"):
        found = [signs_of_text(with_text(i, "DOE 1961-03-02", at=at)) for i in images]
        assert sum(count >= LEAST_SIGNS for count in found) >= 9


def test_dark_text_on_bright_ground_is_found() -> None:
    """A report that was saved as an image is white with black letters."""
    page = np.full((300, 300), 0.95, np.float32)
    assert signs_of_text(page) == 0
    assert signs_of_text(with_text(page, "PATIENT DOE", grey=0.0)) >= LEAST_SIGNS


def test_coloured_text_is_found() -> None:
    """Yellow letters on black count as bright."""
    image = np.zeros((300, 300, 3), np.float32)
    cv2.putText(image, "ID 4482913", (5, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (1, 1, 0), 1)
    assert signs_of_text(image) >= LEAST_SIGNS


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 3), (2000, 3000)])
def test_any_size_can_be_looked_at(size: tuple[int, int]) -> None:
    """Tiny and large images are looked at without an error; noise is no text."""
    assert signs_of_text(RNG.random(size, np.float32)) == 0


def test_large_images_are_made_smaller_first() -> None:
    """On a radiograph of 3,000 pixels, letters of 50 pixels are found."""
    image = np.zeros((3000, 2400), np.float32)
    cv2.putText(image, "DOE JANE 1961", (50, 100), cv2.FONT_HERSHEY_SIMPLEX, 2.3, 1.0, 5)
    assert signs_of_text(image) >= LEAST_SIGNS


@pytest.mark.parametrize(
    "name", ["ct_iqoth", "mri_brain_tumour", "fundus_idrid", "fundus_mexico", "oct_mexico"]
)
def test_real_images_are_silent(shared: Path, name: str) -> None:
    """Of 40 images of each public data set, at most one is taken for text."""
    folder = shared / "data" / name
    with (folder / "labels.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    images = [read_image(folder / path, modality="other") for path in paths[:: len(paths) // 40]]
    assert sum(signs_of_text(image) > 0 for image in images) <= 1
    found = [signs_of_text(with_text(image, "12.03.2019 14:22")) for image in images]
    assert np.mean([count > 0 for count in found]) >= 0.7
