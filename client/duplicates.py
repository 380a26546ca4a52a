"""Which images are the same, or nearly the same.

Two images are near-duplicates when both their perceptual hashes agree: the 64-bit one in all but
``COARSE_BITS`` and the 256-bit one in all but ``FINE_BITS``. On the 3,571 images that
``docs/findings.md`` names, this ties neighbouring slices and resized copies together and leaves
different eyes apart, which the 64-bit hash alone does not.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

COARSE_BITS = 8
"""Most of the 64 bits in which near-duplicates differ."""
FINE_BITS = 24
"""Most of the 256 bits in which they differ."""
CHUNK = 2_000_000
"""Pairs that are compared at a time: 32 MB."""


def alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the groups of at least two places that hold the same key, in their order."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return [group for group in places.values() if len(group) > 1]


def nearly_alike(coarse: Sequence[str], fine: Sequence[str]) -> list[list[int]]:
    """Return the groups of at least two images that near-duplicates tie together.

    Images of a group need not all be near-duplicates of one another: a chain of them suffices.

    Args:
        coarse: Of each image, its 64-bit hash as 16 hexadecimal digits.
        fine: Of each image, its 256-bit hash as 64 digits.

    Returns:
        Places in the sequences, in their order.
    """
    if not coarse:
        return []
    both, first, place = np.unique(  # of images of the same hashes, one is compared
        np.array([one + other for one, other in zip(coarse, fine, strict=True)]),
        return_index=True,
        return_inverse=True,
    )
    coarse_N = _bits([coarse[i] for i in first])[:, 0]
    fine_N4 = _bits([fine[i] for i in first])
    member = np.arange(len(both))
    for one, other in _pairs(coarse_N, fine_N4):
        member = _tied(member, one, other)
    return alike(member[place].tolist())


def _bits(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """Return hashes as rows of 64-bit words."""
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64)
    return words.reshape(len(hashes), -1)


def _pairs(
    coarse_N: NDArray[np.uint64], fine_N4: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of near-duplicates, some at a time; memory does not grow with their number."""
    count = len(coarse_N)
    step = max(1, CHUNK // count)
    for start in range(0, count, step):
        # Each pair once: a row is compared with those behind it.
        distance = np.bitwise_count(coarse_N[start : start + step, None] ^ coarse_N[None, start:])
        one, other = np.nonzero(np.triu(distance <= COARSE_BITS, 1))
        one, other = one + start, other + start
        for part in range(0, len(one), CHUNK // 4):
            i, j = one[part : part + CHUNK // 4], other[part : part + CHUNK // 4]
            near = np.bitwise_count(fine_N4[i] ^ fine_N4[j]).sum(axis=1) <= FINE_BITS
            yield i[near], j[near]


def _tied(
    member: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the group of each image, when some more pairs are tied together."""
    if not len(one):
        return member
    count = len(member)
    edges = coo_array(
        (np.ones(len(one), np.int8), (member[one], member[other])), shape=(count, count)
    )
    joined = connected_components(edges, directed=False)[1]
    tied: NDArray[np.int64] = joined[member].astype(np.int64)
    return tied
