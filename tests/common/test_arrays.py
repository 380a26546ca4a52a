"""Laws of named arrays."""

import numpy as np
import pytest

from common.arrays import Array, digest, mean_of, size_in_bytes

ARRAYS: dict[str, Array] = {"b": np.arange(3, dtype=np.float32), "a": np.array(2, np.int64)}


def test_the_digest_is_the_same_on_every_machine() -> None:
    """The digest of fixed arrays is a literal that no platform or release changes."""
    assert digest(ARRAYS) == "54ac31e4c456392f2f7a9c0e9347a0d8438c0f2ac4194b69396e2ed88f06b600"


def test_the_digest_asks_neither_order_nor_memory_layout() -> None:
    """Order of insertion, strides and Fortran order change no bit of the digest."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = digest({"a": table, "b": table[:, ::2].copy()})
    assert digest({"b": table[:, ::2], "a": np.asfortranarray(table)}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.array([0, 1, 3], np.float32)},
        {"b": np.arange(3, dtype=np.float64)},
        {"b": np.arange(3, dtype=np.float32)[None]},
        {"b": np.array([-0.0, 1, 2], np.float32)},
        {"c": np.arange(3, dtype=np.float32)},
        {"b": np.arange(3, dtype=np.float32), "a": np.array([2], np.int64)},
        {},
    ],
    ids=["value", "dtype", "shape", "sign of zero", "name", "scalar or vector", "nothing"],
)
def test_the_digest_sees_every_difference(other: dict[str, Array]) -> None:
    """Another value, dtype, shape, sign of zero or name is another digest."""
    assert digest(other) != digest({"b": ARRAYS["b"]})
    assert digest(other) != digest(ARRAYS)


def test_size_counts_the_values_alone() -> None:
    """Three floats of 4 bytes and one integer of 8 take 20 bytes; nothing takes none."""
    assert size_in_bytes(ARRAYS) == 3 * 4 + 8
    assert size_in_bytes({}) == 0


def test_a_mean_is_of_sixty_four_bits() -> None:
    """Sums do not lose what single precision would; other types and arrays are left alone."""
    rng = np.random.default_rng(1)
    models: list[dict[str, Array]] = [
        {
            "w": (rng.normal(size=1000) * 1e4).astype(np.float32),
            "n": np.array(i),
            "o": rng.random(3),
        }
        for i in range(50)
    ]
    found = mean_of(models, ["w", "n"])
    stacked = np.stack([model["w"] for model in models])
    assert np.array_equal(found["w"], stacked.mean(axis=0, dtype=float).astype(np.float32))
    assert int(found["n"]) == 49
    assert found["o"] is models[-1]["o"]
