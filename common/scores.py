"""What validation scores decide: when rounds end, with which of their models, at what rates.

The coordinator decides so of a federation (``server/scores.py``, ``server/endings.py``), a site or
a simulation of a network whose patients all lie in one place (``client/own_rounds.py``). Scores
stand by the rounds whose models have them, in the order of the rounds; a round without a score is
left out. The higher a score the better. What is decided after a round hangs on no later one.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from common.federation import Federation
from common.phases import last_phase_begins
from common.study import Study
from common.training import Schedule

LOST_AFTER = 5
"""Scored rounds in a row without a task's figure, after which the other tasks decide alone."""

Figures = Mapping[str, float]
"""Of each task that defines it, the figure that a study compares; the higher the better."""
Scores = Mapping[int, Figures]
"""By round, in order; each has the figure of a task at least."""


class Standing(NamedTuple):
    """How the scores stand after a round."""

    best: int = 0
    """The round of the last gain; 0 without a score."""
    since: int = 0
    """How many comparable rounds have been since."""
    score: float = -math.inf
    """That round's, over the tasks that are compared."""


def are_needed(study: Study) -> bool:
    """Say whether anything of the study hangs on its rounds' scores."""
    federation = study.federation
    ends_by_them = federation.keep == "best" or federation.early_stopping is not None
    return ends_by_them or study.training.schedule.kind == "plateau"


def figures_of(federation: Federation, told: Mapping[str, float | None]) -> dict[str, float]:
    """Return the figures of a model that are compared, of the tasks that define theirs.

    Args:
        federation: Which figure it is; a loss is negated.
        told: That figure of each task, on its validation patients; None where undefined.
    """
    sign = 1 if federation.score == "auroc" else -1
    return {task: sign * figure for task, figure in told.items() if figure is not None}


def mean_of_tasks(figures: Iterable[float]) -> float | None:
    """Return the validation score of a model; None of no figure."""
    found = list(figures)
    return math.fsum(found) / len(found) if found else None


def standings(scores: Scores, least_gain: float = 0.0) -> Iterator[Standing]:
    """Yield how the scores stand after each round.

    A round is compared with the one of the last gain, by the mean over the tasks that this one has
    figures of. Where the only site of one of them did not answer, the mean over the others, perhaps
    the easier ones, says nothing beside it: such a round is passed over, until ``LOST_AFTER``
    rounds in a row had no figure of that task. Where a task comes in that had none as long, what
    was before is left behind.

    Args:
        scores: By round, in order.
        least_gain: By how much a score must be above the one of the last gain to be one itself.
    """
    now, best = Standing(), dict[str, float]()
    lately = deque[set[str]](maxlen=LOST_AFTER)
    for number, figures in scores.items():
        comes_in = figures.keys() - best.keys() - set().union(*lately)
        lately.append(set(figures))
        tasks = best.keys() & set().union(*lately)
        if tasks <= figures.keys():
            before = _mean(best, tasks) if tasks and not comes_in else -math.inf
            if _mean(figures, tasks or figures.keys()) > before + least_gain:
                now, best = Standing(number, 0, _mean(figures, figures.keys())), dict(figures)
            else:
                now = Standing(now.best, now.since + 1, before)
        yield now


def _mean(figures: Figures, tasks: Collection[str]) -> float:
    return math.fsum(figures[task] for task in tasks) / len(tasks)


def standing(scores: Scores, least_gain: float = 0.0) -> Standing:
    """Return how the scores stand after the last round."""
    found = Standing()
    for found in standings(scores, least_gain):  # noqa: B007 - the last is returned
        pass
    return found


def stands_still(study: Study, stages: int, scores: Scores) -> Standing | None:
    """Return how the scores stand if early stopping ends the rounds by them; None if it does not.

    Rounds without gain count from the phase on that lasts to the end: one that trains fewer layers
    is there to be left, however flat its scores are.

    Args:
        study: When it stops, and its phases.
        stages: How many stages its backbone has.
        scores: By round, in order.
    """
    stopping = study.federation.early_stopping
    if stopping is None:
        return None
    begins = last_phase_begins(study.training, stages)
    counted = {number: score for number, score in scores.items() if number >= begins}
    found = standing(counted, stopping.least_gain)
    return found if found.since >= stopping.patience else None


def best_of(scores: Scores) -> int | None:
    """Return the round whose model has the best score, the first of several; None without one."""
    return standing(scores).best or None


def times_lowered(schedule: Schedule, scores: Scores) -> int:
    """Return how often a schedule ``plateau`` has lowered the learning rates by now.

    It does so whenever ``patience`` comparable rounds in a row brought no better score than the
    best, and then counts anew, as ``torch.optim.lr_scheduler.ReduceLROnPlateau`` does with a
    patience that is less by one and a threshold of 0. With any other schedule it is 0.
    """
    if schedule.kind != "plateau":
        return 0
    lowered, before = 0, Standing()
    for now in standings(scores):
        counted = now.since > before.since
        lowered += counted and now.since % schedule.patience == 0
        before = now
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
