"""A healthy retina, as a fundus camera sees it, in red, green and blue within [0, 1].

The fovea is in the middle of the picture; the disc lies to the right in a right eye. Lengths
are in pixels; a disc diameter is about 44 of the 384.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from simulations.drawing import (
    Field,
    clouds,
    cover,
    ellipse,
)

SIZE = 384
RETINA = 183.0  # radius of the picture's circle
_VESSEL_FINE = 2


@dataclass(frozen=True)
class Eye:
    """What all photographs of one eye share."""

    disc: tuple[float, float]
    disc_radius: float
    cup: float
    side: int  # 1 when the disc lies to the right
    shift: tuple[float, float]  # of this view: where the patient looked
    seed: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return a place given from the fovea, x towards the disc."""
        middle = SIZE / 2
        return middle + self.side * x + self.shift[0], middle + y + self.shift[1]


def make_eye(anatomy: np.random.Generator, own: np.random.Generator) -> Eye:
    """Draw an eye, and this view's gaze."""
    side = int(anatomy.choice([-1, 1]))
    shift = (own.normal(0, 9), own.normal(0, 9))
    middle = SIZE / 2
    disc = (
        middle + side * anatomy.uniform(98, 114) + shift[0],
        middle + anatomy.normal(-6, 5) + shift[1],
    )
    return Eye(
        disc=disc,
        disc_radius=anatomy.uniform(20, 24),
        cup=anatomy.uniform(0.3, 0.6),
        side=side,
        shift=shift,
        seed=int(anatomy.integers(2**62)),
    )


def tint(retina: Field, share: Field, colour: tuple[float, float, float]) -> None:
    """Lay a share of another colour over the retina, in place."""
    rows, columns = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
    if rows.size == 0:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part = retina[box]
    part += share[box][..., None] * (np.array(colour, dtype=np.float32) - part)


def soft_spot(place: tuple[float, float], radius: float) -> Field:
    """Return a Gaussian hill of height 1."""
    x = np.exp(-0.5 * ((np.arange(SIZE, dtype=np.float32) - place[0]) / radius) ** 2)
    y = np.exp(-0.5 * ((np.arange(SIZE, dtype=np.float32) - place[1]) / radius) ** 2)
    hill = np.outer(y, x)
    return np.asarray(np.where(hill > 1 / 512, hill, 0), dtype=np.float32)


def draw_background(eye: Eye, rng: np.random.Generator) -> Field:
    """Return choroid and pigment layer, with the dark macula and a spark at the fovea."""
    pigment = rng.uniform(0, 1)  # pale to dark
    colour = np.array([0.80, 0.40, 0.20]) + pigment * np.array([-0.16, -0.14, -0.07])
    texture = 0.045 * clouds(rng, SIZE, 70) + 0.022 * clouds(rng, SIZE, 14)
    stripes = 0.03 * (1 - pigment) * np.abs(clouds(rng, SIZE, 18))  # choroidal vessels
    retina = (1 + texture + stripes)[..., None] * colour.astype(np.float32)
    retina[..., 1] *= 1 + 0.03 * clouds(rng, SIZE, 50)
    macula = soft_spot(eye.at(0, 0), rng.uniform(22, 32))
    tint(retina, 0.33 * macula, (0.33, 0.05, 0.0))
    tint(retina, 0.25 * soft_spot(eye.at(0, 0), 2.5), (0.95, 0.7, 0.45))
    return retina


def add_disc(retina: Field, eye: Eye) -> None:
    """Add the optic disc with its cup, and the thick nerve fibres around it."""
    radii = (eye.disc_radius * 0.93, eye.disc_radius * 1.05)
    tint(retina, 0.22 * soft_spot(eye.disc, 34), (0.95, 0.62, 0.36))
    tint(retina, 0.92 * cover(ellipse(eye.disc, radii), SIZE, soft=1.8), (0.93, 0.6, 0.33))
    centre = (eye.disc[0] - 1.5 * eye.side, eye.disc[1])
    cup = ellipse(centre, (radii[0] * eye.cup, radii[1] * eye.cup))
    tint(retina, 0.85 * cover(cup, SIZE, soft=2.5), (0.99, 0.8, 0.56))


@dataclass(frozen=True)
class _Vessel:
    """A vessel's course; places are from the disc, x away from the fovea."""

    start: tuple[float, float]
    heading: float
    bend: float  # radians per pixel
    width: float
    length: float


def add_vessels(retina: Field, eye: Eye, rng: np.random.Generator) -> None:
    """Add four arteries and four veins with their branches; none crosses the fovea."""
    away = 1 - soft_spot(eye.at(0, 0), 17)
    for width, lag, strength, colour in (
        (5.2, 0.0, 0.75, (0.42, 0.10, 0.07)),  # veins
        (3.9, 0.16, 0.62, (0.60, 0.18, 0.10)),  # arteries
    ):
        image = Image.new("L", (SIZE * _VESSEL_FINE,) * 2, 0)
        brush = ImageDraw.Draw(image)
        for up in (-1, 1):
            steep, bend = rng.uniform(1.15, 1.4) + lag, rng.uniform(0.0062, 0.0085)
            arcade = (np.pi - up * steep, up * bend)  # around the macula
            nasal = (up * rng.uniform(0.5, 1.0), up * rng.normal(0, 0.003))
            for heading, bend in (arcade, nasal):
                _branch(brush, rng, eye, _Vessel((0.0, 0.0), heading, bend, width, 260.0))
        share = np.asarray(image.reduce(_VESSEL_FINE), dtype=np.float32) / 255
        tint(retina, strength * away * share, colour)


def _branch(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    eye: Eye,
    vessel: _Vessel,
    depth: int = 0,
) -> None:
    """Draw a vessel, thinner towards its end, and its branches to both sides in turn."""
    step = 6.0
    count = max(3, int(vessel.length / step))
    waver = np.cumsum(rng.normal(0, 0.045, count))
    direction = vessel.heading + vessel.bend * step * np.arange(count) + waver - 0.5 * waver.mean()
    xs = vessel.start[0] + np.cumsum(step * np.cos(direction))
    ys = vessel.start[1] + np.cumsum(step * np.sin(direction))
    points = np.stack([eye.disc[0] + eye.side * xs, eye.disc[1] + ys], axis=1) * _VESSEL_FINE
    for part in range(0, count - 1, 9):
        thick = max(1.0, vessel.width * (1 - 0.65 * part / count)) * _VESSEL_FINE
        section = points[part : part + 11].ravel().tolist()
        joint = "curve" if thick > 4 else None  # noqa: PLR2004 - thin lines have no gaps
        brush.line(section, fill=int(255 * min(1.0, thick / 3)), width=round(thick), joint=joint)
    if depth == 2 or vessel.width < 1.0:  # noqa: PLR2004 - the finest that the camera resolves
        return
    side = rng.choice([-1, 1])
    for place in np.arange(0.12, 0.95, 0.2 if depth == 0 else 0.3) + rng.uniform(-0.05, 0.05):
        index = min(int(place * count), count - 1)
        side = -side
        child = _Vessel(
            start=(float(xs[index]), float(ys[index])),
            heading=direction[index] + side * rng.uniform(0.45, 0.95),
            bend=-side * rng.uniform(0, 0.006),
            width=vessel.width * rng.uniform(0.45, 0.65),
            length=vessel.length * rng.uniform(0.28, 0.5),
        )
        _branch(brush, rng, eye, child, depth + 1)
