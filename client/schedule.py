"""Learning rates over the rounds: a schedule counts them from the first to the last.

The optimizer is new in every round, the schedule is not: what it says hangs on the round and on
how much of it is done, not on which sites took part before.
"""

import math

from common.training import Schedule

_NEARLY = 1e-9
"""Rounds are counted in fractions, which may end just below the whole number that is meant."""


def rate_factors(
    schedule: Schedule, number: int, rounds: int, steps: int, *, lowered: int = 0
) -> list[float]:
    """Return what every learning rate is multiplied with in each gradient step of a round.

    Args:
        schedule: The study's.
        number: The round, from 1.
        rounds: Rounds of the whole study.
        steps: Gradient steps of this site in this round.
        lowered: How many times ``plateau`` has lowered the rates so far.
    """
    return [
        rate_factor(schedule, number - 1 + i / steps, rounds, step=1 / steps, lowered=lowered)
        for i in range(steps)
    ]


def rate_factor(
    schedule: Schedule, done: float, rounds: int, *, step: float = 0.0, lowered: int = 0
) -> float:
    """Return what every learning rate is multiplied with in one gradient step.

    Args:
        schedule: The study's.
        done: Rounds that are done before the step, whole ones and the part of this one; from 0 to
            below ``rounds``.
        rounds: Rounds of the whole study.
        step: What part of a round the step is. A warm-up counts the step itself in, so that the
            first one is not made at a rate of 0.
        lowered: How many times ``plateau`` has lowered the rates so far.

    Returns:
        From 0 to 1. A warm-up goes below the schedule's floor.
    """
    factor = _decayed(schedule, done, rounds, lowered)
    if schedule.warmup_rounds:
        factor *= min(1.0, (done + step) / schedule.warmup_rounds)
    return factor


def _decayed(schedule: Schedule, done: float, rounds: int, lowered: int) -> float:
    match schedule.kind:
        case "constant":
            return 1.0
        case "cosine":
            return _half_cosine(done / rounds, schedule.floor)
        case "restarts":
            return _half_cosine(_of_cycle(schedule, done), schedule.floor)
        case "step":
            lowered = math.floor(done / _period(schedule) + _NEARLY)
            return max(schedule.floor, schedule.factor**lowered)
        case "plateau":
            return max(schedule.floor, schedule.factor**lowered)


def _half_cosine(share: float, floor: float) -> float:
    """Fall from 1 to ``floor`` (Loshchilov and Hutter 2017, equation 5)."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2


def _of_cycle(schedule: Schedule, done: float) -> float:
    """Return the share of the present cycle that is done; cycle i has period * growth^i rounds."""
    cycles, growth = done / _period(schedule), schedule.growth
    if growth == 1:
        return max(0.0, cycles - math.floor(cycles + _NEARLY))
    # n cycles have (growth^n - 1) / (growth - 1) periods.
    number = math.floor(math.log1p(cycles * (growth - 1)) / math.log(growth) + _NEARLY)
    over = cycles - (growth**number - 1) / (growth - 1)
    return min(max(0.0, over / growth**number), 1.0)


def _period(schedule: Schedule) -> float:
    return schedule.period or math.inf  # a study of such a kind has one
