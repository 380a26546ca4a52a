"""Colour photographs of the retina with and without a choroidal melanoma: the whole picture."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from simulations.anatomy_fundus import (
    RETINA,
    SIZE,
    Eye,
    add_disc,
    add_vessels,
    draw_background,
    make_eye,
    soft_spot,
    tint,
)
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
    generators,
)

_HALF = 0.5  # of a pixel: belongs to the shape


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
    """Draw a photograph with "drusen", "haemorrhages", a flat "naevus" or "none"."""
    return _photograph(patient, 0, finding=finding, scanner=scanner)


def _photograph(patient: int, view: int, *, finding: str, scanner: Scanner) -> Phantom:
    """Lay one tissue over the other, from the choroid to the front of the retina."""
    anatomy, own = generators(patient, view)
    eye = make_eye(anatomy, own)
    shared = np.random.default_rng(eye.seed)

    retina = draw_background(eye, shared)
    lesion = np.zeros((SIZE, SIZE), dtype=np.bool_)
    if finding in {"healthy", "melanoma"}:
        _add_benign(retina, eye, shared)
    if finding == "naevus":
        lesion = _add_naevus(retina, eye, shared, shared.uniform(12, 40))
    if finding == "melanoma":
        lesion = _add_melanoma(retina, eye, shared)
    if finding == "drusen":
        lesion = _add_drusen(retina, eye, shared, int(shared.integers(25, 80)), (1.5, 5.0))
    add_disc(retina, eye)
    add_vessels(retina, eye, shared)
    if finding == "haemorrhages":
        lesion = _add_haemorrhages(retina, eye, shared)
    pixels, seen = _expose(retina, own, scanner)
    return Phantom(pixels, lesion & seen, finding)


def _add_benign(retina: Field, eye: Eye, rng: np.random.Generator) -> None:
    """Add what may worry a beginner: a flat naevus, a few small drusen."""
    if chance(rng, 0.6):
        _add_naevus(retina, eye, rng, rng.uniform(8, 19))
    if chance(rng, 0.5):
        _add_drusen(retina, eye, rng, int(rng.integers(3, 16)), (1.0, 2.4))


def _add_naevus(retina: Field, eye: Eye, rng: np.random.Generator, radius: float) -> Mask:
    """Add a flat pigmented patch; ``radius`` in pixels of the photograph."""
    naevus = blob(rng, _somewhere(eye, rng, 60), (radius, radius * 0.85))
    share = cover(naevus, SIZE, soft=3)
    tint(retina, rng.uniform(0.45, 0.75) * share, (0.33, 0.25, 0.2))
    return share > _HALF


def _somewhere(eye: Eye, rng: np.random.Generator, apart: float) -> tuple[float, float]:
    """Return a place on the retina at least ``apart`` from the disc."""
    place = eye.disc
    while np.hypot(place[0] - eye.disc[0], place[1] - eye.disc[1]) < apart:
        turn, far = rng.uniform(0, 2 * np.pi), RETINA * np.sqrt(rng.uniform(0.08, 0.55))
        place = eye.at(far * np.cos(turn), far * np.sin(turn))
    return place


def _add_melanoma(retina: Field, eye: Eye, rng: np.random.Generator) -> Mask:
    """Add a raised pigmented mass under the retina, lipofuscin on it and fluid at its edge."""
    radius = rng.uniform(28, 60)
    x, y = place = _somewhere(eye, rng, radius + 12)
    outline = blob(rng, place, (radius, radius * rng.uniform(0.75, 1)), angle=rng.uniform(0, 3))
    share = cover(outline, SIZE, soft=4.5)
    fluid = cover(place + (outline - place) * 1.25, SIZE, soft=9)
    tint(retina, 0.18 * fluid, (0.85, 0.55, 0.36))
    shade = rng.uniform(-0.05, 0.05)
    tint(retina, rng.uniform(0.55, 0.88) * share, (0.37 + shade, 0.245 + shade, 0.165 + shade))
    lean = 0.38 * radius  # light from the upper left, as on a dome
    dome = soft_spot((x - lean, y - lean), 0.5 * radius)
    dome = dome - 0.6 * soft_spot((x + lean, y + lean), 0.5 * radius)
    retina *= (1 + share * (0.3 * dome + 0.06 * clouds(rng, SIZE, 16)))[..., None]
    spots = []
    for _ in range(rng.integers(5, 26)):
        turn, far = rng.uniform(0, 2 * np.pi), 0.85 * radius * np.sqrt(rng.uniform(0, 1))
        spot = (x + far * np.cos(turn), y + far * np.sin(turn))
        spots.append(blob(rng, spot, (rng.uniform(1.5, 5), rng.uniform(1.5, 3.5)), rough=0.3))
    tint(retina, 0.7 * _specks(spots) * share, (0.82, 0.43, 0.14))
    return share > _HALF


def _add_drusen(
    retina: Field, eye: Eye, rng: np.random.Generator, count: int, radii: tuple[float, float]
) -> Mask:
    """Add yellow deposits around the fovea."""
    spots = [
        blob(rng, eye.at(rng.normal(0, 30), rng.normal(0, 28)), (radius, radius))
        for radius in rng.uniform(*radii, count)
    ]
    share = _specks(spots)
    tint(retina, 0.65 * share, (0.93, 0.78, 0.42))
    return share > _HALF


def _add_haemorrhages(retina: Field, eye: Eye, rng: np.random.Generator) -> Mask:
    """Add dark red dots, blots and flames."""
    spots = []
    for _ in range(rng.integers(8, 30)):
        radii = (rng.uniform(2, 9), rng.uniform(2, 4.5))
        place = _somewhere(eye, rng, 30)
        spots.append(blob(rng, place, radii, angle=rng.uniform(0, 3), rough=0.25))
    share = _specks(spots)
    tint(retina, 0.78 * share, (0.36, 0.05, 0.04))
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
    far = np.hypot(x, y) / RETINA
    seen = far < 1
    light = 1 - (0.15 + 0.2 * scanner.bias + rng.uniform(0, 0.2)) * far**2.5
    if chance(rng, 0.6):
        turn = rng.uniform(0, 2 * np.pi)
        edge = (x * float(np.cos(turn)) + y * float(np.sin(turn))) / RETINA - rng.uniform(0.35, 0.8)
        light = light * (1 - rng.uniform(0.3, 0.7) * np.clip(edge / 0.35, 0, 1))
    level = (retina[::4, ::4] * light[::4, ::4, None])[seen[::4, ::4]].mean()
    light = light * (0.36 * scanner.gain * rng.uniform(0.8, 1.2) / level)
    picture = retina * light[..., None].astype(np.float32)
    balance = np.asarray(scanner.tint) * rng.normal(1, 0.05, 3)
    picture *= balance.astype(np.float32)
    picture += (0.014 * scanner.noise) * rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    np.exp(-1.35 * picture, out=picture)
    whole = np.clip(306 * (1 - picture) + 0.5, 0, 255).astype(np.uint8)  # a soft shoulder
    image = Image.fromarray(whole).filter(ImageFilter.GaussianBlur(scanner.blur))
    return np.asarray(image) * seen[..., None], seen
