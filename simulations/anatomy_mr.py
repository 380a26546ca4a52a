"""A healthy head on axial T2-weighted MR, fat suppressed.

The back of the head is at the bottom of the picture. Signals are shares of that of cerebrospinal
fluid. Places in the brain are given as (u, v) in [-1, 1], to the patient's left and to the back.
``level`` 0 is at the basal ganglia, 1 at the bodies of the lateral ventricles.
"""

from dataclasses import dataclass

import numpy as np

from simulations.drawing import (
    Field,
    Points,
    canvas,
    clouds,
    ellipse,
    overlay,
    paint,
    picture,
    rounded,
)

SIZE = 256
PIXEL_SPACING = 0.9  # millimetres
FLUID, GREY, WHITE, PALLIDUM = 1.0, 0.56, 0.38, 0.3

# Left half of each shape (right in the picture): corners at level 0, and at level 1.
_FRONT_HORN = (
    [[0.02, -0.22], [0.08, -0.36], [0.2, -0.46], [0.26, -0.42], [0.17, -0.3], [0.08, -0.14]],
    [[0.02, 0.1], [0.03, -0.3], [0.13, -0.42], [0.2, -0.36], [0.15, -0.05], [0.1, 0.16]],
)
_BACK_HORN = (
    [[0.24, 0.3], [0.34, 0.36], [0.38, 0.5], [0.28, 0.62], [0.3, 0.48], [0.22, 0.38]],
    [[0.06, 0.1], [0.14, 0.05], [0.3, 0.34], [0.24, 0.46], [0.18, 0.32], [0.1, 0.22]],
)
_CAUDATE = [[0.13, -0.22], [0.2, -0.32], [0.27, -0.4], [0.3, -0.3], [0.22, -0.17], [0.14, -0.12]]
_PUTAMEN = [[0.34, -0.3], [0.46, -0.22], [0.5, -0.04], [0.46, 0.14], [0.38, 0.08], [0.37, -0.12]]
_PALLIDUM = [[0.25, -0.1], [0.36, -0.18], [0.38, 0.02], [0.35, 0.1], [0.28, 0.0]]
_THALAMUS = [[0.04, 0.02], [0.14, -0.02], [0.26, 0.12], [0.27, 0.26], [0.14, 0.3], [0.04, 0.22]]
_SYLVIAN = [[0.56, -0.2], [0.6, -0.02], [0.59, 0.16], [0.7, 0.1], [0.84, 0.04]]


@dataclass(frozen=True)
class Head:
    """What all slices of one patient share; lengths in pixels."""

    centre: tuple[float, float]
    brain: tuple[float, float]
    power: float
    age: float  # 0 young, 1 old: width of ventricles and sulci
    level: float
    tilt: float
    seed: int

    def place(self, corners: Points, side: int = 1) -> Points:
        """Return outlines of the left half, or of the right with ``side`` -1, as points."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        x, y = corners[:, 0] * side * self.brain[0], corners[:, 1] * self.brain[1]
        turned = np.stack([c * x - s * y, s * x + c * y], axis=1)
        return np.asarray(turned + np.asarray(self.centre))

    def at(self, u: float, v: float) -> tuple[float, float]:
        """Return a place of the brain as a point of the picture."""
        x, y = self.place(np.array([[u, v]]))[0]
        return float(x), float(y)


def make_head(anatomy: np.random.Generator, own: np.random.Generator) -> Head:
    """Draw a patient, and the level and place of this slice."""
    width = anatomy.uniform(70, 80)
    return Head(
        centre=(128 + own.normal(0, 2), 126 + own.normal(0, 2)),
        brain=(width, width * anatomy.uniform(1.18, 1.3)),
        power=anatomy.uniform(2.1, 2.4),
        age=anatomy.uniform(0, 1),
        level=float(np.clip(anatomy.uniform(0.0, 0.5) + own.normal(0, 0.15), 0, 1)),
        tilt=anatomy.normal(0, 0.04) + own.normal(0, 0.015),
        seed=int(anatomy.integers(2**62)),
    )


def draw_skull(head: Head, rng: np.random.Generator) -> Field:
    """Return scalp, bone with marrow, and the fluid around the brain."""
    image, brush = canvas(SIZE, 0.0)
    fluid = rng.uniform(1.0, 2.0) + 1.5 * head.age
    bone, scalp = rng.uniform(6, 8), rng.uniform(4.5, 8)

    def ring(extra: float, value: float) -> None:
        radii = (head.brain[0] + extra, head.brain[1] + extra)
        outline = ellipse(head.centre, radii, angle=head.tilt, power=head.power, points=120)
        paint(brush, outline, value)

    ring(fluid + bone + scalp, 0.42)
    ring(fluid + bone + scalp - 1.8, 0.2)
    ring(fluid + bone + 1.2, 0.3)
    ring(fluid + bone, 0.04)
    ring(fluid + 0.7 * bone, 0.22)
    ring(fluid + 0.3 * bone, 0.04)
    ring(fluid, FLUID)
    return picture(image) * (1 + 0.12 * clouds(rng, SIZE, 7))


def draw_cortex(head: Head, rng: np.random.Generator) -> Field:
    """Return white matter under a folded ribbon of grey matter, with fluid in the folds.

    Folds are where a random field over angle and depth crosses zero; near the surface the crossing
    is fluid, beside it lies grey matter.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    dx, dy = x - head.centre[0], y - head.centre[1]
    c, s = np.cos(head.tilt), np.sin(head.tilt)
    u, v = (c * dx + s * dy) / head.brain[0], (c * dy - s * dx) / head.brain[1]
    depth = np.hypot(u, v) ** (1 + 0.1 * (head.power - 2))
    turn = np.arctan2(u, v) / (2 * np.pi) + 0.5
    folds = _folds(rng)
    rows, columns = (turn * len(folds)).astype(int), (depth * 0.9 * folds.shape[1]).astype(int)
    folds = folds[np.clip(rows, 0, len(folds) - 1), np.clip(columns, 0, folds.shape[1] - 1)]

    near = np.clip((depth - 0.6) / 0.3, 0, 1)
    middle = np.abs(u) * head.brain[0]
    fissure = np.abs(v + 0.05) > 0.52 - 0.25 * head.level
    ribbon = np.maximum(_ramp(0.2 + 0.55 * near - np.abs(folds), 0.25) * (near > 0),
                        _ramp(depth - 0.955, 0.02))  # fmt: skip
    grey = np.maximum(ribbon, _ramp(4.2 - middle, 0.8) * fissure)
    wide = (0.12 + 0.16 * head.age) * near**1.5
    fluid = _ramp(wide - np.abs(folds), 0.09) * (near > 0.3)  # noqa: PLR2004 - no fluid deeper
    fluid = np.maximum(fluid, _ramp(0.7 + 0.8 * head.age - middle, 0.6) * fissure)
    brain = WHITE + (GREY - WHITE) * grey + 0.018 * clouds(rng, SIZE, 12)
    return np.asarray(brain + (FLUID - brain) * fluid, dtype=np.float32)


