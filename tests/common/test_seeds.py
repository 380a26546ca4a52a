"""Laws of named random streams."""

import pytest

from common.seeds import stream


def test_a_stream_is_the_same_on_every_machine() -> None:
    """The seeds of fixed names are literals that no platform or release changes."""
    assert stream(7, "backbone") == 575432698626869225
    assert stream(0) == 715937268961309149


def test_other_names_are_other_streams() -> None:
    """Order, type, number and borders of the names all count."""
    names: list[tuple[str | int, ...]] = [
        ("a", 1), ("a", "1"), (1, "a"), ("a",), ("a1",), ("a", 1, 1), ("a", 2), ("A", 1), ("", "a"),
    ]  # fmt: skip
    assert len({stream(*name) for name in names}) == len(names)


def test_a_seed_fits_every_generator() -> None:
    """A seed lies in [0, 2**63), which torch and NumPy both take."""
    seeds = [stream("x", number) for number in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert len(set(seeds)) == len(seeds)


def test_a_stream_needs_a_name() -> None:
    """No name at all is an error of the caller."""
    with pytest.raises(ValueError, match="at least one name"):
        stream()
