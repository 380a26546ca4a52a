"""What the federation is measured against, on the same patients and by the same rules.

- alone: each site trains on its own patients only, in each round as many steps as in the
  federation (``client/alone.py``, which a hospital itself runs with ``rarefed-client evaluate
  --alone``);
- ensemble: the mean of the probabilities that the sites' own models give;
- pooled: one model trained on all patients together, in each round as many steps as all sites make
  in sum.

All begin with the same weights, follow the same procedure (a fresh optimizer each round, as a
site in the federation has; the study's rules of when to end and with which round's model, by the
validation patients of the same place) and are judged on the test patients of all sites together.
Where batch norm lives, the pooled model is judged on each task with that task's own running
statistics.
Shapes: N images, K classes.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from client.alone import train_alone
from client.dataset import Images, batches, steps_per_epoch
from client.evaluate import measured
from client.features import channel_statistics
from client.own_rounds import Patients, train_rounds
from client.own_scores import ByTask
from client.phases import in_phase
from client.preprocess import normalise
from client.site import Site
from common.metrics import METRICS
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import put, take
from server.history import Figures, figures
from simulations.asking import ask_at_sites

Progress = Callable[[str], None]
Made = Callable[[int], None]
"""Called with the number of rounds that are done."""
Logits = NDArray[np.float32]


class Asked(NamedTuple):
    """What every yardstick says of the test images of all sites laid together."""

    test: dict[str, Images]
    """By task."""
    places: dict[str, dict[str, slice]]
    """By task, then site: which of the task's test images are the site's."""
    alone: dict[str, dict[str, Logits]]
    """By task, then the site whose own model it is; (N, K) each."""
    ensemble: dict[str, NDArray[np.float64]]
    """By task: logarithms of the mean probability, (N, K) each."""
    pooled: dict[str, Logits]
    """By task, (N, K) each."""


def train_and_ask(
    study: Study, sites: Sequence[Site], start: FederatedModel, tell: Progress
) -> Asked:
    """Train every yardstick, and ask it about all test images.

    Args:
        study: The study that the federation was played with.
        sites: Its sites, their data warm.
        start: The network as round 1 found it.
        tell: Called with a word on what is being done.
    """
    test, places = held_out(study, sites, "test")
    alone: dict[str, dict[str, Logits]] = {task: {} for task in study.tasks}
    for site, model, tasks in each_alone(study, sites, start, tell):
        for task in tasks:
            alone[task][site.config.name] = ask_at_sites(
                study, model, test[task], task, places[task], device=site.device
            )
    device = sites[0].device
    return Asked(
        test=test,
        places=places,
        alone=alone,
        ensemble={task: mean_probability(list(alone[task].values())) for task in study.tasks},
        pooled={
            task: ask_at_sites(study, model, test[task], task, places[task], device=device)
            for task, model in each_pooled(study, sites, start, tell)
        },
    )


def held_out(
    study: Study, sites: Sequence[Site], split: str
) -> tuple[dict[str, Images], dict[str, dict[str, slice]]]:
    """Return the images of a split of all sites laid together by task, and where each site's are.

    Args:
        study: The study.
        sites: Its sites, their data warm.
        split: ``train``, ``validation`` or ``test``.
    """
    held = {site.config.name: _images(study, site, split) for site in sites}
    return _merged(list(held.values())), {task: _places(task, held) for task in study.tasks}


def each_alone(
    study: Study,
    sites: Sequence[Site],
    start: FederatedModel,
    tell: Progress,
    progress: Made | None = None,
) -> Iterator[tuple[Site, FederatedModel, tuple[str, ...]]]:
    """Yield each site with the model that it trains by itself, and the site's tasks."""
    for site in sites:
        tell(f"yardstick: {site.config.name} alone")
        own, device = _images(study, site, "train"), site.device
        model = train_alone(
            _copy_of(start, study, device),
            own,
            study,
            site=site.config.name,
            device=device,
            validation=_images(study, site, "validation"),
            progress=progress,
        )
        yield site, model, tuple(own)


def each_pooled(
    study: Study,
    sites: Sequence[Site],
    start: FederatedModel,
    tell: Progress,
    progress: Made | None = None,
) -> Iterator[tuple[str, FederatedModel]]:
    """Yield each task with the model of all patients, in the form that it has for the task."""
    tell("yardstick: all patients pooled")
    patients, device = pooled_patients(study, sites), sites[0].device
    pooled = _copy_of(start, study, device)

    def form(task: str, number: int) -> FederatedModel:
        return _with_statistics_of(task, pooled, patients.train, study, number)

    ended = train_rounds(pooled, patients, study, device=device, form=form, progress=progress)
    for task in study.tasks:
        yield task, form(task, ended.model_round)


def pooled_patients(study: Study, sites: Sequence[Site]) -> Patients:
    """Return all sites' patients as those of one place, with the steps of all of them in sum."""
    parts = [_images(study, site, "train") for site in sites]
    return Patients(
        "pooled",
        _merged(parts),
        validation=[_images(study, site, "validation") for site in sites],
        steps=sum(_steps(study, part) for part in parts),
    )


