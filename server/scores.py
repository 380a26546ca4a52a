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
    return scores.mean_of_tasks(_figures(study, tasks).values())


def of_rounds(study: Study, records: Sequence[RoundRecord]) -> dict[int, scores.Figures]:
    """Return the figures of each round's model that has one, in the order of the rounds.

    Left out are the initial model, whose heads are random, and what too few sites measured.
    """
    found = {r.model_round: _figures(study, r.tasks) for r in records if r.combined}
    return {number: figures for number, figures in found.items() if number > 0 and figures}


def best_round(study: Study, records: Sequence[RoundRecord]) -> int | None:
    """Return the round whose model has the best score, the first of several; None without one.

    The last round's model counts too once it has been measured by as many sites as the quorum.
    """
    found, quorum = of_rounds(study, records), study.federation.quorum
    for record in records:
        counts = not record.trained and not record.averaged and len(record.answered) >= quorum
        if counts and record.model_round > 0:
            figures = _figures(study, record.tasks)
            # A task that no round had a figure of says nothing against any round.
            known = set().union(*found.values()) or figures.keys()
            figures = {task: figure for task, figure in figures.items() if task in known}
            found |= {record.model_round: figures} if figures else {}
    return scores.best_of(found)


def times_lowered(study: Study, records: Sequence[RoundRecord]) -> int:
    """Return how often a schedule ``plateau`` has lowered the learning rates by now."""
    return scores.times_lowered(study.training.schedule, of_rounds(study, records))


def _figures(study: Study, tasks: Mapping[str, Any]) -> dict[str, float]:
    """Return each task's validation figure, of patients before images, where it is defined."""
    found = {name: splits["validation"] for name, splits in tasks.items() if "validation" in splits}
    figure = study.federation.score
    told = {name: of.get("patients", of)["pooled"][figure] for name, of in found.items()}
    return scores.figures_of(study.federation, told)
