"""Arrays of a study's folder, read one at a time: a model need not fit into memory twice."""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from weakref import finalize

import numpy as np

from common import safetensors_form
from common.arrays import Array
from common.errors import OutputError


class StoredArrays(Mapping[str, Array]):
    """Arrays of a safetensors file, read where they lie when they are looked at.

    The file is mapped once, so that any number of arrays takes one of the process's open files. A
    page that was looked at would stay in the process's memory as long as the mapping, as it does
    with the library's own: so an array gives its pages back when nobody holds it any longer.

    Args:
        path: The file; what is read is this very one, also when another has taken its name.
        names: Which of its arrays belong to the mapping, in their order.

    Raises:
        OutputError: The file cannot be read, or lacks an array.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._names = names
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            size = len(self._map)
            length = safetensors_form.length_of(self._map[: safetensors_form.LENGTH], size)
            self._begin = safetensors_form.LENGTH + length
            text = self._map[safetensors_form.LENGTH : self._begin]
            header = safetensors_form.parse_header(text)
            tensors = safetensors_form.tensors_of(header, size - self._begin)
            self._tensors = {tensor.name: tensor for tensor in tensors if tensor.name in set(names)}
            _check(self._tensors, names)
        except (OSError, ValueError) as error:
            raise not_readable(path, error) from error

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        if tensor.begin == tensor.end:
            return np.zeros(tensor.shape, tensor.dtype)
        begin, dtype = self._begin + tensor.begin, np.dtype(tensor.dtype)
        count = (tensor.end - tensor.begin) // dtype.itemsize
        array: Array = np.frombuffer(self._map, dtype, count, begin)
        page = begin - begin % mmap.PAGESIZE
        length = self._begin + tensor.end - page
        finalize(array, self._map.madvise, mmap.MADV_DONTNEED, page, length).atexit = False
        return array.reshape(tensor.shape)  # a view, which keeps the other alive

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check(tensors: Mapping[str, safetensors_form.Tensor], names: tuple[str, ...]) -> None:
    """See that each array is there, and of a size that an array can have.

    Raises:
        ValueError: One is not.
    """
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"it has no array {missing[0]}")
    for tensor in tensors.values():
        if tensor.begin == tensor.end:
            np.empty(tensor.shape)  # beside a 0 may stand any number


def not_readable(path: Path, error: Exception) -> OutputError:
    """Return what is said of a file of the study's folder that cannot be read."""
    return OutputError(
        f"{path} cannot be read: {error}.",
        remedy="Restore the study's folder from a backup, or begin the study in a new one.",
    )
