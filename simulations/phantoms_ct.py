"""Axial CT of the upper abdomen with and without Gaucher disease's spleen: the whole slice."""

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from simulations.anatomy_ct import (
    FAT,
    SIZE,
    SOFT,
    Body,
    make_body,
    paint_hollow_organs,
    paint_kidneys,
    paint_liver,
    paint_spleen,
    paint_vessels,
)
from simulations.drawing import (
    Field,
    Phantom,
    Scanner,
    blob,
    blurred,
    canvas,
    clouds,
    cover,
    ellipse,
    generators,
    kernel_noise,
    paint,
    picture,
    rounded,
)


def ct_abdomen(patient: int, view: int, *, diseased: bool, scanner: Scanner) -> Phantom:
    """Draw one slice: Gaucher disease with splenomegaly, nodules and infarcts, or a healthy one.

    Both kinds may have a liver cyst, a renal cyst, a full stomach or gas in the bowel. The mask is
    the whole diseased spleen: its size is a sign as much as its nodules are.

    Args:
        patient: Seed of what all slices of the patient share.
        view: Number of the slice; slices differ in level.
        diseased: Draw the disease.
        scanner: The device.

    Returns:
        A phantom of (256, 256) int16 within [-1024, 3071] HU.
    """
    return _slice(patient, view, finding="gaucher" if diseased else "healthy", scanner=scanner)


def ct_pretext(patient: int, finding: str, scanner: Scanner) -> Phantom:
    """Draw a slice with "liver lesion", "kidney stone" or "none"; the spleen is always healthy."""
    return _slice(patient, 0, finding=finding, scanner=scanner)


def _slice(patient: int, view: int, *, finding: str, scanner: Scanner) -> Phantom:
    anatomy, own = generators(patient, view)
    body = make_body(anatomy, scanner, huge=finding == "gaucher")
    shared = np.random.default_rng(body.seed)  # organs: the same draws in each slice
    level = own.normal(0, 0.25)

    wall = _wall(body, shared)
    image, brush = canvas(SIZE, FAT - 5)
    paint_hollow_organs(brush, body, shared, own, level)
    lesion = paint_spleen(brush, body, shared, level, diseased=finding == "gaucher")
    lesion |= paint_liver(brush, body, shared, level, finding)
    lesion |= paint_kidneys(brush, body, shared, level, stone=finding == "kidney stone")
    paint_vessels(brush, body, shared)

    inside = cover(ellipse(body.centre, body.cavity, power=body.power), SIZE)
    inner = picture(image) + 4 * clouds(own, SIZE, 6)
    tissue: Field = wall * (1 - inside) + inner * inside
    tissue = _spine(tissue, body, shared, own)
    lesion &= inside > 0.5  # noqa: PLR2004 - half of the pixel
    return Phantom(_acquire(tissue, own, scanner), lesion, finding)


def _wall(body: Body, rng: np.random.Generator) -> Field:
    """Return air, skin, fat, muscle and ribs, as they are outside the cavity."""
    image, brush = canvas(SIZE, -1000)
    x, y = body.centre
    bed = y + body.outer[1] + 7
    paint(brush, ellipse((x, bed - 90), (150, 94), points=120), -250)
    paint(brush, ellipse((x, bed - 91), (149, 92), points=120), -1000)
    paint(brush, ellipse((x, y), body.outer, power=body.power), 15)
    paint(brush, ellipse((x, y), (body.outer[0] - 1.6, body.outer[1] - 1.6), power=body.power), FAT)
    thick = rng.uniform(5, 7)
    muscle = (body.cavity[0] + thick, body.cavity[1] + thick)
    paint(brush, ellipse((x, y), muscle, power=body.power), SOFT + 8 * body.phase)
    offset = rng.uniform(0, 0.3)
    for turn in np.arange(-0.4, 2.0, 0.34) + offset:
        for side in (-1, 1):
            _rib(brush, body, turn, side, thick)
    return picture(image)


def _rib(brush: ImageDraw.ImageDraw, body: Body, turn: float, side: int, thick: float) -> None:
    radii = np.asarray(body.cavity) + 0.5 * thick
    bend = 2 / body.power
    cos, sin = np.cos(turn - 0.3), np.sin(turn - 0.3)
    u, v = np.abs(cos) ** bend * np.sign(cos), np.abs(sin) ** bend * np.sign(sin)
    place = (body.centre[0] + side * u * radii[0], body.centre[1] + v * radii[1])
    slope = np.arctan2(radii[1] * cos, -side * radii[0] * sin)
    paint(brush, ellipse(place, (6.0, 2.6), angle=slope), 480)
    paint(brush, ellipse(place, (4.2, 1.2), angle=slope), 190)


def _spine(
    tissue: Field, body: Body, shared: np.random.Generator, own: np.random.Generator
) -> Field:
    """Return the slice with the vertebra, its canal and the muscles of the back."""
    image, brush = canvas(SIZE, -2000)
    x = body.centre[0]
    y = min(body.at(0, 0.7)[1], body.centre[1] + body.outer[1] - 44)  # skin behind its tip
    for side in (-1, 1):
        muscle = blob(shared, (x + side * 20, y + 23), (16, 11), angle=side * 0.3, rough=0.08)
        paint(brush, muscle, SOFT + 6 * body.phase)
    arch = np.array([[-15, 9], [-30, 17], [-13, 18], [-4, 27], [0, 38], [4, 27], [13, 18],
                     [30, 17], [15, 9]])  # fmt: skip
    paint(brush, rounded(arch + np.array([x, y]), rounds=2), 420)
    paint(brush, rounded(arch * 0.8 + np.array([x, y + 4]), rounds=2), 230)
    paint(brush, ellipse((x, y), (16.5, 12.5), power=2.3), 430)
    paint(brush, ellipse((x, y), (14.6, 10.8), power=2.3), 185)
    paint(brush, ellipse((x, y + 15.5), (9, 6.8)), 330)
    paint(brush, ellipse((x, y + 15.5), (7.6, 5.6)), 25)
    paint(brush, ellipse((x, y + 15.5), (4.4, 3.6)), 42)
    bone = picture(image)
    painted = np.clip((bone + 2000) / 2000, 0, 1)
    spongy = np.where(bone > 120, 30 * clouds(own, SIZE, 3), 0)  # noqa: PLR2004 - HU of marrow
    return np.asarray(np.where(painted > 0.99, bone + spongy, tissue), dtype=np.float32)  # noqa: PLR2004


def _acquire(tissue: Field, rng: np.random.Generator, scanner: Scanner) -> NDArray[np.int16]:
    """Return what the scanner makes of it: blur, noise of its kernel, cupping, whole numbers."""
    sharp = blurred(tissue, scanner.blur)
    noise = kernel_noise(rng, SIZE, peak=0.16 / max(scanner.blur, 0.5))
    strength = 11 * scanner.noise * rng.uniform(0.85, 1.2)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    cupping = 12 * scanner.bias * (x**2 + y**2)
    units = np.rint(sharp + strength * noise + cupping)
    return np.asarray(np.clip(units, -1024, 3071), dtype=np.int16)
