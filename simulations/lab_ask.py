"""One training of a lab: a study or its yardsticks, asked about all held-out images."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.config import SiteConfig
from client.dataset import Images
from client.evaluate import logits_of
from client.final_model import final_model, tuned_model
from client.personal import personalise
from client.site import Site
from client.store import SiteStore
from common.held_out import HELD_OUT
from common.models import FederatedModel
from common.study import Study
from server.history import RoundRecord
from server.initial_weights import initial_model
from simulations import yardsticks
from simulations.asking import ask_at_sites
from simulations.federation import play
from simulations.lab import Classical
from simulations.lab_classical import each_classical
from simulations.lab_predictions import ONE_MODEL, Held, held

Trained = Literal["federated", "tuned", "alone", "pooled", "classical"]
"""What is trained: rows of other kinds are made of what these say."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Facts:
    """What a training cost."""

    trainable: int | None
    """Numbers that train in one model; None where it is no network."""
    rounds: int
    """Rounds that were trained; of models of several sites, the most."""
    bytes_per_round: float | None
    """What all sites together received and sent in the rounds of the federation, over their number;
    None where nothing is sent."""
    seconds: float
    """Wall time of the training; of a federation, with what its sites measure in each round, and
    of ``tuned``, with their choice."""

    def plain(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        return asdict(self)


class Recipe(NamedTuple):
    """What one training is."""

    trained: Trained
    study: Study
    rounds_after: int = 0
    """Rounds that each site trains further after a federation; of ``tuned``."""
    classical: Classical | None = None
    """What is fitted; of ``classical``."""


class Asked(NamedTuple):
    """What came of one training."""

    said: dict[str, Held]
    """By task."""
    facts: Facts


class _Ground(NamedTuple):
    """Held-out images of all sites, by split, then task."""

    images: dict[str, dict[str, Images]]
    places: dict[str, dict[str, dict[str, slice]]]


Logits = dict[str, dict[str, dict[str, NDArray[np.floating]]]]
"""By task, then model, then split."""


def train_and_ask(
    recipe: Recipe, hospitals: Sequence[Path], folder: Path, *, threads: int, tell: Tell
) -> Asked:
    """Train, and ask what came of it about the held-out images of all sites.

    What the hospitals keep of the study is removed at the end, and the coordinator's model with
    it: a grid of large networks would fill the disk.

    Args:
        recipe: What is trained, and how.
        hospitals: One folder a site.
        folder: Where a federation writes its history.
        threads: Torch threads; 0 is all cores.
        tell: Called with a word on what is being done.

    Raises:
        RarefedError: As ``federation.play`` says, or where a model is not finite.
    """
    try:
        if recipe.trained in ("federated", "tuned"):
            return _federated(recipe, hospitals, folder, threads, tell)
        return _yardstick(recipe, hospitals, threads, tell)
    finally:
        for hospital in hospitals:
            SiteStore(SiteConfig.load(hospital).state, recipe.study.digest()).clear()
        for file in folder.glob("*.safetensors"):
            file.unlink()


def _federated(
    recipe: Recipe, hospitals: Sequence[Path], folder: Path, threads: int, tell: Tell
) -> Asked:
    """Play the study, and ask each site's final model about its own images.

    The arrays that a site keeps to itself are in it; where there are none all sites have the same.
    """
    study = recipe.study

    def watch(record: RoundRecord) -> None:
        tell(f"round {record.round} of {study.rounds}" if record.trained else "asking")

    began = time.perf_counter()
    played = play(study, hospitals, folder, threads=threads, watch=watch)
    records, seconds = played.outcome.records, played.seconds
    rounds, sent = sum(record.trained for record in records), bytes_per_round(records)
    ground = _ground(study, played.sites)
    found: Logits = {task: {ONE_MODEL: _empty(study, task, ground)} for task in study.tasks}
    for site in played.sites:
        models = _final_of(recipe, site, tell)
        for task, data in site.prepare(study).tasks.items():
            for split in HELD_OUT:
                at = ground.places[split][task][site.config.name]
                found[task][ONE_MODEL][split][at] = logits_of(
                    models[task],
                    data.splits[split],
                    task,
                    device=site.device,
                    adapted=study.evaluation.adapted,
                )
    if recipe.trained == "tuned":
        seconds, rounds = time.perf_counter() - began, rounds + recipe.rounds_after
    facts = Facts(trainable(played.start.model), rounds, sent, seconds)
    return Asked(_said(study, ground, found), facts)


def bytes_per_round(records: Sequence[RoundRecord]) -> float:
    """Return what all sites together received and sent in a round that trained, in the mean.

    Exchanges that only measure count neither as rounds nor by their bytes.
    """
    sent = [
        sum(sum(way.values()) for way in record.bytes.values())
        for record in records
        if record.trained
    ]
    return sum(sent) / max(len(sent), 1)


def _final_of(recipe: Recipe, site: Site, tell: Tell) -> dict[str, FederatedModel]:
    """Return the model that a site ends with, by task."""
    study, config = recipe.study, site.config
    final = final_model(config, study, device=site.device)
    models = dict.fromkeys(final.tasks, final.model)
    if recipe.trained == "tuned":
        tell(f"{config.name} goes on alone")
        rounds = recipe.rounds_after
        chosen = personalise(config, study, rounds=rounds, device=site.device, log=site.log)
        if chosen.sha256 is not None:
            tuned = tuned_model(config, study, device=site.device)
            models |= dict.fromkeys(tuned.tasks, tuned.model)
    return models


def _empty(study: Study, task: str, ground: _Ground) -> dict[str, NDArray[np.floating]]:
    classes = len(study.tasks[task].classes)
    return {s: np.zeros((len(of[task]), classes), np.float32) for s, of in ground.images.items()}


def _yardstick(recipe: Recipe, hospitals: Sequence[Path], threads: int, tell: Tell) -> Asked:
    study = recipe.study
    start = initial_model(study).model
    torch.set_num_threads(threads or os.cpu_count() or 1)
    sites = [Site(SiteConfig.load(folder)) for folder in hospitals]
    ground = _ground(study, sites)
    found: Logits = {task: {} for task in study.tasks}
    began = time.perf_counter()
    if recipe.classical is not None:
        for task, name, said in each_classical(
            study, sites, start, recipe.classical, ground.images, tell
        ):
            found[task][name] = dict(said)
        seconds = time.perf_counter() - began
        return Asked(_said(study, ground, found), Facts(None, 0, None, seconds))
    made = [0]
    if recipe.trained == "alone":
        for site, model, tasks in yardsticks.each_alone(study, sites, start, tell, made.append):
            for task in tasks:
                found[task][site.config.name] = _asked(study, model, task, ground, site.device)
    else:
        for task, model in yardsticks.each_pooled(study, sites, start, tell, made.append):
            found[task][ONE_MODEL] = _asked(study, model, task, ground, sites[0].device)
    seconds = time.perf_counter() - began
    return Asked(_said(study, ground, found), Facts(trainable(start), max(made), None, seconds))


def trainable(model: FederatedModel) -> int:
    """Return how many numbers of a network train."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def _ground(study: Study, sites: Sequence[Site]) -> _Ground:
    found = {split: yardsticks.held_out(study, sites, split) for split in HELD_OUT}
    return _Ground(
        {split: images for split, (images, _) in found.items()},
        {split: places for split, (_, places) in found.items()},
    )


def _asked(
    study: Study, model: FederatedModel, task: str, ground: _Ground, device: torch.device
) -> dict[str, NDArray[np.floating]]:
    return {
        split: ask_at_sites(
            study, model, images[task], task, ground.places[split][task], device=device
        )
        for split, images in ground.images.items()
    }


def _said(study: Study, ground: _Ground, found: Mapping[str, Any]) -> dict[str, Held]:
    return {
        task: held(
            {split: images[task] for split, images in ground.images.items()},
            {split: places[task] for split, places in ground.places.items()},
            found[task],
        )
        for task in study.tasks
    }
