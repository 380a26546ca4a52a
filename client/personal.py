"""A network of the site's own: the study's final one, trained further on its patients alone.

It is local adaptation by fine-tuning (Yu et al. 2020, arXiv:2002.04758), and kept for those tasks
alone in which it is better on the site's validation patients: a site with few patients, or with
patients like all others, can lose by it. Nothing of it leaves the site.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from client.alone import train_alone
from client.benefit import TUNED, Benefit, compare, patients_of
from client.config import SiteConfig
from client.dataset import TaskData
from client.evaluation import DISCLAIMER, asked_tasks, kept_models
from client.final_model import FinalModel, final_model
from client.prepared import deal, load_tasks
from client.store import PERSONAL, SiteStore
from client.weighted_metrics import metrics_of
from common.arrays import digest
from common.models import FederatedModel
from common.study import Study
from common.weights import take

_FEW = 20
"""Validation patients below which chance decides much of what is kept."""


class Score(NamedTuple):
    """What the networks were compared by, on the site's validation patients."""

    metric: str
    """``auroc``, or ``loss`` where the study says so or the patients have one class alone."""
    tuned: float | None
    """None where there is no validation patient."""
    final: float | None
    patients: int

    @property
    def better(self) -> bool:
        """Whether the network that was trained further is the better one."""
        if self.tuned is None or self.final is None:
            return False
        return self.tuned < self.final if self.metric == "loss" else self.tuned > self.final


@dataclass(frozen=True)
class TaskChoice:
    """Which network is the better one for one task."""

    kept: bool
    """Whether the site keeps its own network for the task."""
    score: Score
    test: Benefit
    """Both on test patients, whom nothing was chosen by, and their paired difference."""


@dataclass(frozen=True)
class Personalised:
    """What a site's own network is worth."""

    format: str
    disclaimer: str
    site: str
    study: str
    digest: str
    rounds: int
    """Of training after the study's end."""
    sha256: str | None
    """Of the arrays that are kept; None where none are."""
    tasks: Mapping[str, TaskChoice]
    notes: tuple[str, ...]


def personalise(
    config: SiteConfig,
    study: Study,
    *,
    rounds: int,
    device: torch.device,
    log: logging.Logger,
    progress: Callable[[int], None] | None = None,
) -> Personalised:
    """Train the final network further on the site's training patients, and keep it where better.

    It takes the place of one that was kept before; where it is better in no task, none is kept.

    Args:
        config: The hospital.
        study: The study, which is over.
        rounds: How many rounds, each as in the study; the schedule of rates begins anew, and what
            ``training.train`` says trains in all of them.
        device: Where the arithmetic runs.
        log: The site's own.
        progress: Called with the number of rounds that are done.

    Raises:
        TaskWithoutSiteError: Site and network share no task.
        FederationError: The site keeps no final network of the study.
        DataError: What is wrong with the data.
        DivergedError: The training has no finite end; what was kept before stays.
    """
    final = final_model(config, study, device=device)
    asked = asked_tasks(config, final)
    found = load_tasks(study, config, deal(study, config), log)
    tasks = {name: found[name] for name in asked}
    named = {TUNED: _tuned(config, final, tasks, rounds, progress)}
    named |= kept_models(config, study, device).named
    before = next(model for which, model in named.items() if which != TUNED)
    choices = {}
    for name, data in tasks.items():
        score = choice_score(study, (named[TUNED], before), name, data, device=device)
        benefit = compare(config, study, named, name, data, device)
        choices[name] = TaskChoice(score.better, score, benefit)
    won = [name for name, choice in choices.items() if choice.kept]
    return Personalised(
        format="rarefed-personal-1",
        disclaimer=DISCLAIMER,
        site=config.name,
        study=study.name,
        digest=study.digest(),
        rounds=rounds,
        sha256=_keep(config, final, named[TUNED], won, rounds),
        tasks=choices,
        notes=_notes(study, choices),
    )


def _tuned(
    config: SiteConfig,
    final: FinalModel,
    tasks: Mapping[str, TaskData],
    rounds: int,
    progress: Callable[[int], None] | None,
) -> FederatedModel:
    """Train the final network in place, for all of the rounds.

    Validation patients choose between it and the final one, and should not have chosen a round
    before: the best of several scores is too good.
    """
    study = final.study
    training = study.training.model_copy(update={"phases": [], "unfreeze_every": None})
    plain = {"keep": "last", "average_last": 1, "early_stopping": None}
    return train_alone(
        final.model,
        {name: data.splits["train"] for name, data in tasks.items()},
        study.model_copy(
            update={
                "rounds": rounds,
                "training": training,
                "federation": study.federation.model_copy(update=plain),
            }
        ),
        site=config.name,
        device=next(final.model.parameters()).device,
        progress=progress,
    )


def choice_score(
    study: Study,
    models: tuple[FederatedModel, FederatedModel],
    name: str,
    data: TaskData,
    *,
    device: torch.device,
) -> Score:
    """Return what two networks are compared by: ``federation.score``, each patient counting once.

    Args:
        study: The study.
        models: The one that was trained further, and the final one.
        name: The task.
        data: Its images.
        device: Where the networks are.

    Raises:
        DivergedError: A network gives no finite numbers.
    """
    images = data.splits["validation"]
    if not len(images):
        return Score(study.federation.score, None, None, 0)
    found = []
    for model in models:
        cases = patients_of(study, model, images, name, device=device)
        found.append(metrics_of(cases, np.ones((1, len(cases.labels)))))
    metric: str = study.federation.score
    if np.isnan([of[metric][0] for of in found]).any():
        metric = "loss"
    tuned, final = (float(of[metric][0]) for of in found)
    return Score(metric, tuned, final, images.n_patients)


def _keep(
    config: SiteConfig, final: FinalModel, model: FederatedModel, tasks: Sequence[str], rounds: int
) -> str | None:
    """Keep the network for the tasks in which it is better, and return its digest."""
    store = SiteStore(config.state, final.study.digest())
    if not tasks:
        store.remove_network(PERSONAL)
        return None
    arrays = take(model, model.state_dict())
    store.save_network(
        PERSONAL,
        arrays,
        model_round=final.model_round + rounds,
        tasks=tasks,
        trained_from=final.sha256,
    )
    return digest(arrays)


def _notes(study: Study, choices: Mapping[str, TaskChoice]) -> tuple[str, ...]:
    """Say what must be known to read the figures, and to use the network."""
    notes = [
        f"{name}: {choice.score.patients} validation patients decided, which leaves much to chance."
        for name, choice in choices.items()
        if choice.score.patients < _FEW
    ]
    if study.privacy is not None:
        notes.append(
            "The study's privacy does not cover this network, and no ledger counts its training: "
            "it must not leave the site."
        )
    return tuple(notes)
