"""Which layers train in which round: a schedule of phases, or gradual unfreezing.

``training.train`` says what trains in the end and what travels in every round; a phase trains
fewer layers. How wide a word of ``training.train`` is, is counted in stages of the backbone.
"""

import re

from common.training import Training

_WORD = re.compile("all|head|last:[1-9][0-9]?")


def train_in_round(training: Training, number: int, stages: int) -> str:
    """Return what trains in a round: ``all``, ``head`` or ``last:k``.

    With ``unfreeze_every`` the heads train alone in the first so many rounds, and after so many
    rounds each one more stage, the last one first (gradual unfreezing, Howard and Ruder 2018,
    section 3.3), until all that ``train`` says do.

    Args:
        training: How the study trains.
        number: The round; 1, 2, ...
        stages: How many stages the backbone has.
    """
    if training.unfreeze_every is not None:
        thawed = (number - 1) // training.unfreeze_every
        if thawed >= width(training.train, stages):
            return training.train
        return f"last:{thawed}" if thawed else "head"
    left = number
    for phase in training.phases:
        if left <= phase.rounds:
            return phase.train
        left -= phase.rounds
    return training.train


def last_phase_begins(training: Training, stages: int) -> int:
    """Return the round from which all that ``train`` says trains to the end; 1 without phases.

    Args:
        training: How the study trains.
        stages: How many stages the backbone has, or fewer, for the earliest that it can be.
    """
    if training.unfreeze_every is not None:
        return training.unfreeze_every * width(training.train, stages) + 1
    return sum(phase.rounds for phase in training.phases) + 1


def last_patience(rounds: int, begins: int = 1) -> int:
    """Return for how many rounds at most one can wait for a better score, and then act on it.

    A round's score is known in the round after the next: what is measured arrives with it.

    Args:
        rounds: Of the whole study.
        begins: The round whose score is the first that counts.
    """
    return rounds - 2 - begins


def width(train: str, stages: int) -> int:
    """Return how many of a backbone's stages train.

    Args:
        train: ``all``, ``head`` or ``last:k``.
        stages: How many the backbone has.
    """
    if train == "all":
        return stages
    return 0 if train == "head" else int(train.removeprefix("last:"))


def has_phases(training: Training) -> bool:
    """Say whether fewer layers train in some rounds than in others."""
    return bool(training.phases) or training.unfreeze_every is not None


def lies_within(phase: str, train: str) -> bool:
    """Say whether a phase trains nothing that ``train`` does not, as far as one can tell.

    ``last:k`` lies within ``all``, unless the backbone has no more than ``k`` stages: that is
    known when it is built. Words that are none lie within all, for they have a fault already.
    """
    if not (_WORD.fullmatch(phase) and _WORD.fullmatch(train)):
        return True
    if train == "all" or phase == "head":
        return True
    return phase != "all" and width(phase, 0) <= width(train, 0)
