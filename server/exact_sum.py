"""A running sum that no order of arrival can change by a bit, in one and a half models of memory.

Floating-point addition is not associative, so a sum of floats depends on the order of its terms.
Integers have no such trouble: each term is rounded once to a fixed grid, and from there on the
sum is exact. 48 bits, kept as 32 high and 16 low ones, leave room for everything that the grid
must hold and take 6 bytes a number, where int64 would take 8.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_BITS = 46
"""Terms whose shares add up to at most 1 and lie in +-1 stay within 48 bits, sign included."""
_CHUNK = 1 << 16
"""Numbers worked on at a time, so that intermediate values never take a model's memory."""
_HEADROOM = 4096.0
_SMALLEST = 1 / 16

Floats = NDArray[np.float32]


def largest_change(current: NDArray[np.generic]) -> float:
    """Return the largest change of one number that the grid for this array can hold.

    It is a power of two, at least 4,096 times the largest magnitude in ``current`` (256 where
    all are small): a training that moves a weight further has diverged. The grid's step is this
    value times 2**-46, so at most 1.2e-10 of the array's largest magnitude, if that is not small.
    """
    largest = max(magnitude(current), _SMALLEST)
    return _HEADROOM * 2.0 ** math.ceil(math.log2(largest))


def magnitude(values: NDArray[np.generic]) -> float:
    """Return the largest absolute value, 0 of an empty array; NaN if one is, without a copy."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return high if math.isnan(low) else max(-low, high)


class ExactSum:
    """The sum of share times change over sites, for one array.

    Args:
        current: The array that the changes are of; it fixes shape and grid.
    """

    def __init__(self, current: NDArray[np.generic]) -> None:
        self._shape = current.shape
        self._step = largest_change(current) * 2.0**-_BITS
        self._high = np.zeros(current.size, np.int32)
        self._low = np.zeros(current.size, np.uint16)

    def add(self, change: Iterable[NDArray[np.generic]], share: float) -> None:
        """Add ``share`` times ``change``.

        Args:
            change: Flat pieces that make up the array in its order (``pieces_of``); no magnitude
                above ``largest_change``.
            share: In (0, 1]; the shares of all terms add up to at most 1.
        """
        scale, begin = share / self._step, 0
        for piece in change:
            high = self._high[begin : begin + piece.size]
            low = self._low[begin : begin + piece.size]
            for part in _chunks(piece.size):
                term = np.rint(piece[part].astype(np.float64) * scale).astype(np.int64)
                term += (high[part].astype(np.int64) << 16) + low[part]
                high[part] = term >> 16
                low[part] = term & 0xFFFF
            begin += piece.size

    def applied_to(self, current: NDArray[np.generic], total_share: float) -> Floats:
        """Return ``current`` plus the sum divided by ``total_share``, as float32."""
        result = np.empty(self._shape, np.float32)
        flat, old = result.reshape(-1), np.ascontiguousarray(current).reshape(-1)
        scale = self._step / total_share
        for part in _chunks(flat.size):
            whole = (self._high[part].astype(np.int64) << 16) + self._low[part]
            flat[part] = old[part] + whole * scale
        return result


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, size, _CHUNK))
