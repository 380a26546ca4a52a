"""How good the model of each round is, as its sites' validation patients show it.

A round's line of the history has the figures of the model that arrived in it, which is that of the
round before. So what is known when a round begins is how good the models were up to two rounds
before it. All here follows from the lines of the history alone.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from common.study import Study
from server.history import RoundRecord


def score_of(study: Study, tasks: Mapping[str, Any]) -> float | None:
    """Return the validation score of a measured model; the higher the better.

    It is the study's ``federation.score``, pooled over the sites, each patient counting once, and
    averaged over the tasks that define it; a loss is negated.

    Args:
        study: What was agreed.
        tasks: Figures by task and split, as a record has them.

    Returns:
        None where no task has a figure.
    """
    found = (splits["validation"] for splits in tasks.values() if "validation" in splits)
    figures = [told.get("patients", told)["pooled"][study.federation.score] for told in found]
    defined = [figure for figure in figures if figure is not None]
    if not defined:
        return None
    mean = math.fsum(defined) / len(defined)
    return mean if study.federation.score == "auroc" else -mean


def of_rounds(records: Iterable[RoundRecord]) -> dict[int, float]:
    """Return the score of each round's model that has one, in the order of the rounds.

    Left out are the initial model, whose heads are random, and what too few sites measured.
    """
    found = {r.model_round: r.score for r in records if r.combined and r.model_round > 0}
    return {number: score for number, score in found.items() if score is not None}


def standing(scores: Mapping[int, float], least_gain: float) -> tuple[int, int]:
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


def best_round(study: Study, records: Iterable[RoundRecord]) -> int | None:
    """Return the round whose model has the best score, the first of several; None without one.

    The last round's model counts too once it has been measured by as many sites as the quorum.
    """
    records, quorum = list(records), study.federation.quorum
    scores: dict[int, float] = of_rounds(records)
    for record in records:
        counts = not record.trained and not record.averaged and len(record.answered) >= quorum
        if counts and record.score is not None and record.model_round > 0:
            scores[record.model_round] = record.score
    return max(sorted(scores), key=scores.__getitem__, default=None)


def times_lowered(study: Study, records: Iterable[RoundRecord]) -> int:
    """Return how often a schedule ``plateau`` has lowered the learning rates by now.

    It does so whenever ``patience`` scored rounds in a row brought no better score than the best,
    and then counts anew, as ``torch.optim.lr_scheduler.ReduceLROnPlateau`` does with a patience
    that is less by one and a threshold of 0. With any other schedule it is 0.
    """
    schedule = study.training.schedule
    if schedule.kind != "plateau":
        return 0
    best, since, lowered = -math.inf, 0, 0
    for score in of_rounds(records).values():
        better = score > best
        best, since = max(best, score), 0 if better else since + 1
        if since == schedule.patience:
            lowered, since = lowered + 1, 0
    return lowered
