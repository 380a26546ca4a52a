"""The rounds of a study over patients who lie in one place, ended by the study's own rules.

So train the yardsticks of a federation: a site by itself, and all sites' patients pooled. After
each round the network is measured on validation patients of the same place, if the study asks its
rounds for a score. Whether another round follows, at which rates, and with which round's network
all ends is decided as the coordinator decides it (``common/scores.py``), and by as much: when a
round begins, the score of the network that it begins with is not known there yet, nor is it here.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import torch

from client.anchor import initial_of, near_of
from client.dataset import Images, round_of_batches
from client.evaluate import evaluate, evaluate_apart
from client.features import FrozenFeatures
from client.own_scores import ByTask, figures_of, votes_of
from client.phases import PhaseFeatures, in_phase
from client.train import train
from common import scores
from common.arrays import Array, Arrays, mean_of
from common.held_out import members_of
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study
from common.weights import put, take

Form = Callable[[str, int], FederatedModel]
"""From a task and the rounds that were made to the network that is asked about the task."""
Asked = Callable[[str], tuple[FederatedModel, FrozenFeatures | None]]
"""From a task to the network that is asked about it, and its kept features."""
Told = TypeVar("Told")


class Patients(NamedTuple):
    """Whose images lie in one place."""

    name: str
    """A site's name, or what stands for one; random numbers depend on it."""
    train: ByTask
    """Training images by task."""
    validation: Sequence[ByTask] = ()
    """Validation images by task, of one site after the other; without any no round has a score."""
    steps: int | None = None
    """Gradient steps in each round; None for those of the study's epochs."""


class Ended(NamedTuple):
    """How the rounds ended."""

    rounds: int
    """How many were made."""
    model_round: int
    """Whose network it is; the last one's, unless the best is kept."""


def train_rounds(
    model: FederatedModel,
    patients: Patients,
    study: Study,
    *,
    device: torch.device,
    form: Form | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ended:
    """Train a network in place, round after round, and leave in it what the study ends with.

    Each round begins with a new optimizer. There is no differential privacy. Networks that it may
    end with are kept in memory meanwhile.

    Args:
        model: As the first round found it, on ``device``. If the study's objective holds the
            backbone near the initial one, that is the one it comes with.
        patients: Whose images it trains and is measured on.
        study: How to train, and when to end.
        device: Where the arithmetic runs.
        form: What is measured after a round, where that is another network than ``model``.
        progress: Called with the number of rounds that are done.

    Raises:
        DivergedError: The training has no finite end.
    """
    features = PhaseFeatures(model, study, patients.name, device)
    train_round = _trainer(model, patients, study, features, device)
    found: dict[int, scores.Figures] = {}
    known: dict[int, scores.Figures] = {}
    kept: dict[int, dict[str, Array]] = {}
    stages, number = len(model.stages), 0
    while number < study.rounds and scores.stands_still(study, stages, known) is None:
        number += 1
        train_round(number, scores.times_lowered(study.training.schedule, known))
        known = dict(found)  # a coordinator hears of this network with the next round's replies
        if scores.are_needed(study):
            measure = _measurer(evaluate, _asked(model, features, form, number), study, device)
            figures = figures_of(measure, patients.validation, study)
            found |= {number: figures} if figures else {}
        _keep(kept, model, study, scores.best_of(found), number)
        if progress is not None:
            progress(number)
    ended = _end(kept, model, study, scores.best_of(found), number)
    if members_of(study):
        asked = _asked(model, features, form, ended.model_round)
        each = _measurer(evaluate_apart, asked, study, device)
        put(model, votes_of(each, patients.validation, study))
    return ended


def _trainer(
    model: FederatedModel,
    patients: Patients,
    study: Study,
    features: PhaseFeatures,
    device: torch.device,
) -> Callable[[int, int], None]:
    """Return what trains one round: of its number, and of how often a plateau lowered the rates."""
    initial = initial_of(model, study)

    def train_round(number: int, lowered: int) -> None:
        seed = stream(study.seed, patients.name, number)
        apart = torch.Generator().manual_seed(stream(seed, "augmentation"))
        with in_phase(model, study, number), torch.random.fork_rng():
            torch.manual_seed(stream(seed, "dropout"))
            kept = features.in_round(number)
            train(
                model,
                patients.train,
                round_of_batches(patients.train, study.training, seed, steps=patients.steps),
                study,
                number=number,
                lowered=lowered,
                device=device,
                near=near_of(model, study, initial, kept),
                features=kept,
                generator=apart,
            )

    return train_round


def _asked(model: FederatedModel, features: PhaseFeatures, form: Form | None, number: int) -> Asked:
    """Return what is asked about a task after a round."""

    @cache
    def asked(task: str) -> tuple[FederatedModel, FrozenFeatures | None]:
        network = model if form is None else form(task, number)
        return network, features.in_round(number) if network is model else None

    return asked


def _measurer(
    how: Callable[..., Told], asked: Asked, study: Study, device: torch.device
) -> Callable[[str, Images], Told]:
    """Return what measures the network after a round, by task and images.

    Args:
        how: ``evaluate``, or ``evaluate_apart`` for each member of an ensemble by itself.
        asked: What is asked about a task.
        study: What was agreed.
        device: Where the arithmetic runs.
    """

    def measure(task: str, images: Images) -> Told:
        network, features = asked(task)
        return how(
            network,
            images,
            task,
            study.tasks[task],
            device=device,
            features=features,
            adapted=study.evaluation.adapted,
        )

    return measure


def _keep(
    kept: dict[int, dict[str, Array]],
    model: FederatedModel,
    study: Study,
    best: int | None,
    number: int,
) -> None:
    """Keep a round's network if the study may end with it, and forget those it will not."""
    wanted = scores.wanted(study, best, number) | scores.wanted(study, best, number + 1)
    for earlier in kept.keys() - wanted:
        del kept[earlier]
    if number in wanted:
        kept[number] = take(model, model.state_dict())


def _end(
    kept: Mapping[int, Arrays],
    model: FederatedModel,
    study: Study,
    best: int | None,
    number: int,
) -> Ended:
    """Put into the network what the study ends with after so many rounds."""
    if study.federation.keep == "best":
        best = best or number
        put(model, kept.get(best, {}))  # without a score none is kept: it is the last one
        return Ended(number, best)
    if study.federation.average_last > 1:
        last = [kept[earlier] for earlier in scores.last_rounds(study.federation, number)]
        put(model, mean_of(last, last[-1]))
    return Ended(number, number)
