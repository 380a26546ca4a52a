"""What validation scores decide: when rounds end, with which of their models, at what rates.

The coordinator decides so of a federation (``server/scores.py``, ``server/endings.py``), a site or
a simulation of a network whose patients all lie in one place (``client/own_rounds.py``). Scores
stand by the rounds whose models have them, in the order of the rounds; a round without a score is
left out. The higher a score the better.
"""

import math
from collections.abc import Iterable, Mapping

from common.federation import Federation
from common.phases import last_phase_begins
from common.study import Study
from common.training import Schedule

Scores = Mapping[int, float]
"""By round, in order."""


def are_needed(study: Study) -> bool:
    """Say whether anything of the study hangs on its rounds' scores."""
    federation = study.federation
    ends_by_them = federation.keep == "best" or federation.early_stopping is not None
    return ends_by_them or study.training.schedule.kind == "plateau"


def mean_score(federation: Federation, figures: Iterable[float | None]) -> float | None:
    """Return the validation score of a model; None where no task has a figure.

    Args:
        federation: Which figure is compared; a loss is negated.
        figures: That figure of each task, on its validation patients; None where undefined.
    """
    defined = [figure for figure in figures if figure is not None]
    if not defined:
        return None
    mean = math.fsum(defined) / len(defined)
    return mean if federation.score == "auroc" else -mean


def standing(scores: Scores, least_gain: float) -> tuple[int, int]:
    """Return the round of the last gain, and how many scored rounds have been since.

    Args:
        scores: By round, in order.
        least_gain: By how much a score must be above the one of the last gain to be one itself.

    Returns:
        Two zeros without a score.
    """
    best, at, since = -math.inf, 0, 0
    for number, score in scores.items():
        if score > best + least_gain:
            best, at, since = score, number, 0
        else:
            since += 1
    return at, since


def stands_still(study: Study, stages: int, scores: Scores) -> tuple[int, int] | None:
    """Return where the scores stand if early stopping ends the rounds by them; None if it does not.

    Rounds without gain count from the phase on that lasts to the end: one that trains fewer layers
    is there to be left, however flat its scores are.

    Args:
        study: When it stops, and its phases.
        stages: How many stages its backbone has.
        scores: By round, in order.

    Returns:
        The round of the last gain, and how many scored rounds have been since.
    """
    stopping = study.federation.early_stopping
    if stopping is None:
        return None
    begins = last_phase_begins(study.training, stages)
    counted = {number: score for number, score in scores.items() if number >= begins}
    found = standing(counted, stopping.least_gain)
    return found if found[1] >= stopping.patience else None


def best_of(scores: Scores) -> int | None:
    """Return the round whose model has the best score, the first of several; None without one."""
    return max(sorted(scores), key=scores.__getitem__, default=None)


def times_lowered(schedule: Schedule, scores: Scores) -> int:
    """Return how often a schedule ``plateau`` has lowered the learning rates by now.

    It does so whenever ``patience`` scored rounds in a row brought no better score than the best,
    and then counts anew, as ``torch.optim.lr_scheduler.ReduceLROnPlateau`` does with a patience
    that is less by one and a threshold of 0. With any other schedule it is 0.
    """
    if schedule.kind != "plateau":
        return 0
    best, since, lowered = -math.inf, 0, 0
    for score in scores.values():
        better = score > best
        best, since = max(best, score), 0 if better else since + 1
        if since == schedule.patience:
            lowered, since = lowered + 1, 0
    return lowered


def last_rounds(federation: Federation, number: int) -> range:
    """Return the rounds whose models are averaged where the last one is ``number``."""
    return range(max(number - federation.average_last + 1, 1), number + 1)


def wanted(study: Study, best: int | None, number: int) -> set[int]:
    """Return the rounds before ``number`` whose models the study may still end with.

    Args:
        study: Which model it ends with.
        best: The round with the best score so far.
        number: A round, whose own model is at hand.
    """
    federation = study.federation
    if federation.keep == "best":
        return set() if best is None else {best} - {number}
    earlier = last_rounds(federation, number)[:-1]
    first = 1 if federation.early_stopping else last_rounds(federation, study.rounds)[0]
    return {round_ for round_ in earlier if round_ >= first}
