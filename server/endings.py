"""How a study ends: after which round, and with which model.

All is decided from what lies in the study's folder. So a coordinator that was killed at any moment
decides the same when it goes on. Beside ``model.safetensors`` lie the models of earlier rounds that
the study may end with, as ``model-R.safetensors``: the best one, or the last ones. One that is no
longer needed goes when the round that made it so is done.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.arrays import Array, Arrays
from common.errors import OutputError
from common.files import replacing
from common.layout import Layout
from common.study import Study
from server import scores
from server.checkpoint import MODEL, Checkpoint, save_ending
from server.history import RoundRecord
from server.stored_arrays import StoredArrays


class Turn(NamedTuple):
    """An exchange that is due."""

    number: int
    model_round: int
    """The round after which the model was as it arrives."""
    last: bool = False
    """It measures a model that the study may end with, and trains nothing."""
    averaged: tuple[int, ...] = ()
    """Rounds whose models were averaged into the one that arrives."""


def turns(
    folder: Path, study: Study, layout: Layout, done: Checkpoint, records: Sequence[RoundRecord]
) -> Iterator[Turn]:
    """Yield the exchanges that are due, each once the record of the one before is there.

    The rounds come first. Then the last round's model, or the average of the last ones, is
    measured. Where the best is to be kept and is an earlier one, that one takes its place and is
    measured too. Each exchange finds its model in the folder.

    Args:
        folder: The study's folder.
        study: What was agreed.
        layout: How the network's arrays are divided.
        done: Where the study stands.
        records: The history, which grows between two turns.

    Raises:
        OutputError: The folder cannot be written, or lacks a model.
    """
    number, ends_with, averaged = done.round, done.model_round, done.averaged
    if not done.has_ended:
        while number < study.rounds and not stopped(study, records):
            number += 1
            yield Turn(number, number - 1)
        ends_with, averaged = number, _average(folder, study, layout, number)
    if ends_with == number:
        yield Turn(number + 1, number, last=True, averaged=averaged)
    if not done.has_ended:
        ends_with = _take_best(folder, study, layout, number, records)
    forget(folder, set())
    if ends_with != number:
        yield Turn(number + 2, ends_with, last=True)


def stopped(study: Study, records: Sequence[RoundRecord]) -> str:
    """Return why the study ends before its last round; an empty string where it does not."""
    stopping = study.federation.early_stopping
    number = max((record.round for record in records if record.combined), default=0)
    if stopping is None or number >= study.rounds:
        return ""
    found = scores.of_rounds(records)
    best, since = scores.standing(found, stopping.least_gain)
    if since < stopping.patience:
        return ""
    figure = "AUROC" if study.federation.score == "auroc" else "loss"
    return (
        f"Stopped early after round {number} of {study.rounds}: the validation {figure} of round "
        f"{best}, {abs(found[best]):.4f}, was not bettered in {since} rounds."
    )


def wanted(study: Study, records: Sequence[RoundRecord], number: int) -> set[int]:
    """Return the rounds before ``number`` whose models the study may still end with."""
    federation = study.federation
    if federation.keep == "best":
        best = scores.best_round(study, records)
        return set() if best is None else {best} - {number}
    first = max(number - federation.average_last + 1, 1)
    if federation.early_stopping is None:
        first = max(first, study.rounds - federation.average_last + 1)
    return set(range(first, number))


def keep(folder: Path, rounds: set[int], number: int) -> None:
    """Keep the model of the folder, that of a round, under its own name if it is wanted.

    Raises:
        OutputError: The folder cannot be written.
    """
    if number not in rounds:
        return
    path = folder / _name(number)
    try:
        with replacing(path) as temporary:
            shutil.copyfile(folder / MODEL, temporary)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error}.", remedy="Free space or choose another folder."
        ) from error


def forget(folder: Path, rounds: set[int]) -> None:
    """Remove the models of all earlier rounds but those that are wanted."""
    for path in folder.glob("model-*.safetensors"):
        found = re.fullmatch(r"model-(\d+)\.safetensors", path.name)
        if found and int(found[1]) not in rounds:
            path.unlink(missing_ok=True)


def mean_of(models: Sequence[Arrays], names: Sequence[str]) -> dict[str, Array]:
    """Return the mean of each floating-point array over models, all weighing the same.

    Sums are of 64 bits; the means have the arrays' own type. All other arrays are the last model's.
    """
    last = models[-1]
    result = dict(last)
    for name in names:
        if np.issubdtype(last[name].dtype, np.floating):
            total = np.zeros(last[name].shape)
            for model in models:
                total += model[name]
            result[name] = np.asarray(total / len(models), last[name].dtype)
    return result


def _average(folder: Path, study: Study, layout: Layout, number: int) -> tuple[int, ...]:
    """Make the average of the last rounds' models the folder's; return which rounds these are."""
    first = max(number - study.federation.average_last + 1, 1)
    rounds = tuple(range(first, number + 1))
    if len(rounds) <= 1:
        return ()
    names = _names(layout)
    files = [*(_name(earlier) for earlier in rounds[:-1]), MODEL]
    models = [StoredArrays(folder / file, names) for file in files]
    travelling = [name for group in layout.groups.values() for name in group]
    save_ending(folder, mean_of(models, travelling), model_round=number, averaged=rounds)
    return rounds


def _take_best(
    folder: Path, study: Study, layout: Layout, number: int, records: Sequence[RoundRecord]
) -> int:
    """Make the best round's model the folder's, where it is to be kept; return which round's is."""
    if study.federation.keep != "best":
        return number
    best = scores.best_round(study, records) or number
    file = MODEL if best == number else _name(best)
    # Also where it is the last one: measured again, another might be the best.
    save_ending(folder, StoredArrays(folder / file, _names(layout)), model_round=best)
    return best


def _name(number: int) -> str:
    return f"model-{number}.safetensors"


def _names(layout: Layout) -> tuple[str, ...]:
    return (*layout.sent_once, *(name for group in layout.groups.values() for name in group))
