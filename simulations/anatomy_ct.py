"""Organs of the upper abdomen on axial CT, healthy and diseased, in Hounsfield units.

Seen from the feet, so that the liver is on the left of the picture. Places in the abdominal cavity
are given as (u, v) in [-1, 1], to the patient's left and to the back. Values are those of a portal
venous phase, which ``phase`` in [0, 1] scales down to none.
"""

from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from simulations.drawing import (
    Mask,
    Points,
    Scanner,
    blob,
    chance,
    cover,
    ellipse,
    paint,
    rounded,
)

SIZE = 256
PIXEL_SPACING = 1.5  # millimetres
FAT, WATER, SOFT, GAS = -100.0, 8.0, 52.0, -850.0

_LIVER = np.array(
    [
        [-1.1, -0.5], [-0.75, -0.95], [-0.2, -1.0], [0.2, -0.85], [0.32, -0.62], [0.05, -0.42],
        [-0.12, -0.2], [-0.28, 0.1], [-0.4, 0.5], [-0.68, 0.78], [-1.1, 0.55],
    ]
)  # fmt: skip
_SPLEEN = np.array(
    [
        [0.9, -0.12], [1.1, 0.1], [1.08, 0.4], [0.9, 0.72], [0.6, 0.9],
        [0.52, 0.72], [0.66, 0.5], [0.72, 0.2], [0.8, -0.05],
    ]
)  # fmt: skip
_HUGE_SPLEEN = np.array(
    [
        [0.72, -0.82], [1.1, -0.5], [1.12, 0.2], [0.95, 0.7], [0.6, 0.95],
        [0.34, 0.74], [0.24, 0.35], [0.26, -0.1], [0.4, -0.6],
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Body:
    """What all slices of one patient share; lengths in pixels."""

    centre: tuple[float, float]
    outer: tuple[float, float]
    cavity: tuple[float, float]
    power: float
    phase: float
    growth: float  # 0 a usual spleen, 1 one that fills the left side
    seed: int

    def at(self, u: float, v: float) -> tuple[float, float]:
        """Return a place of the cavity as a point of the picture."""
        return self.centre[0] + u * self.cavity[0], self.centre[1] + v * self.cavity[1]

    def place(self, corners: Points) -> Points:
        """Return outlines of the cavity as points of the picture."""
        return np.asarray(corners * np.asarray(self.cavity) + np.asarray(self.centre))


def make_body(rng: np.random.Generator, scanner: Scanner, *, huge: bool) -> Body:
    """Draw the measures of a patient."""
    width = rng.uniform(98, 121)
    height = width * rng.uniform(0.7, 0.82)
    fat = 3 + 17 * rng.beta(1.5, 3) + (0.5 if huge else 0.0)  # evens out the mean brightness
    wall = rng.uniform(6, 9)
    return Body(
        centre=(128 + rng.normal(0, 3), 128 + rng.normal(0, 3)),
        outer=(width, height),
        cavity=(width - fat - wall, height - fat - wall),
        power=rng.uniform(2.1, 2.6),
        phase=float(np.clip(rng.beta(2, 1.3) * scanner.gain, 0.1, 1.1)),
        growth=rng.uniform(0.4, 1.0) if huge else rng.uniform(-0.15, 0.25),
        seed=int(rng.integers(2**62)),
    )


def paint_hollow_organs(
    brush: ImageDraw.ImageDraw,
    body: Body,
    shared: np.random.Generator,
    own: np.random.Generator,
    level: float,
) -> None:
    """Paint vessels in the fat, then what a huge spleen pushes aside: stomach and bowel."""
    wall = SOFT + 25 * body.phase
    for _ in range(14):
        place = body.at(shared.uniform(-0.2, 0.7), shared.uniform(-0.3, 0.4))
        paint(brush, ellipse(place, (shared.uniform(0.8, 1.8),) * 2, points=12), wall + 30)
    push = max(body.growth, 0.0)
    full = 1 - 0.45 * push
    fluid = shared.uniform(5, 45)
    for _ in range(round(shared.integers(9, 14) * full)):
        u, v = shared.uniform(-0.3, 0.75) - 0.35 * push, shared.uniform(-0.75, 0.3)
        radius = shared.uniform(7, 13)
        _loop(
            brush,
            blob(shared, body.at(u, v), (radius, radius * 0.8)),
            wall,
            own,
            fluid,
            0.25 + 0.25 * push,
        )
    colon = blob(shared, body.at(0.72 - 0.75 * push, -0.42), (17 * full, 15 * full))
    _loop(brush, colon, wall, own, fluid, 0.6 + 0.4 * push)
    centre = body.at(0.42 - 0.3 * push, -0.42 + 0.3 * level)
    radii = (0.36 * full * body.cavity[0], 0.42 * full * body.cavity[1])
    stomach = blob(shared, centre, radii, angle=shared.normal(0.3, 0.2), rough=0.1)
    _loop(brush, stomach, wall, own, fluid, 0.45 + 0.5 * push)
    pancreas = [[-0.2, 0.02], [0.1, -0.12], [0.4, -0.02], [0.5, 0.12], [0.36, 0.14], [0.1, 0.06]]
    corners = np.array(pancreas) + shared.normal(0, 0.04, (6, 2))
    paint(brush, body.place(rounded(corners * np.array([1 - 0.35 * push, 1.0]))), wall + 10)


def _loop(
    brush: ImageDraw.ImageDraw,
    outline: Points,
    wall: float,
    rng: np.random.Generator,
    fluid: float,
    gas: float,
) -> None:
    """Paint a hollow organ: its wall, its content, and with chance ``gas`` gas above a level."""
    paint(brush, outline, wall)
    middle = outline.mean(axis=0)
    lumen = middle + (outline - middle) * 0.86
    paint(brush, lumen, fluid + rng.normal(0, 8))
    if chance(rng, gas):
        height = np.ptp(lumen[:, 1])
        surface = lumen[:, 1].min() + height * rng.uniform(0.15, 0.5)
        above = lumen.copy()
        above[:, 1] = np.minimum(above[:, 1], surface)
        paint(brush, above, GAS)


def paint_spleen(
    brush: ImageDraw.ImageDraw,
    body: Body,
    rng: np.random.Generator,
    level: float,
    *,
    diseased: bool,
) -> Mask:
    """Paint the spleen; a diseased one with nodules and infarcts. Return its mask if diseased."""
    growth = body.growth - 0.15 * abs(level)
    corners = _SPLEEN + growth * (_HUGE_SPLEEN - _SPLEEN) + rng.normal(0, 0.025, _SPLEEN.shape)
    outline = body.place(rounded(corners))
    value = 50 + 65 * body.phase
    paint(brush, outline, value)
    if not diseased:
        if chance(rng, 0.2):
            paint(brush, ellipse(outline.mean(axis=0), (rng.uniform(3, 5),) * 2), WATER + 6)
        return np.zeros((SIZE, SIZE), dtype=np.bool_)
    inside = cover(outline, SIZE) > 0.5  # noqa: PLR2004 - half of the pixel
    inside &= cover(ellipse(body.centre, body.cavity, power=body.power), SIZE) > 0.5  # noqa: PLR2004
    rows, columns = np.nonzero(inside)
    dark = value - rng.uniform(26, 40) - 24 * body.phase
    for _ in range(rng.integers(4, 10)):
        chosen = rng.integers(rows.size)
        radius = rng.uniform(3.0, 7.0)
        place = (float(columns[chosen]), float(rows[chosen]))
        paint(brush, blob(rng, place, (radius, radius * rng.uniform(0.75, 1))), dark)
    for _ in range(rng.integers(1, 3)):
        _infarct(brush, body, rng, corners, dark)
    return inside


def _infarct(
    brush: ImageDraw.ImageDraw,
    body: Body,
    rng: np.random.Generator,
    corners: Points,
    value: float,
) -> None:
    """Paint a wedge with its base on the capsule and its point towards the hilum."""
    share = rng.uniform(0.0, 2.6)
    first = int(share)
    base = corners[first] + (share - first) * (corners[first + 1] - corners[first])
    base = np.clip(base, -1.0, 0.97)
    tip = base + rng.uniform(0.5, 0.75) * (np.array([0.3, 0.25]) - base)
    along = np.array([0.1, 0.16]) * np.sign(corners[first + 1] - corners[first])
    wedge = np.stack([base - along, base, base + along, tip])
    paint(brush, body.place(rounded(wedge, rounds=2)), value)


def paint_liver(
    brush: ImageDraw.ImageDraw,
    body: Body,
    rng: np.random.Generator,
    level: float,
    finding: str,
) -> Mask:
    """Paint the liver with vessels, gall bladder, maybe a cyst. Return the mask of lesions."""
    corners = _LIVER + rng.normal(0, 0.04, _LIVER.shape)
    corners[:, 1] = corners[:, 1] * (1 - 0.15 * level)
    value = rng.uniform(50, 64) + 48 * body.phase
    outline = body.place(rounded(corners))
    paint(brush, outline, value)
    for _ in range(9):
        start, turn = body.at(rng.uniform(-0.8, -0.3), rng.uniform(-0.6, 0.3)), rng.uniform(0, 3.1)
        radii = (rng.uniform(3, 9), rng.uniform(1.0, 2.0))
        paint(brush, ellipse(start, radii, angle=turn), value - 12 + 50 * body.phase)
    if chance(rng, 0.6):
        paint(brush, blob(rng, body.at(-0.22, -0.12), (9, 7), angle=0.8), WATER)
    cyst, place, radius = chance(rng, 0.45), _in_liver(body, rng), rng.uniform(3.5, 8)
    if finding in {"healthy", "gaucher"} and cyst:
        paint(brush, ellipse(place, (radius, radius)), WATER)
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    for _ in range(rng.integers(2, 6) if finding == "liver lesion" else 0):
        radius = rng.uniform(5, 11)
        tumour = blob(rng, _in_liver(body, rng), (radius, radius))
        paint(brush, tumour, value + 14)
        middle = tumour.mean(axis=0)
        paint(brush, middle + (tumour - middle) * 0.84, value - rng.uniform(42, 60))
        mask |= cover(tumour, SIZE) > 0.5  # noqa: PLR2004 - half of the pixel
    return mask


def _in_liver(body: Body, rng: np.random.Generator) -> tuple[float, float]:
    return body.at(rng.uniform(-0.8, -0.42), rng.uniform(-0.55, 0.4))


def paint_kidneys(
    brush: ImageDraw.ImageDraw,
    body: Body,
    rng: np.random.Generator,
    level: float,
    *,
    stone: bool,
) -> Mask:
    """Paint both kidneys in their fat. Return the mask of stones, when asked for any."""
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    cortex, pyramids = 36 + 150 * body.phase, 34 + 100 * body.phase
    ill = rng.choice([-1, 1])
    for side in (-1, 1):
        x, y = body.at(side * 0.43, 0.56)
        radii = np.array([15.0, 17.5]) * (1 - 0.25 * abs(level)) * rng.uniform(0.9, 1.1)
        tilt = -side * 0.5
        paint(brush, ellipse((x, y), (radii[0] + 4, radii[1] + 4), angle=tilt), FAT)
        paint(brush, blob(rng, (x, y), tuple(radii), angle=tilt, rough=0.06), cortex)
        for turn in np.arange(0, 5.5, 0.9) + 0.5:
            spot = (x + 0.55 * radii[0] * np.cos(turn), y + 0.55 * radii[1] * np.sin(turn))
            paint(brush, ellipse(spot, (3.4, 3.4)), pyramids)
        sinus = (x - side * 0.3 * radii[0], y - 0.15 * radii[1])
        paint(brush, blob(rng, sinus, (0.42 * radii[0], 0.42 * radii[1]), rough=0.25), FAT + 20)
        paint(brush, ellipse((sinus[0] - side * 4, sinus[1]), (4, 2.2)), WATER)
        if chance(rng, 0.2):
            paint(brush, ellipse((x + side * 0.8 * radii[0], y + 6), (6, 6)), WATER)
        spots = rng.uniform(-0.3, 0.3, (2, 2)) * radii + np.asarray(sinus)
        sizes = rng.uniform(1.8, 3.6, 2)
        for spot, size in zip(spots, sizes, strict=True) if stone and side == ill else ():
            outline = blob(rng, (spot[0], spot[1]), (size, size))
            paint(brush, outline, 1000)
            mask |= cover(outline, SIZE) > 0.4  # noqa: PLR2004 - small: count the edge
    return mask


def paint_vessels(brush: ImageDraw.ImageDraw, body: Body, rng: np.random.Generator) -> None:
    """Paint psoas muscles, aorta and vena cava."""
    blood = 42 + 115 * body.phase
    for side in (-1, 1):
        paint(brush, ellipse(body.at(side * 0.2, 0.62), (9, 12)), SOFT + 8 * body.phase)
    paint(brush, ellipse(body.at(0.07, 0.34), (7.4, 7.2)), blood)
    paint(brush, ellipse(body.at(-0.15, 0.36), (8.8, 6.6), angle=0.2), blood - 15)
    if chance(rng, 0.35):
        paint(brush, ellipse((body.at(0.07, 0.34)[0] + 6.3, body.at(0, 0.36)[1]), (1, 2.4)), 600)
