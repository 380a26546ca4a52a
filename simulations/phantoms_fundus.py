"""Colour photographs of the retina, with and without a choroidal melanoma.

The fovea is in the middle of the picture; the disc lies to the right in a right eye. Lengths
are in pixels; a disc diameter is about 44 of the 384.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from simulations.drawing import (
    Field,
    Mask,
    Phantom,
    Points,
    Scanner,
    blob,
    chance,
    clouds,
    cover,
    ellipse,
    generators,
)

SIZE = 384
_RETINA = 183.0  # radius of the picture's circle
_VESSEL_FINE = 2
_HALF = 0.5  # of a pixel: belongs to the shape


@dataclass(frozen=True)
class _Eye:
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


def _eye(anatomy: np.random.Generator, own: np.random.Generator) -> _Eye:
    side = int(anatomy.choice([-1, 1]))
    shift = (own.normal(0, 9), own.normal(0, 9))
    middle = SIZE / 2
    disc = (
        middle + side * anatomy.uniform(98, 114) + shift[0],
        middle + anatomy.normal(-6, 5) + shift[1],
    )
    return _Eye(
        disc=disc,
        disc_radius=anatomy.uniform(20, 24),
        cup=anatomy.uniform(0.3, 0.6),
        side=side,
        shift=shift,
        seed=int(anatomy.integers(2**62)),
    )


def fundus(patient: int, view: int, *, diseased: bool, scanner: Scanner) -> Phantom:
    """Draw one photograph: choroidal melanoma, or none.

    The melanoma is larger than two discs, grey-brown, raised, fuzzy at its edge, with orange
    pigment on it. Both kinds may have a flat naevus below one disc diameter, a few small drusen
    and a shadow at the rim. The camera exposes each picture to about one brightness, whatever is
    on it, as automatic exposure does.

    Args:
        patient: Seed of what all photographs of the eye share.
        view: Number of the photograph; they differ in gaze and light.
        diseased: Draw the disease.
        scanner: The camera.

    Returns:
        A phantom of (384, 384, 3) uint8.
    """
    finding = "melanoma" if diseased else "healthy"
    return _photograph(patient, view, finding=finding, scanner=scanner)


def fundus_pretext(patient: int, finding: str, scanner: Scanner) -> Phantom:
    """Draw a photograph with "drusen", "haemorrhages" or "none"."""
    return _photograph(patient, 0, finding=finding, scanner=scanner)


def _photograph(patient: int, view: int, *, finding: str, scanner: Scanner) -> Phantom:
    """Lay one tissue over the other, from the choroid to the front of the retina."""
    anatomy, own = generators(patient, view)
    eye = _eye(anatomy, own)
    shared = np.random.default_rng(eye.seed)

    retina = _background(eye, shared)
    lesion = np.zeros((SIZE, SIZE), dtype=np.bool_)
    if finding in {"healthy", "melanoma"}:
        _add_benign(retina, eye, shared)
    if finding == "melanoma":
        lesion = _add_melanoma(retina, eye, shared)
    if finding == "drusen":
        lesion = _add_drusen(retina, eye, shared, int(shared.integers(25, 80)), (1.5, 5.0))
    _add_disc(retina, eye)
    _add_vessels(retina, eye, shared)
    if finding == "haemorrhages":
        lesion = _add_haemorrhages(retina, eye, shared)
    pixels, seen = _expose(retina, own, scanner)
    return Phantom(pixels, lesion & seen, finding)


def _tint(retina: Field, share: Field, colour: tuple[float, float, float]) -> None:
    """Lay a share of another colour over the retina, in place."""
    rows, columns = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
    if rows.size == 0:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part = retina[box]
    part += share[box][..., None] * (np.array(colour, dtype=np.float32) - part)


def _soft_spot(place: tuple[float, float], radius: float) -> Field:
    """Return a Gaussian hill of height 1."""
    x = np.exp(-0.5 * ((np.arange(SIZE, dtype=np.float32) - place[0]) / radius) ** 2)
    y = np.exp(-0.5 * ((np.arange(SIZE, dtype=np.float32) - place[1]) / radius) ** 2)
    hill = np.outer(y, x)
    return np.asarray(np.where(hill > 1 / 512, hill, 0), dtype=np.float32)


def _background(eye: _Eye, rng: np.random.Generator) -> Field:
    """Return choroid and pigment layer, with the dark macula and a spark at the fovea."""
    pigment = rng.uniform(0, 1)  # pale to dark
    colour = np.array([0.80, 0.40, 0.20]) + pigment * np.array([-0.16, -0.14, -0.07])
    texture = 0.045 * clouds(rng, SIZE, 70) + 0.022 * clouds(rng, SIZE, 14)
    stripes = 0.03 * (1 - pigment) * np.abs(clouds(rng, SIZE, 18))  # choroidal vessels
    retina = (1 + texture + stripes)[..., None] * colour.astype(np.float32)
    retina[..., 1] *= 1 + 0.03 * clouds(rng, SIZE, 50)
    macula = _soft_spot(eye.at(0, 0), rng.uniform(22, 32))
    _tint(retina, 0.33 * macula, (0.33, 0.05, 0.0))
    _tint(retina, 0.25 * _soft_spot(eye.at(0, 0), 2.5), (0.95, 0.7, 0.45))
    return retina


def _add_disc(retina: Field, eye: _Eye) -> None:
    """Add the optic disc with its cup, and the thick nerve fibres around it."""
    radii = (eye.disc_radius * 0.93, eye.disc_radius * 1.05)
    _tint(retina, 0.22 * _soft_spot(eye.disc, 34), (0.95, 0.62, 0.36))
    _tint(retina, 0.92 * cover(ellipse(eye.disc, radii), SIZE, soft=1.8), (0.93, 0.6, 0.33))
    centre = (eye.disc[0] - 1.5 * eye.side, eye.disc[1])
    cup = ellipse(centre, (radii[0] * eye.cup, radii[1] * eye.cup))
    _tint(retina, 0.85 * cover(cup, SIZE, soft=2.5), (0.99, 0.8, 0.56))


def _add_vessels(retina: Field, eye: _Eye, rng: np.random.Generator) -> None:
    """Add four arteries and four veins with their branches; none crosses the fovea."""
    away = 1 - _soft_spot(eye.at(0, 0), 17)
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
                _branch(brush, rng, (0.0, 0.0), heading, bend, width, 260.0, eye)
        soft = image.reduce(_VESSEL_FINE).filter(ImageFilter.GaussianBlur(0.4))
        _tint(retina, strength * away * np.asarray(soft, dtype=np.float32) / 255, colour)


def _branch(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    start: tuple[float, float],
    heading: float,
    bend: float,
    width: float,
    length: float,
    eye: _Eye,
    depth: int = 0,
) -> None:
    """Draw a vessel and its branches; places are from the disc, x away from the fovea."""
    step = 6.0
    count = max(3, int(length / step))
    waver = np.cumsum(rng.normal(0, 0.045, count))
    direction = heading + bend * step * np.arange(count) + waver - waver.mean() * 0.5
    xs = start[0] + np.cumsum(step * np.cos(direction))
    ys = start[1] + np.cumsum(step * np.sin(direction))
    points = np.stack([eye.disc[0] + eye.side * xs, eye.disc[1] + ys], axis=1) * _VESSEL_FINE
    for part in range(0, count - 1, 9):
        thick = max(1.0, width * (1 - 0.65 * part / count)) * _VESSEL_FINE
        section = points[part : part + 11].ravel().tolist()
        brush.line(section, fill=int(255 * min(1.0, thick / 3)), width=round(thick), joint="curve")
    if depth == 2 or width < 1.0:  # noqa: PLR2004 - the finest that the camera resolves
        return
    side = rng.choice([-1, 1])
    for place in np.arange(0.12, 0.95, 0.2 if depth == 0 else 0.3) + rng.uniform(-0.05, 0.05):
        index = min(int(place * count), count - 1)
        side = -side
        turn = direction[index] + side * rng.uniform(0.45, 0.95)
        _branch(
            brush, rng, (float(xs[index]), float(ys[index])), turn, -side * rng.uniform(0, 0.006),
            width * rng.uniform(0.45, 0.65), length * rng.uniform(0.28, 0.5), eye, depth + 1,
        )  # fmt: skip


def _add_benign(retina: Field, eye: _Eye, rng: np.random.Generator) -> None:
    """Add what may worry a beginner: a flat naevus, a few small drusen."""
    if chance(rng, 0.5):
        radius = rng.uniform(7, 17)
        naevus = blob(rng, _somewhere(eye, rng, 60), (radius, radius * 0.85))
        _tint(retina, 0.55 * cover(naevus, SIZE, soft=3), (0.33, 0.25, 0.2))
    if chance(rng, 0.5):
        _add_drusen(retina, eye, rng, int(rng.integers(3, 16)), (1.0, 2.4))


def _somewhere(eye: _Eye, rng: np.random.Generator, apart: float) -> tuple[float, float]:
    """Return a place on the retina at least ``apart`` from the disc."""
    place = eye.disc
    while np.hypot(place[0] - eye.disc[0], place[1] - eye.disc[1]) < apart:
        turn, far = rng.uniform(0, 2 * np.pi), _RETINA * np.sqrt(rng.uniform(0.08, 0.55))
        place = eye.at(far * np.cos(turn), far * np.sin(turn))
    return place


def _add_melanoma(retina: Field, eye: _Eye, rng: np.random.Generator) -> Mask:
    """Add a raised pigmented mass under the retina, lipofuscin on it and fluid at its edge."""
    radius = rng.uniform(34, 62)
    x, y = place = _somewhere(eye, rng, radius + 12)
    outline = blob(rng, place, (radius, radius * rng.uniform(0.75, 1)), angle=rng.uniform(0, 3))
    share = cover(outline, SIZE, soft=4.5)
    fluid = cover(place + (outline - place) * 1.25, SIZE, soft=9)
    _tint(retina, 0.18 * fluid, (0.85, 0.55, 0.36))
    shade = rng.uniform(-0.05, 0.05)
    _tint(retina, 0.86 * share, (0.37 + shade, 0.245 + shade, 0.165 + shade))
    lean = 0.38 * radius  # light from the upper left, as on a dome
    dome = _soft_spot((x - lean, y - lean), 0.5 * radius)
    dome = dome - 0.6 * _soft_spot((x + lean, y + lean), 0.5 * radius)
    retina *= (1 + share * (0.3 * dome + 0.06 * clouds(rng, SIZE, 16)))[..., None]
    spots = []
    for _ in range(rng.integers(12, 30)):
        turn, far = rng.uniform(0, 2 * np.pi), 0.85 * radius * np.sqrt(rng.uniform(0, 1))
        spot = (x + far * np.cos(turn), y + far * np.sin(turn))
        spots.append(blob(rng, spot, (rng.uniform(1.5, 5), rng.uniform(1.5, 3.5)), rough=0.3))
    _tint(retina, 0.7 * _specks(spots) * share, (0.82, 0.43, 0.14))
    return share > _HALF


def _add_drusen(
    retina: Field, eye: _Eye, rng: np.random.Generator, count: int, radii: tuple[float, float]
) -> Mask:
    """Add yellow deposits around the fovea."""
    spots = []
    for radius in rng.uniform(*radii, count):
        spots.append(blob(rng, eye.at(rng.normal(0, 30), rng.normal(0, 28)), (radius, radius)))
    share = _specks(spots)
    _tint(retina, 0.65 * share, (0.93, 0.78, 0.42))
    return share > _HALF


def _add_haemorrhages(retina: Field, eye: _Eye, rng: np.random.Generator) -> Mask:
    """Add dark red dots, blots and flames."""
    spots = []
    for _ in range(rng.integers(8, 30)):
        radii = (rng.uniform(2, 9), rng.uniform(2, 4.5))
        place = _somewhere(eye, rng, 30)
        spots.append(blob(rng, place, radii, angle=rng.uniform(0, 3), rough=0.25))
    share = _specks(spots)
    _tint(retina, 0.78 * share, (0.36, 0.05, 0.04))
    return share > _HALF


def _specks(outlines: list[Points]) -> Field:
    """Return the share of each pixel that lies in any of many small outlines."""
    image = Image.new("L", (SIZE, SIZE), 0)
    brush = ImageDraw.Draw(image)
    for outline in outlines:
        brush.polygon(outline.ravel().tolist(), fill=255)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.9)), dtype=np.float32) / 255


def _expose(
    retina: Field, rng: np.random.Generator, scanner: Scanner
) -> tuple[NDArray[np.uint8], Mask]:
    """Return what the camera makes of it, and the circle that it sees.

    Vignette, a shadow of lid or iris at the rim, automatic exposure, the camera's tint, blur,
    noise, and eight bits a channel.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - (SIZE - 1) / 2
    far = np.hypot(x, y) / _RETINA
    seen = far < 1
    light = 1 - (0.2 + 0.25 * scanner.bias) * far**2.5
    if chance(rng, 0.5):
        turn = rng.uniform(0, 2 * np.pi)
        edge = (x * np.cos(turn) + y * np.sin(turn)) / _RETINA - rng.uniform(0.45, 0.8)
        light = light * (1 - rng.uniform(0.3, 0.7) * np.clip(edge / 0.35, 0, 1))
    level = (retina[::4, ::4] * light[::4, ::4, None])[seen[::4, ::4]].mean()
    light = light * (0.36 * scanner.gain * rng.uniform(0.8, 1.2) / level)
    picture = retina * light[..., None]
    picture *= np.asarray(scanner.tint, dtype=np.float32)
    picture += (0.014 * scanner.noise) * rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    picture = 1 - np.exp(-1.35 * np.maximum(picture, 0))  # a shoulder: no hard clipping
    whole = (255 * np.minimum(picture * 1.2, 1) + 0.5).astype(np.uint8)
    image = Image.fromarray(whole).filter(ImageFilter.GaussianBlur(scanner.blur))
    return np.asarray(image) * seen[..., None], seen