def _folds(rng: np.random.Generator) -> Field:
    """Return a field of variance 1 over (angle, depth), periodic in angle, half of it mirrored."""
    angles, depths = 512, 64
    around = np.fft.fftfreq(angles, 1 / angles)[:, None]  # cycles in a turn
    inward = np.fft.rfftfreq(depths, 1 / depths)[None, :]  # cycles from the middle to the surface
    gain = np.exp(-0.5 * ((np.abs(around) - 15) / 5) ** 2 - 0.5 * (inward / 2.2) ** 2)
    gain = gain.astype(np.float32)
    white = np.fft.rfft2(rng.standard_normal((angles, depths), dtype=np.float32))
    field = np.fft.irfft2(white * gain, s=(angles, depths))
    field = field + 0.6 * field[::-1]
    return np.asarray(field / field.std(), dtype=np.float32)


def _ramp(field: Field, width: float) -> Field:
    """Return 0 where the field is below -width, 1 above width, and a line between."""
    return np.asarray(np.clip(field / (2 * width) + 0.5, 0, 1), dtype=np.float32)


def add_deep_grey(brain: Field, head: Head, rng: np.random.Generator) -> Field:
    """Add caudate, lentiform nucleus, thalamus and the Sylvian fissure with the insula."""
    shapes: list[tuple[Points, float]] = []
    for side in (-1, 1):
        for corners, value in (
            (_CAUDATE, GREY), (_PUTAMEN, GREY), (_PALLIDUM, PALLIDUM), (_THALAMUS, 0.52),
        ):  # fmt: skip
            shape = np.array(corners) + rng.normal(0, 0.008, (len(corners), 2))
            shapes.append((head.place(rounded(shape), side), value))
        line = np.array(_SYLVIAN) + rng.normal(0, 0.012, (5, 2))
        for width, value in ((0.055, GREY), (0.012 + 0.02 * head.age, FLUID)):
            band = np.concatenate([line - [width, 0.2 * width], line[::-1] + width])
            shapes.append((head.place(rounded(band), side), value))
    return overlay(brain, shapes, strength=1 - head.level)


def add_ventricles(brain: Field, head: Head, rng: np.random.Generator) -> Field:
    """Add both lateral ventricles, the third, and the septum between."""
    swell = 0.75 + 0.6 * head.age
    third = ellipse(head.at(0, 0.08), (0.9 + 1.6 * head.age, 12), angle=head.tilt)
    brain = overlay(brain, [(third, FLUID)], strength=1 - head.level)
    shapes: list[tuple[Points, float]] = []
    for side in (-1, 1):
        lopsided = rng.uniform(0.9, 1.1)
        for low, high in (_FRONT_HORN, _BACK_HORN):
            corners = np.array(low) + head.level * (np.array(high) - np.array(low))
            corners += rng.normal(0, 0.008, corners.shape)
            middle = corners.mean(axis=0)
            stretch = np.array([swell, 0.9 + 0.15 * head.age]) * lopsided
            outline = head.place(rounded(middle + (corners - middle) * stretch), side)
            shapes.append((outline, FLUID))
    shapes.append((ellipse(head.at(0, -0.25), (0.9, 16), angle=head.tilt), WHITE))  # septum
    return overlay(brain, shapes)
