"""Arrays of a study's folder, read one at a time: a model need not fit into memory twice."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common import safetensors_form
from common.arrays import Array
from common.errors import OutputError


class StoredArrays(Mapping[str, Array]):
    """Arrays of a safetensors file, mapped one at a time when they are asked for.

    The library itself maps the file as a whole, and each page that was looked at once would stay
    in this process's memory.

    Args:
        path: The file; what is read is this very one, also when another has taken its name.
        names: Which of its arrays belong to the mapping, in their order.

    Raises:
        OutputError: The file cannot be read.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._names = names
        try:
            self._file = path.open("rb")
            size = os.fstat(self._file.fileno()).st_size
            length = safetensors_form.length_of(self._file.read(safetensors_form.LENGTH), size)
            header = safetensors_form.parse_header(self._file.read(length))
            self._begin = safetensors_form.LENGTH + length
            tensors = safetensors_form.tensors_of(header, size - self._begin)
        except (OSError, ValueError) as error:
            raise not_readable(path, error) from error
        self._tensors = {tensor.name: tensor for tensor in tensors if tensor.name in set(names)}

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        if tensor.begin == tensor.end:
            return np.zeros(tensor.shape, tensor.dtype)
        shape, begin = (tensor.end - tensor.begin,), self._begin + tensor.begin
        data = np.memmap(self._file, np.uint8, "r", begin, shape)
        return np.asarray(data).view(tensor.dtype).reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def not_readable(path: Path, error: Exception) -> OutputError:
    """Return what is said of a file of the study's folder that cannot be read."""
    return OutputError(
        f"{path} cannot be read: {error}.",
        remedy="Restore the study's folder from a backup, or begin the study in a new one.",
    )
