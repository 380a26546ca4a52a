"""Axial T2-weighted MR of the brain, fat suppressed, with and without neurofibromatosis type 1.

The back of the head is at the bottom of the picture. Signals are shares of that of cerebrospinal
fluid. Places in the brain are given as (u, v) in [-1, 1], to the patient's left and to the back.
``level`` 0 is at the basal ganglia, 1 at the bodies of the lateral ventricles.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.drawing import (
    Field,
    Mask,
    Phantom,
    Points,
    Scanner,
    blob,
    blurred,
    canvas,
    chance,
    clouds,
    cover,
    ellipse,
    generators,
    overlay,
    paint,
    picture,
    rounded,
)

SIZE = 256
PIXEL_SPACING = 0.9  # millimetres
FULL_SIGNAL = 1400  # of fluid, at gain 1, in stored units
FLUID, GREY, WHITE, PALLIDUM = 1.0, 0.56, 0.38, 0.3
_HALF = 0.5  # of a pixel: belongs to the shape

# Right half of each shape: corners at level 0, and at level 1.
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
class _Head:
    """What all slices of one patient share; lengths in pixels."""

    centre: tuple[float, float]
    brain: tuple[float, float]
    power: float
    age: float  # 0 young, 1 old: width of ventricles and sulci
    level: float
    tilt: float
    seed: int

    def place(self, corners: Points, side: int = 1) -> Points:
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        x, y = corners[:, 0] * side * self.brain[0], corners[:, 1] * self.brain[1]
        turned = np.stack([c * x - s * y, s * x + c * y], axis=1)
        return turned + np.asarray(self.centre)

    def at(self, u: float, v: float) -> tuple[float, float]:
        x, y = self.place(np.array([[u, v]]))[0]
        return float(x), float(y)


def _head(anatomy: np.random.Generator, own: np.random.Generator) -> _Head:
    width = anatomy.uniform(70, 80)
    return _Head(
        centre=(128 + own.normal(0, 2), 126 + own.normal(0, 2)),
        brain=(width, width * anatomy.uniform(1.18, 1.3)),
        power=anatomy.uniform(2.1, 2.4),
        age=anatomy.uniform(0, 1),
        level=float(np.clip(anatomy.uniform(0.0, 0.5) + own.normal(0, 0.15), 0, 1)),
        tilt=anatomy.normal(0, 0.04) + own.normal(0, 0.015),
        seed=int(anatomy.integers(2**62)),
    )


def mr_brain(patient: int, view: int, *, diseased: bool, scanner: Scanner) -> Phantom:
    """Draw one slice: bright foci of neurofibromatosis type 1, or a healthy brain.

    The foci lie in pallidum, thalamus, internal capsule and deep white matter, press on nothing
    and are less bright than fluid. Both kinds may have wide ventricles and sulci, bright caps on
    the horns, fluid around small vessels, and a vessel of slow flow.

    Args:
        patient: Seed of what all slices of the patient share.
        view: Number of the slice; slices differ in level and in the head's place.
        diseased: Draw the disease.
        scanner: The device.

    Returns:
        A phantom of (256, 256) uint16 within [0, 4095].
    """
    finding = "neurofibroma" if diseased else "healthy"
    return _slice(patient, view, finding=finding, scanner=scanner)


def mr_pretext(patient: int, finding: str, scanner: Scanner) -> Phantom:
    """Draw a slice with "mass with oedema", "lacune" or "none"."""
    return _slice(patient, 0, finding=finding, scanner=scanner)


def _slice(patient: int, view: int, *, finding: str, scanner: Scanner) -> Phantom:
    anatomy, own = generators(patient, view)
    head = _head(anatomy, own)
    shared = np.random.default_rng(head.seed)

    outside = _skull(head, shared)
    brain = _cortex(head, shared)
    brain = _deep_grey(brain, head, shared)
    brain = _ventricles(brain, head, shared)
    brain = _distract(brain, head, shared, own)
    brain, lesion = _lesions(brain, head, shared, finding)

    inside = cover(ellipse(head.centre, head.brain, angle=head.tilt, power=head.power), SIZE)
    signal = outside * (1 - inside) + brain * inside
    return Phantom(_acquire(signal, own, scanner), lesion & (inside > _HALF), finding)


def _skull(head: _Head, rng: np.random.Generator) -> Field:
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


def _cortex(head: _Head, rng: np.random.Generator) -> Field:
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


def _ramp(field: NDArray[np.floating], width: float) -> Field:
    """Return 0 where the field is below -width, 1 above width, and a line between."""
    return np.clip(field / (2 * width) + 0.5, 0, 1).astype(np.float32)


def _deep_grey(brain: Field, head: _Head, rng: np.random.Generator) -> Field:
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
            band = np.concatenate([line - [width, 0.2 * width], (line + [width, width])[::-1]])
            shapes.append((head.place(rounded(band), side), value))
    return overlay(brain, shapes, strength=1 - head.level)


def _ventricles(brain: Field, head: _Head, rng: np.random.Generator) -> Field:
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


def _mixed(brain: Field, share: Field, value: float) -> Field:
    return brain + share * (value - brain)


def _distract(
    brain: Field, head: _Head, shared: np.random.Generator, own: np.random.Generator
) -> Field:
    """Add what is bright and healthy: perivascular spaces, caps on the horns, a slow vessel."""
    image, brush = canvas(SIZE, 0.0)
    for _ in range(shared.integers(4, 22)):
        place = head.at(shared.uniform(-0.5, 0.5), shared.uniform(-0.45, 0.5))
        radii = (shared.uniform(0.7, 1.4), shared.uniform(0.7, 1.6))
        paint(brush, ellipse(place, radii, angle=own.uniform(0, 3), points=12), 0.8)
    for side in (-1, 1):
        if chance(shared, 0.5):
            u, v = (0.24, -0.44) if chance(shared, 0.5) else (0.33, 0.58)
            cap = blob(shared, head.at(side * u, v), (4.5, 3.0), angle=side * 0.7)
            paint(brush, cap, shared.uniform(0.4, 0.8))
    if chance(shared, 0.4):
        turn = shared.uniform(0, 6.28)
        place = head.at(0.93 * np.cos(turn), 0.93 * np.sin(turn))
        paint(brush, ellipse(place, (3.0, 2.2), angle=turn), 1.0)
    return _mixed(brain, picture(image), 0.9)


def _lesions(
    brain: Field, head: _Head, rng: np.random.Generator, finding: str
) -> tuple[Field, Mask]:
    if finding == "neurofibroma":
        return _bright_foci(brain, head, rng)
    if finding == "mass with oedema":
        return _mass(brain, head, rng)
    if finding == "lacune":
        return _lacunes(brain, head, rng)
    return brain, np.zeros((SIZE, SIZE), dtype=np.bool_)


def _bright_foci(brain: Field, head: _Head, rng: np.random.Generator) -> tuple[Field, Mask]:
    """Add foci as of DiPaolo and others, Radiology 195 (1995) 721: no mass effect, soft edge."""
    places = np.array(
        [[0.32, -0.06], [0.3, 0.06], [0.16, 0.16], [0.24, -0.02], [0.4, 0.28], [0.42, -0.32]]
    )
    image, brush = canvas(SIZE, 0.0)
    for _ in range(rng.integers(3, 6)):
        u, v = rng.choice(places) + rng.normal(0, 0.03, 2)
        place = head.at(u * rng.choice([-1, 1]), v)
        radii = (rng.uniform(4.5, 9), rng.uniform(4.0, 7))
        outline = blob(rng, place, radii, angle=rng.uniform(0, 3), rough=0.09)
        paint(brush, outline, rng.uniform(0.75, 1.0))
    share = picture(image)
    bright = _mixed(brain, np.clip(blurred(share, 1.7), 0, 1), 0.85)
    return np.maximum(brain, bright), share > _HALF


def _mass(brain: Field, head: _Head, rng: np.random.Generator) -> tuple[Field, Mask]:
    """Add a patchy mass with a dark rim, in fingers of bright oedema."""
    place = head.at(rng.choice([-1, 1]) * rng.uniform(0.35, 0.6), rng.uniform(-0.6, 0.6))
    radius = rng.uniform(10, 18)
    oedema = blob(rng, place, (radius * 1.7, radius * 1.6), rough=0.4)
    outer = blob(rng, place, (radius, radius * rng.uniform(0.8, 1.1)), rough=0.2)
    share = cover(oedema, SIZE, soft=2.5)
    brain = np.maximum(brain, _mixed(brain, share, 0.78))
    brain = _mixed(brain, cover(outer, SIZE, soft=0.8), 0.36)
    middle = outer.mean(axis=0)
    core = cover(middle + (outer - middle) * 0.8, SIZE, soft=1.0)
    brain = _mixed(brain, core, 0.62) + core * 0.15 * clouds(rng, SIZE, 5)
    return brain, share > _HALF


def _lacunes(brain: Field, head: _Head, rng: np.random.Generator) -> tuple[Field, Mask]:
    """Add one to three small holes of fluid."""
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    for _ in range(rng.integers(1, 4)):
        place = head.at(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5), rng.uniform(-0.3, 0.35))
        outline = blob(rng, place, (rng.uniform(3.0, 5.0), rng.uniform(2.6, 4.2)))
        brain = _mixed(brain, cover(outline, SIZE, soft=2.5), 0.6)
        share = cover(outline, SIZE, soft=0.5)
        brain = _mixed(brain, share, FLUID)
        mask |= share > _HALF
    return brain, mask


def _acquire(signal: Field, rng: np.random.Generator, scanner: Scanner) -> NDArray[np.uint16]:
    """Return what the scanner makes of it: coil shading, blur, Rician noise, whole numbers.

    Rician noise is the modulus of a complex Gaussian (Gudbjartsson and Patz, 1995).
    """
    shading = np.exp(0.22 * scanner.bias * clouds(rng, SIZE, 130))
    ideal = blurred(signal * shading, scanner.blur)
    sigma = 0.022 * scanner.noise * rng.uniform(0.8, 1.3)
    real, imaginary = sigma * rng.standard_normal((2, SIZE, SIZE), dtype=np.float32)
    scale = FULL_SIGNAL * scanner.gain * rng.uniform(0.8, 1.2)
    return np.clip(np.rint(scale * np.hypot(ideal + real, imaginary)), 0, 4095).astype(np.uint16)
