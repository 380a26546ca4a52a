"""The study's arrays on disk: whole, safe to read, and out of memory while replies come in."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.arrays import Array, Arrays
from common.errors import OutputError
from common.files import canonical_json, replacing

MODEL = "model.safetensors"
NOTES = "rarefed"
"""Entry of the file's header that holds the notes, as JSON."""


class StoredArrays(Mapping[str, Array]):
    """Arrays of a safetensors file, read one at a time when they are asked for.

    Args:
        path: The file; it must not change while this object is used.
        names: Which of its arrays belong to the mapping, in their order.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._file = safe_open(path, framework="pt")  # maps the file; "numpy" would copy it
        self._names = names

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        value: Array = self._file.get_tensor(name).numpy()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_model(folder: Path, arrays: Arrays, notes: Mapping[str, str]) -> Path:
    """Write all arrays of the network, with notes in the file's header.

    Args:
        folder: The run's folder.
        arrays: Every array of the network's state.
        notes: Text by name, such as the study's digest and the round.

    Returns:
        The file, which holds either these arrays or what it held before.

    Raises:
        OutputError: The folder cannot be written.
    """
    values = {name: np.asarray(arrays[name], order="C") for name in arrays}
    path = folder / MODEL
    try:
        # One entry: safetensors writes several in an order that changes from run to run.
        header = {NOTES: canonical_json(dict(notes)).decode()}
        with replacing(path) as temporary:
            save_file(values, temporary, metadata=header)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"Cannot write {path}: {error}.", remedy="Free space or choose another folder."
        ) from error
    return path
