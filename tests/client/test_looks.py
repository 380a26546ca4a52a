"""Laws of what is kept of a source: small, and the same after a way through JSON."""

import json

import numpy as np
import pytest

from client.looks import hashes_of, look_at, look_from, said_of
from client.pictures import Facts, Picture, Source

RNG = np.random.default_rng(0)


def source_of(*pictures: np.ndarray) -> Source:
    parts = tuple(Picture(p.astype(np.float32), str(i + 1)) for i, p in enumerate(pictures))
    facts = Facts(kind="DICOM", rows=8, columns=8, age="40-49", notes=("gaps",), low=-1024.0)
    return Source(parts, facts)


def test_a_look_survives_json() -> None:
    """Every field comes back as it was, those of the header too."""
    look = look_at(source_of(RNG.random((8, 8)), RNG.random((8, 8, 3))))
    assert look_from(json.loads(json.dumps(said_of(look)))) == look


@pytest.mark.parametrize("wrong", [{}, {"surplus": 1}])
def test_a_look_of_other_fields_is_refused(wrong: dict[str, int]) -> None:
    """Fields that are missing or unknown do not pass."""
    said = said_of(look_at(source_of(RNG.random((8, 8))))) if wrong else {"facts": {}}
    with pytest.raises((TypeError, KeyError)):
        look_from(said | wrong)


def test_shares_and_mean_are_of_all_pictures() -> None:
    """Pixels count alike, whichever picture they are in."""
    look = look_at(source_of(np.zeros((10, 10)), np.ones((10, 10)), np.full((20, 10), 0.5)))
    assert (look.dark, look.bright) == (0.25, 0.25)
    assert look.mean == pytest.approx(0.5)
    assert look.parts == ("1", "2", "3")


def test_the_hash_is_of_the_middle_picture() -> None:
    """The first and the last slice of a volume, which show little, decide nothing."""
    middle = RNG.random((32, 32)).astype(np.float32)
    hashes = {
        look_at(source_of(RNG.random((32, 32)), middle, RNG.random((32, 32)))).phash
        for _ in range(3)
    }
    assert hashes == {hashes_of(middle)[0]}
    assert len(hashes.pop()) == 16


def test_colour_is_hashed_as_its_grey() -> None:
    """A grey picture has the same hash with one channel and with three equal ones."""
    grey = RNG.random((40, 40)).astype(np.float32)
    assert hashes_of(grey) == hashes_of(np.repeat(grey[..., None], 3, axis=2))
