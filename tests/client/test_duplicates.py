"""Laws of duplicates: against all pairs one by one, in bounded time and memory."""

import resource
import time

import numpy as np
import pytest

from client.duplicates import COARSE_BITS, FINE_BITS, alike, nearly_alike


def hashes_of(n: int, seed: int, *, alike_every: int = 5) -> tuple[list[str], list[str]]:
    """Return hashes of n images; some are earlier ones with a few bits flipped."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n, 320)).astype(np.uint8)
    for i in range(alike_every, n, alike_every):
        bits[i] = bits[rng.integers(i)]
        bits[i, rng.choice(64, rng.integers(0, 11), replace=False)] ^= 1
        bits[i, 64 + rng.choice(256, rng.integers(0, 31), replace=False)] ^= 1
    coarse, fine = np.packbits(bits[:, :64], axis=1), np.packbits(bits[:, 64:], axis=1)
    return [row.tobytes().hex() for row in coarse], [row.tobytes().hex() for row in fine]


def by_brute_force(coarse: list[str], fine: list[str]) -> list[list[int]]:
    """Compare each pair by itself, and follow the ties."""
    n = len(coarse)
    ties = {
        (i, j)
        for i in range(n)
        for j in range(n)
        if i != j
        and (int(coarse[i], 16) ^ int(coarse[j], 16)).bit_count() <= COARSE_BITS
        and (int(fine[i], 16) ^ int(fine[j], 16)).bit_count() <= FINE_BITS
    }
    left, groups = set(range(n)), []
    while left:
        group, todo = set(), [min(left)]
        while todo:
            one = todo.pop()
            if one not in group:
                group.add(one)
                todo += [j for i, j in ties if i == one]
        left -= group
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_those_of_all_pairs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a chunk, the groups are those that brute force finds."""
    coarse, fine = hashes_of(90, seed)
    expected = by_brute_force(coarse, fine)
    assert expected
    for chunk in (16, 1000, 2_000_000):
        monkeypatch.setattr("client.duplicates.CHUNK", chunk)
        assert nearly_alike(coarse, fine) == expected


def test_both_hashes_have_to_agree() -> None:
    """At the bounds two images are near-duplicates, one bit beyond either of them not."""

    def found(coarse_bits: int, fine_bits: int) -> bool:
        coarse, fine = f"{(1 << coarse_bits) - 1:016x}", f"{(1 << fine_bits) - 1:064x}"
        return bool(nearly_alike(["0" * 16, coarse], ["0" * 64, fine]))

    assert found(COARSE_BITS, FINE_BITS)
    assert not found(COARSE_BITS + 1, FINE_BITS)
    assert not found(COARSE_BITS, FINE_BITS + 1)


def test_chains_are_one_group() -> None:
    """If the first is like the second and the second like the third, all three are together."""
    steps = [f"{(1 << bits) - 1:016x}" for bits in (0, 8, 16, 40)]
    assert nearly_alike(steps, ["0" * 64] * 4) == [[0, 1, 2]]


def test_no_images_have_no_duplicates() -> None:
    """Nothing, and a single image, give no groups."""
    assert nearly_alike([], []) == []
    assert nearly_alike(["0" * 16], ["0" * 64]) == []


def test_ten_thousand_take_seconds_and_little_memory() -> None:
    """10,000 hashes, also if all are the same, are compared in less than 60 s and 400 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    assert len(nearly_alike(*hashes_of(10_000, 0))) > 100
    assert nearly_alike(["0" * 16] * 10_000, ["0" * 64] * 10_000) == [list(range(10_000))]
    assert time.process_time() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_same_keys_are_grouped_in_order() -> None:
    """Groups have at least two places, in the order in which the keys came."""
    assert alike(["b", "a", "b", "c", "a", "b"]) == [[0, 2, 5], [1, 4]]
