"""The study's arrays on disk: whole, safe to read, and out of memory while replies come in.

A round is done when ``model.safetensors`` is that round's, in one rename. What belongs to it was
written before: the strategies' own state, in a file of the round's number, and the line of the
history. Random numbers need no state: each stream is named by study and round.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from common import safetensors_form
from common.arrays import Array, Arrays
from common.errors import OutputError
from common.files import canonical_json, replacing, write_json
from common.layout import Layout, arrays_sent_once
from common.study import Study
from server.stored_arrays import StoredArrays, not_readable

MODEL = "model.safetensors"
LAYOUT = "layout.json"
INITIAL = "initial.safetensors"
"""What each site is sent once, of a study whose model does not keep all of it."""
NOTES = "rarefed"
"""Entry of the file's header that holds the notes, as JSON."""

_SEPARATOR = "\n"
"""Between group and array in the file of the strategies' state; no name holds it."""

States = Mapping[str, Arrays]
"""What the strategies carry from round to round, by group."""


class Checkpoint(NamedTuple):
    """Where a study stands on disk."""

    round: int
    """Rounds that are done."""
    model: Path
    members: tuple[str, ...]
    """The sites of the last round that is done."""
    states: States
    model_round: int
    """The round after which the model was as it lies there; an earlier one than ``round`` where
    the study ends with its best."""
    has_ended: bool = False
    """The model is the one that the study ends with."""
    averaged: tuple[int, ...] = ()
    """Rounds whose models were averaged into it."""
    places: tuple[str, ...] = ()
    """The sites in the order in which they joined, of a study that numbers them."""
    has_votes: bool = False
    """The model holds what its members weigh by their validation scores."""


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
    path = folder / MODEL
    _write(path, arrays, notes)
    return path


def _clear(folder: Path) -> None:
    """Remove the half-written files of a coordinator that was killed as it wrote."""
    for rest in folder.glob(".*.safetensors.*"):
        rest.unlink(missing_ok=True)


def _write(path: Path, arrays: Arrays, notes: Mapping[str, str]) -> None:
    try:
        header = {NOTES: canonical_json(dict(notes)).decode()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            safetensors_form.write(file, arrays, header)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error}.", remedy="Free space or choose another folder."
        ) from error


def save_round(
    folder: Path,
    arrays: Arrays,
    states: States,
    study: Study,
    number: int,
    members: tuple[str, ...] = (),
    places: tuple[str, ...] = (),
) -> Path:
    """Write down that a round is done; from then on a restart goes on after it.

    Args:
        folder: The study's folder.
        arrays: Every array of the network's state after the round.
        states: The strategies' own state by group.
        study: Whose round it is.
        number: The round; 0 for the initial arrays.
        members: The sites that take part.
        places: All sites that ever took part, in the order of their numbers, if they have some.

    Returns:
        The model's file.

    Raises:
        OutputError: The folder cannot be written.
    """
    _clear(folder)
    flat = {f"{g}{_SEPARATOR}{n}": state[n] for g, state in states.items() for n in state}
    carried = f"strategies-{number}.safetensors" if flat else ""
    if carried:
        _write(folder / carried, flat, {})
    notes = {
        "study": study.name,
        "study_digest": study.digest(),
        "round": str(number),
        "members": json.dumps(list(members)),
        "strategies": carried,
    }
    if places:
        notes["places"] = json.dumps(list(places))
    path = save_model(folder, arrays, notes)
    for old in folder.glob("strategies-*.safetensors"):
        if old.name != carried:
            old.unlink(missing_ok=True)
    return path