def judge(study: Study, asked: Asked) -> dict[str, Any]:
    """Return figures by yardstick and task, on the test patients of all sites together.

    Those of ``alone`` are means over the sites, which stand beneath ``per_site``. Where patients
    have several images, figures in which each patient counts once stand beneath ``patients``.
    """
    test = asked.test
    return {
        "alone": {task: _alone(study, task, asked.alone[task], test[task]) for task in study.tasks},
        "ensemble": {
            task: _figures(study, task, asked.ensemble[task], test[task]) for task in study.tasks
        },
        "pooled": {
            task: _figures(study, task, asked.pooled[task], test[task]) for task in study.tasks
        },
    }


def _copy_of(start: FederatedModel, study: Study, device: torch.device) -> FederatedModel:
    model = build_model(study).to(device).to(memory_format=torch.channels_last)
    put(model, take(start, start.state_dict()))
    return model


def _with_statistics_of(
    task: str, model: FederatedModel, images: ByTask, study: Study, number: int
) -> FederatedModel:
    """Give living batch norm the running statistics of one task's training images.

    Each batch of the training was of one task, so the network learned with each task's own
    statistics; running statistics that mix CT with photographs would be neither's.
    """
    living = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if len(images) == 1 or not living:
        return model
    settled = copy.deepcopy(model)
    device = next(model.parameters()).device
    mean, std = channel_statistics(model, device)
    sizes = {task: len(images[task])}
    order = batches(sizes, batch_size=study.training.batch_size, epochs=1, seed=study.seed)
    # What none of ``number`` rounds has trained keeps its statistics; the last one trains most.
    with in_phase(settled, study, number), torch.no_grad(), torch.random.fork_rng():
        settled.train()
        for module in settled.modules():
            if isinstance(module, _BatchNorm) and module.training:
                module.reset_running_stats()
                module.momentum = None  # the plain mean over all batches
        for batch in order:
            pixels = images[task].pixels[torch.from_numpy(batch.indices)].to(device)
            settled(normalise(pixels, mean, std), task)
    return settled


def _steps(study: Study, images: ByTask) -> int:
    """Gradient steps that a site with these images makes in one round."""
    sizes = {task: len(part) for task, part in images.items()}
    return study.training.local_epochs * steps_per_epoch(sizes, study.training.batch_size)


def _images(study: Study, site: Site, split: str) -> dict[str, Images]:
    return {task: data.splits[split] for task, data in site.prepare(study).tasks.items()}


def _places(task: str, held: Mapping[str, ByTask]) -> dict[str, slice]:
    """Return where each site's images lie among those that ``_merged`` lays together."""
    sizes = {site: len(part[task]) for site, part in held.items() if task in part}
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {site: slice(*ends[i : i + 2]) for i, site in enumerate(sizes)}


def _merged(parts: Sequence[ByTask]) -> dict[str, Images]:
    """Lay the sites' images of each task together; grey ones beside colour get three channels."""
    merged = {}
    for task in sorted({task for part in parts for task in part}):
        found = [part[task] for part in parts if task in part]
        channels = max(images.pixels.shape[1] for images in found)
        merged[task] = Images(
            torch.cat([i.pixels[:].expand(-1, channels, -1, -1) for i in found]),
            torch.cat([images.labels for images in found]),
            tuple(patient for images in found for patient in images.patients),
            tuple(origin for images in found for origin in images.origins),
        )
    return merged


def _figures(
    study: Study, task: str, logits: NDArray[np.floating], images: Images
) -> dict[str, Any]:
    positive, found = study.tasks[task].positive_index, measured(logits, images, study.tasks[task])
    result: dict[str, Any] = dict(figures(found.of_images, positive))
    if found.of_patients is not None:
        result["patients"] = figures(found.of_patients, positive)
    return result


def _alone(study: Study, task: str, logits: Mapping[str, Logits], images: Images) -> dict[str, Any]:
    per_site = {site: _figures(study, task, value, images) for site, value in logits.items()}
    patients = [found["patients"] for found in per_site.values() if "patients" in found]
    result = _mean(list(per_site.values())) | {"per_site": per_site}
    return result | ({"patients": _mean(patients)} if patients else {})


def _mean(found: Sequence[Figures]) -> dict[str, Any]:
    """Return the means of models' figures on the same images, where they are defined."""
    mean: dict[str, Any] = {}
    for name in METRICS:
        values = [value for figure in found if (value := figure[name]) is not None]
        mean[name] = float(np.mean(values)) if values else None
    return mean | {name: found[0][name] for name in ("n_patients", "n_images")}


def mean_probability(logits: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return the logarithm of the mean probability, shape (N, K), which softmax turns back."""
    tensor = torch.from_numpy(np.stack(logits)).double()
    log_p = torch.log_softmax(tensor, dim=-1)
    mean: NDArray[np.float64] = (torch.logsumexp(log_p, dim=0) - np.log(len(logits))).numpy()
    return mean
