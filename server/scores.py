"""How good the model of each round is, as its sites' validation patients show it.

A round's line of the history has the figures of the model that arrived in it, which is that of the
round before. So what is known when a round begins is how good the models were up to two rounds
before it. All here follows from the lines of the history alone; what scores decide stands in
``common/scores.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common import scores
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
    return scores.mean_score(study.federation, _figures(study, tasks).values())


def of_rounds(study: Study, records: Sequence[RoundRecord]) -> dict[int, float]:
    """Return the score of each round's model that has one, in the order of the rounds.

    Left out are the initial model, whose heads are random, what too few sites measured, and what
    ``comparable`` leaves out.
    """
    found = comparable(study, records)
    return {r.model_round: score for r, score in found if r.combined and r.model_round > 0}


def comparable(study: Study, records: Sequence[RoundRecord]) -> list[tuple[RoundRecord, float]]:
    """Return the records with the scores that are means over all tasks that ever had a figure.

    Where the only site of a task did not answer, the mean is over the other tasks. Those may be
    the easier ones, so such a score says nothing beside the others.
    """
    scored = [(record, record.score) for record in records if record.score is not None]
    most = {task for record, _ in scored for task in _defined(study, record)}
    return [(record, score) for record, score in scored if _defined(study, record) == most]


def best_round(study: Study, records: Sequence[RoundRecord]) -> int | None:
    """Return the round whose model has the best score, the first of several; None without one.

    The last round's model counts too once it has been measured by as many sites as the quorum.
    """
    found, quorum = of_rounds(study, records), study.federation.quorum
    for record, score in comparable(study, records):
        counts = not record.trained and not record.averaged and len(record.answered) >= quorum
        if counts and record.model_round > 0:
            found[record.model_round] = score
    return scores.best_of(found)


def times_lowered(study: Study, records: Sequence[RoundRecord]) -> int:
    """Return how often a schedule ``plateau`` has lowered the learning rates by now."""
    return scores.times_lowered(study.training.schedule, of_rounds(study, records))


def _defined(study: Study, record: RoundRecord) -> set[str]:
    found = _figures(study, record.tasks).items()
    return {task for task, figure in found if figure is not None}


def _figures(study: Study, tasks: Mapping[str, Any]) -> dict[str, float | None]:
    """Return each task's validation figure, of patients before images; None where undefined."""
    found = {name: splits["validation"] for name, splits in tasks.items() if "validation" in splits}
    figure = study.federation.score
    return {name: told.get("patients", told)["pooled"][figure] for name, told in found.items()}