def save_ending(
    folder: Path,
    arrays: Arrays,
    *,
    model_round: int,
    averaged: tuple[int, ...] = (),
    has_votes: bool = False,
) -> None:
    """Put the model that the study ends with in place of the last round's; no round follows.

    Args:
        folder: The study's folder.
        arrays: Every array of the network's state.
        model_round: The round after which it was so.
        averaged: Rounds whose models were averaged into it.
        has_votes: Whether it holds what its members weigh by their validation scores.

    Raises:
        OutputError: The folder cannot be written, or the last round's model cannot be read.
    """
    _clear(folder)
    ending = {"model_round": str(model_round), "averaged": json.dumps(list(averaged))}
    if has_votes:
        ending["votes"] = "validation"
    save_model(folder, arrays, _read_notes(folder / MODEL) | ending)


def save_initial(folder: Path, arrays: Arrays, layout: Layout) -> None:
    """Write down what each site is sent once, where the model of a later round lacks some of it.

    A study that has begun stays as it is.

    Args:
        folder: The study's folder.
        arrays: Every array of the network's state at the study's beginning.
        layout: How they are divided.

    Raises:
        OutputError: The folder cannot be written.
    """
    if layout.initial and not has_begun(folder):
        _write(folder / INITIAL, arrays_sent_once(arrays, layout), {})


def stored_base(folder: Path, model: Path, layout: Layout) -> StoredArrays:
    """Return what each site is sent once, under the names that it is sent by.

    Args:
        folder: The study's folder.
        model: The model of a round.
        layout: How the network's arrays are divided.

    Raises:
        OutputError: A file cannot be read.
    """
    return StoredArrays(folder / INITIAL if layout.initial else model, layout.names_sent_once)


def save_layout(folder: Path, layout: Layout) -> None:
    """Write down which of the study's arrays travel; whoever runs its rounds reads it there.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        write_json(folder / LAYOUT, layout.to_plain())
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder / LAYOUT}: {error}.",
            remedy="Free space or choose another folder.",
        ) from error


def load_layout(folder: Path) -> Layout:
    """Return which of the study's arrays travel.

    Raises:
        OutputError: The study has not begun, or the file cannot be read.
    """
    try:
        return Layout.from_plain(json.loads((folder / LAYOUT).read_bytes()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise not_readable(folder / LAYOUT, error) from error


def has_begun(folder: Path) -> bool:
    """Tell whether a folder holds a study, however far."""
    return (folder / MODEL).exists()


def find_checkpoint(folder: Path, study: Study) -> Checkpoint:
    """Return where the study stands.

    Raises:
        OutputError: The folder holds no study or another one, or its files cannot be read.
    """
    path = folder / MODEL
    notes = _read_notes(path)
    try:
        name, digest, carried = notes["study"], notes["study_digest"], notes["strategies"]
        number, members = int(notes["round"]), tuple(json.loads(notes["members"]))
        ending = int(notes.get("model_round", number)), "model_round" in notes
        averaged = tuple(json.loads(notes.get("averaged", "[]")))
        places = tuple(json.loads(notes.get("places", "[]")))
    except (KeyError, TypeError, ValueError) as error:
        raise not_readable(path, error) from error
    if digest != study.digest():
        raise OutputError(
            f"{folder} holds another study, {name}, or another version of this one.",
            remedy="Give each study a folder of its own.",
        )
    states = _read_states(folder / carried) if carried else {}
    return Checkpoint(number, path, members, states, *ending, averaged, places, "votes" in notes)


def model_round_of(path: Path) -> int:
    """Return the round after which the model of a file was so.

    Raises:
        OutputError: The file cannot be read.
    """
    notes = _read_notes(path)
    try:
        return int(notes.get("model_round", notes["round"]))
    except (KeyError, ValueError) as error:
        raise not_readable(path, error) from error


def _read_notes(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            notes: dict[str, str] = json.loads((file.metadata() or {})[NOTES])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise not_readable(path, error) from error
    return notes


def _read_states(path: Path) -> dict[str, dict[str, Array]]:
    states: dict[str, dict[str, Array]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                group, name = key.split(_SEPARATOR, 1)
                states.setdefault(group, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError, ValueError) as error:
        raise not_readable(path, error) from error
    return states
