"""Axial T2-weighted MR of the brain with and without neurofibromatosis type 1: the whole slice."""

import numpy as np
from numpy.typing import NDArray

from simulations.anatomy_mr import (
    FLUID,
    SIZE,
    Head,
    add_deep_grey,
    add_ventricles,
    draw_cortex,
    draw_skull,
    make_head,
)
from simulations.drawing import (
    Field,
    Mask,
    Phantom,
    Scanner,
    blob,
    blurred,
    canvas,
    chance,
    clouds,
    cover,
    ellipse,
    generators,
    paint,
    picture,
)

FULL_SIGNAL = 1400  # of fluid, at gain 1, in stored units
_HALF = 0.5  # of a pixel: belongs to the shape


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
    head = make_head(anatomy, own)
    shared = np.random.default_rng(head.seed)

    outside = draw_skull(head, shared)
    brain = draw_cortex(head, shared)
    brain = add_deep_grey(brain, head, shared)
    brain = add_ventricles(brain, head, shared)
    brain = _add_distractors(brain, head, shared, own)
    brain, lesion = _add_lesions(brain, head, shared, finding)

    inside = cover(ellipse(head.centre, head.brain, angle=head.tilt, power=head.power), SIZE)
    signal = outside * (1 - inside) + brain * inside
    return Phantom(_acquire(signal, own, scanner), lesion & (inside > _HALF), finding)


def _add_distractors(
    brain: Field, head: Head, shared: np.random.Generator, own: np.random.Generator
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


def _mixed(brain: Field, share: Field, value: float) -> Field:
    return brain + share * (value - brain)


def _add_lesions(
    brain: Field, head: Head, rng: np.random.Generator, finding: str
) -> tuple[Field, Mask]:
    if finding == "neurofibroma":
        return _add_bright_foci(brain, head, rng)
    if finding == "mass with oedema":
        return _add_mass(brain, head, rng)
    if finding == "lacune":
        return _add_lacunes(brain, head, rng)
    return brain, np.zeros((SIZE, SIZE), dtype=np.bool_)


def _add_bright_foci(brain: Field, head: Head, rng: np.random.Generator) -> tuple[Field, Mask]:
    """Add foci as of DiPaolo and others, Radiology 195 (1995) 721: no mass effect, soft edge."""
    places = np.array(
        [[0.32, -0.06], [0.3, 0.06], [0.16, 0.16], [0.24, -0.02], [0.4, 0.28], [0.42, -0.32]]
    )
    image, brush = canvas(SIZE, 0.0)
    for _ in range(rng.integers(2, 6)):
        u, v = rng.choice(places) + rng.normal(0, 0.03, 2)
        place = head.at(u * rng.choice([-1, 1]), v)
        radii = (rng.uniform(4.0, 8.5), rng.uniform(3.5, 6.5))
        outline = blob(rng, place, radii, angle=rng.uniform(0, 3), rough=0.09)
        paint(brush, outline, rng.uniform(0.65, 1.0))
    share = picture(image)
    bright = _mixed(brain, np.clip(blurred(share, 1.7), 0, 1), 0.85)
    return np.maximum(brain, bright), share > _HALF


def _add_mass(brain: Field, head: Head, rng: np.random.Generator) -> tuple[Field, Mask]:
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


def _add_lacunes(brain: Field, head: Head, rng: np.random.Generator) -> tuple[Field, Mask]:
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
    modulus = scale * np.hypot(ideal + real, imaginary)
    return np.asarray(np.clip(np.rint(modulus), 0, 4095), dtype=np.uint16)
