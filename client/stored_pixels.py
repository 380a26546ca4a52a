"""Prepared images on disk instead of in memory, indexed like a tensor.

Shapes: N images, B of them, C channels, S image size.
"""

import mmap
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.cache import Cache


class MappedStack:
    """Images of one shape in a file that is mapped into memory.

    Args:
        file: At least ``count`` images, float16, one after the other.
        count: How many.
        channels: Channels of each.
        size: Height and width of each.
    """

    def __init__(self, file: IO[bytes], count: int, channels: int, size: int) -> None:
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(self._map, np.float16, count * channels * size * size)
        self.images = values.reshape(count, channels, size, size)

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return a copy of some images, shape (B, C, S, S)."""
        taken = np.take(self.images, places, axis=0)
        # The copy is all that stays in this process's memory; the system may keep the pages.
        self._map.madvise(mmap.MADV_DONTNEED)
        return taken


class StoredPixels:
    """Images in files of their own, mapped into memory; what is not looked at takes none.

    Grey and colour images lie apart. Where both are there, grey gets three equal channels.

    Args:
        stacks: The images by their number of channels, each of shape (N, C, S, S).
        channels: The number of channels of each image.
        places: The place of each image in the stack of its channels.
    """

    def __init__(
        self,
        stacks: Mapping[int, MappedStack],
        channels: NDArray[np.int64],
        places: NDArray[np.int64],
    ) -> None:
        self._stacks, self._channels, self._places = stacks, channels, places
        size = next(iter(stacks.values())).images.shape[-1]
        self.shape = torch.Size((len(places), max(stacks), size, size))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """Return a copy of some images, float16, shape (B, C, S, S)."""
        index = which.numpy() if isinstance(which, Tensor) else which
        channels, places = self._channels[index], self._places[index]
        if len(self._stacks) == 1:
            (stack,) = self._stacks.values()
            return torch.from_numpy(stack.take(places))
        images = np.empty((len(places), *self.shape[1:]), np.float16)
        for number, stack in self._stacks.items():
            own = channels == number
            images[own] = stack.take(places[own])  # one channel broadcasts to three
        return torch.from_numpy(images)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in their order, at most ``size`` of them at a time."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def chosen(self, keep: NDArray[np.bool_]) -> "StoredPixels":
        """Return some of the images, without reading them.

        Args:
            keep: Whether to keep each of them, shape (N,).
        """
        return StoredPixels(self._stacks, self._channels[keep], self._places[keep])


class PixelWriter:
    """Takes prepared images as they come, and gives them back as a whole.

    They go to files without names in the cache's folder, which go with the process: what the
    cache lets go of meanwhile, or a second process clears, is still there for this one. Without
    a cache, or where its disk is full, they stay in memory.

    Args:
        size: Height and width of the images.
        cache: Where the files are made; None keeps the images in memory.
    """

    def __init__(self, size: int, cache: Cache | None) -> None:
        self._size, self._cache = size, cache
        self._files: dict[int, IO[bytes]] = {}
        self._channels: list[int] = []
        self._places: list[int] = []
        self._memory: list[NDArray[np.float16]] = []

    def add(self, pixels: NDArray[np.float16]) -> None:
        """Take the images of one source, shape (n, C, S, S)."""
        if self._cache is not None:
            try:
                self._write(pixels, self._cache)
            except OSError as error:
                self._cache.stop(f"cannot be written ({error.strerror})")
                self._memory = [] if not self._places else [self._stored()[:].numpy()]
                self._files, self._cache = {}, None
            else:
                return
        self._memory.append(pixels)

    def done(self) -> Tensor | StoredPixels:
        """Return all images; where grey and colour are mixed, grey has three equal channels."""
        if self._cache is not None and self._places:
            return self._stored()
        channels = max((pixels.shape[1] for pixels in self._memory), default=1)
        shape = (sum(map(len, self._memory)), channels, self._size, self._size)
        images, filled = np.empty(shape, np.float16), 0
        for pixels in self._memory:
            images[filled : filled + len(pixels)] = pixels
            filled += len(pixels)
        return torch.from_numpy(images)

    def _write(self, pixels: NDArray[np.float16], cache: Cache) -> None:
        channels = pixels.shape[1]
        if channels not in self._files:
            self._files[channels] = cache.scratch()
        file = self._files[channels]
        file.write(np.ascontiguousarray(pixels).data)
        file.flush()
        first = self._channels.count(channels)
        self._channels += [channels] * len(pixels)
        self._places += range(first, first + len(pixels))

    def _stored(self) -> StoredPixels:
        channels = np.array(self._channels)
        stacks = {
            number: MappedStack(file, int((channels == number).sum()), number, self._size)
            for number, file in self._files.items()
        }
        return StoredPixels(stacks, channels, np.array(self._places))
