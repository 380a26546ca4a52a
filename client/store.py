"""What a site must remember of a study: base, local arrays, and its last reply."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flwr.app import RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from common.arrays import Array, Arrays, digest
from common.bodies import write_body
from common.errors import OrderError
from common.files import canonical_json, replacing, write_atomic

KEPT_ROUNDS = 2
"""After a round its own local arrays are kept and those that it started from."""
FIRST, FINAL = "first.safetensors", "final.safetensors"
"""The network as the study's first round found it, and as its last exchange measured it here."""
PERSONAL = "personal.safetensors"
"""That network, trained further by the site alone; see ``client/personal.py``."""
_NOTES = "rarefed"
"""Entry of that file's header with what is known of the network, as JSON."""
_PRIVATE = 0o600


class Kept(NamedTuple):
    """A network that a site keeps of a study."""

    arrays: dict[str, Array]
    """Every array of its state, the site's own ones among them."""
    model_round: int
    """Rounds that the network went through."""
    tasks: tuple[str, ...]
    """The site's tasks, whose heads came; any other head is as random as at the beginning."""
    trained_from: str = ""
    """SHA-256 of the arrays of the network that it was trained further from, if it was."""


class SiteStore:
    """One study's folder in the site's state.

    Args:
        state: The site's state folder.
        study_digest: Digest of the study.
    """

    def __init__(self, state: Path, study_digest: str) -> None:
        self._study = study_digest
        self._folder = state / "studies" / study_digest[:16]

    def base_digest(self) -> str:
        """Return the digest of the stored base, or an empty string."""
        file = self._folder / "base.sha256"
        return file.read_text(encoding="ascii").strip() if file.is_file() else ""

    def save_base(self, base: Arrays, announced: str) -> None:
        """Keep the base, with the initial arrays that came beside it.

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

    def save_local(self, arrays: Arrays, number: int) -> None:
        """Keep the arrays that never leave this site, as they are after a round.

        Those that the round started from stay too, for a round that is redone; older ones go.

        Args:
            arrays: The arrays.
            number: The round that they come from; 1, 2, ...
        """
        if not self._local_rounds():
            self._write(_local_name(0), {})  # there was nothing before the first round here
        self._write(_local_name(number), arrays)
        for old in self._local_rounds()[:-KEPT_ROUNDS]:
            (self._folder / _local_name(old)).unlink()

    def load_local(self, number: int) -> dict[str, Array]:
        """Return the arrays that never leave this site, as they were before a round.

        They are none before the site's first training.

        Raises:
            OrderError: The round is older than what is kept.
        """
        rounds = self._local_rounds()
        if not rounds:
            return {}
        if not (earlier := [kept for kept in rounds if kept < number]):
            raise OrderError(
                f"Round {number} was asked for again, but this site has gone on and keeps its "
                f"local arrays of the rounds {rounds} alone.",
                remedy=f"If the study has truly begun anew, move {self._folder} away.",
            )
        return dict(load_file(self._folder / _local_name(earlier[-1])))

    def save_network(
        self,
        name: str,
        arrays: Arrays,
        *,
        model_round: int,
        tasks: Sequence[str],
        trained_from: str = "",
    ) -> None:
        """Keep the network of the study's beginning or end, in place of one that was kept before.

        Arrays and notes are one file, so that a reader never meets one without the other.

        Args:
            name: ``FIRST``, ``FINAL`` or ``PERSONAL``.
            arrays: Every array of the network's state.
            model_round: Rounds that it went through.
            tasks: The site's tasks.
            trained_from: SHA-256 of the network that the site trained further, of ``PERSONAL``.
        """
        notes = {"study": self._study, "model_round": model_round, "tasks": list(tasks)}
        notes |= {"trained_from": trained_from} if trained_from else {}
        header = {_NOTES: canonical_json(notes).decode()}
        with replacing(self._folder / name, mode=_PRIVATE) as temporary:
            save_file(_in_order(arrays), temporary, metadata=header)

    def load_network(self, name: str) -> Kept | None:
        """Return what ``save_network`` kept under a name; None where nothing was.

        Raises:
            OrderError: The file is damaged, or of another study.
        """
        file = self._folder / name
        if not file.is_file():
            return None
        remedy = "Restore it from a backup, or use an export of the coordinator."
        try:
            with safe_open(file, framework="numpy") as opened:
                notes = json.loads((opened.metadata() or {})[_NOTES])
            study, number = notes["study"], int(notes["model_round"])
            tasks, trained_from = tuple(map(str, notes["tasks"])), notes.get("trained_from", "")
            kept = Kept(dict(load_file(file)), number, tasks, trained_from)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            message = f"The kept model {file} cannot be read: {error}."
            raise OrderError(message, remedy=remedy) from error
        if study != self._study:
            raise OrderError(f"The kept model {file} is of another study.", remedy=remedy)
        return kept

    def remove_network(self, name: str) -> None:
        """Keep a network no longer, if one was kept."""
        (self._folder / name).unlink(missing_ok=True)

    def save_reply(self, record: RecordDict, order_digest: str) -> Path:
        """Keep the reply to an order, in place of the one before, and return its file.

        Args:
            record: The reply.
            order_digest: SHA-256 of the order as it was sealed, in hexadecimal.
        """
        path = self._folder / f"reply-{order_digest}.body"
        with replacing(path, mode=_PRIVATE) as temporary:
            write_body(record, temporary)
        for other in self._folder.glob("reply-*.body"):
            if other != path:
                other.unlink()
        return path

    def find_reply(self, order_digest: str) -> Path | None:
        """Return the file of the reply to this very order, if it is the last that was kept."""
        path = self._folder / f"reply-{order_digest}.body"
        return path if path.is_file() else None

    def clear(self) -> None:
        """Forget the study, as if this site had never taken part."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _local_rounds(self) -> list[int]:
        """Return the rounds after which local arrays are kept, in order."""
        files = (path.name for path in self._folder.glob("local-*.safetensors"))
        return sorted(int(m[1]) for name in files if (m := re.fullmatch(r"local-(\d+)\..*", name)))

    def _write(self, name: str, arrays: Arrays) -> None:
        with replacing(self._folder / name, mode=_PRIVATE) as temporary:
            save_file(_in_order(arrays), temporary)


def remove_leftovers(state: Path) -> None:
    """Remove the half-written files of a process that was killed; none may be running."""
    for path in [*(state / "studies").glob("*/.*"), *(state / "cohorts").glob(".*")]:
        path.unlink()


def _in_order(arrays: Arrays) -> dict[str, Array]:
    """Return the arrays with their numbers in C's order, as the format wants them."""
    return {key: np.asarray(arrays[key], order="C") for key in arrays}


def _local_name(number: int) -> str:
    return f"local-{number}.safetensors"
