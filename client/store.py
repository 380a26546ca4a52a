"""What a site must remember of a study: the base it was sent once, and its local arrays."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from common.arrays import Array, Arrays, digest
from common.errors import OrderError
from common.files import replacing, write_atomic

_PRIVATE = 0o600


class SiteStore:
    """One study's folder in the site's state.

    Args:
        state: The site's state folder.
        study_digest: Digest of the study.
    """

    def __init__(self, state: Path, study_digest: str) -> None:
        self._folder = state / "studies" / study_digest[:16]

    def base_digest(self) -> str:
        """Return the digest of the stored base, or an empty string."""
        file = self._folder / "base.sha256"
        return file.read_text(encoding="ascii").strip() if file.is_file() else ""

    def save_base(self, base: Arrays, announced: str) -> None:
        """Keep the base.

        Raises:
            OrderError: It is not the one whose digest was announced.
        """
        if digest(base) != announced:
            raise OrderError("The base that came is not the one that the order announces.")
        # First away with the old claim: a crash between the two writes must not leave a wrong one.
        (self._folder / "base.sha256").unlink(missing_ok=True)
        self._write("base.safetensors", base)
        write_atomic(self._folder / "base.sha256", f"{announced}\n".encode(), mode=_PRIVATE)

    def load_base(self, announced: str) -> dict[str, Array]:
        """Return the stored base.

        Raises:
            OrderError: There is none, or another one; the coordinator then sends it again.
        """
        if self.base_digest() != announced:
            raise OrderError("This site does not hold the base that the order builds on.")
        return dict(load_file(self._folder / "base.safetensors"))

    def save_local(self, arrays: Arrays) -> None:
        """Keep the arrays that never leave this site."""
        self._write("local.safetensors", arrays)

    def load_local(self) -> dict[str, Array]:
        """Return the arrays that never leave this site; none before its first training."""
        file = self._folder / "local.safetensors"
        return dict(load_file(file)) if file.is_file() else {}

    def clear(self) -> None:
        """Forget the study, as if this site had never taken part."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _write(self, name: str, arrays: Arrays) -> None:
        values = {key: np.asarray(arrays[key], order="C") for key in arrays}
        with replacing(self._folder / name, mode=_PRIVATE) as temporary:
            save_file(values, temporary)
