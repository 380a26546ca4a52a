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

from common.arrays import mean_of
from common.errors import OutputError
from common.files import replacing
from common.layout import Layout
from common.scores import last_rounds, stands_still
from common.scores import wanted as wanted_of
from common.study import Study
from server import scores, votes
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
    measured too. Where the members of an ensemble vote by their validation scores, that exchange
    has told them; the model gets the votes and is measured once more. Each exchange finds its model
    in the folder.

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
        while number < study.rounds and not stopped(study, layout, records):
            number += 1
            yield Turn(number, number - 1)
        ends_with, averaged = number, _average(folder, study, layout, number)
    if ends_with == number and not done.has_votes:
        yield Turn(number + 1, number, last=True, averaged=averaged)
    if not done.has_ended:
        ends_with = _take_best(folder, study, layout, number, records)
    forget(folder, set())
    measured = number + (1 if ends_with == number else 2)
    if ends_with != number and not done.has_votes:
        yield Turn(measured, ends_with, last=True)
    if study.federation.votes == "validation":
        turn = Turn(measured + 1, ends_with, last=True, averaged=averaged)
        if not done.has_votes:
            _weigh(folder, study, layout, turn, records[-1])
        yield turn


def stopped(study: Study, layout: Layout, records: Sequence[RoundRecord]) -> str:
    """Return why the study ends before its last round; an empty string where it does not."""
    number = max((record.round for record in records if record.combined), default=0)
    still = stands_still(study, layout.stages, scores.of_rounds(study, records))
    if still is None or number >= study.rounds:
        return ""
    figure = "AUROC" if study.federation.score == "auroc" else "loss"
    return (
        f"Stopped early after round {number} of {study.rounds}: the validation {figure} of round "
        f"{still.best}, {abs(still.score):.4f}, was not bettered in {still.since} rounds."
    )


def wanted(study: Study, records: Sequence[RoundRecord], number: int) -> set[int]:
    """Return the rounds before ``number`` whose models the study may still end with."""
    return wanted_of(study, scores.best_round(study, records), number)


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


def _average(folder: Path, study: Study, layout: Layout, number: int) -> tuple[int, ...]:
    """Make the average of the last rounds' models the folder's; return which rounds these are."""
    rounds = tuple(last_rounds(study.federation, number))
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


def _weigh(folder: Path, study: Study, layout: Layout, turn: Turn, measured: RoundRecord) -> None:
    """Give the folder's model the votes that follow from its measurement, for a last turn."""
    arrays = dict(StoredArrays(folder / MODEL, _names(layout)))
    arrays |= votes.arrays_of(study, measured.tasks)
    save_ending(
        folder, arrays, model_round=turn.model_round, averaged=turn.averaged, has_votes=True
    )


def _name(number: int) -> str:
    return f"model-{number}.safetensors"


def _names(layout: Layout) -> tuple[str, ...]:
    return (*layout.sent_once, *(name for group in layout.groups.values() for name in group))
