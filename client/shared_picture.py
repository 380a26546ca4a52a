"""Memory that a process which reads images shares with the one that it reads for.

A picture of 512 x 512 pixels takes a megabyte. Through a pipe it would be copied twice by the
system, which takes longer than to look at it.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

_LARGE = 2**26
"""Bytes beyond which memory goes back to the system when its picture has been taken."""


class SharedPicture:
    """Room for one picture at a time, float32 of any shape.

    Args:
        file: Descriptor of the memory (memfd_create(2)); it is not closed here.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> Self:
        """Return new memory without room yet.

        Raises:
            OSError: The system gives none.
        """
        file = os.memfd_create("rarefed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Else a process that went wrong could take the memory away while the other looks at it.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(file)

    def put(self, values: NDArray[np.float32]) -> None:
        """Copy a picture into the memory, in place of the last one.

        Raises:
            OSError: The system has no room for it.
        """
        room = os.fstat(self.file).st_size
        if room < values.nbytes:
            os.ftruncate(self.file, values.nbytes)
        elif self._map is not None and room > _LARGE:
            self._map.madvise(mmap.MADV_REMOVE)
        self._view(values.shape)[...] = values

    def get(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return the picture that lies in the memory; it changes when the next one comes.

        Raises:
            ValueError: The memory has no room for a picture of this shape.
        """
        return self._view(shape)

    def close(self) -> None:
        """Give the memory back, once nobody looks at it any more."""
        self._map = None
        os.close(self.file)

    def _view(self, shape: Sequence[int]) -> NDArray[np.float32]:
        count = int(np.prod(shape, dtype=np.int64))
        wanted = count * np.dtype(np.float32).itemsize
        if self._map is None or len(self._map) < wanted:
            if os.fstat(self.file).st_size < wanted:
                raise ValueError(f"no room for a picture of shape {tuple(shape)}")
            self._map = mmap.mmap(self.file, 0)
        return np.frombuffer(self._map, np.float32, count).reshape(shape)
