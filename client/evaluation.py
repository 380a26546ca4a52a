"""The study's network on this site's held-out patients, and what taking part gained.

Everything here stays at the site.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from client.alone import train_alone
from client.bootstrap import Estimate, differences, intervals
from client.config import SiteConfig
from client.dataset import TaskData
from client.evaluate import logits_of
from client.final_model import (
    FinalModel,
    exported_model,
    final_model,
    first_model,
    shared_model,
)
from client.local_figures import TaskFigures, figures_of_task, patient_cases
from client.prepared import deal, load_tasks
from common.errors import StudyMismatchError, TaskWithoutSiteError
from common.files import write_json
from common.held_out import HELD_OUT
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study
from common.versions import software_version

DISCLAIMER = "Not a medical device: the figures are for research and say nothing of one patient."


@dataclass(frozen=True)
class Benefit:
    """Models beside one another on the same test patients, each of whom counts once."""

    metrics: Mapping[str, Mapping[str, Estimate]]
    """By model: ``alone``, ``global``, ``personal``."""
    differences: Mapping[str, Mapping[str, Estimate]]
    """The first model minus the second, by their names, such as ``global - alone``; paired."""


@dataclass(frozen=True)
class LocalFigures:
    """One site's own figures of one model."""

    format: str
    disclaimer: str
    site: str
    study: str
    digest: str
    model: str
    """``personal`` with the site's own normalisation in it, else ``global``."""
    model_round: int
    sha256: str
    software: str
    minimum_patients: int
    tasks: Mapping[str, TaskFigures]
    benefit: Mapping[str, Benefit]
    """By task; of a single model there is none."""


class Models(NamedTuple):
    """The networks that are asked."""

    final: FinalModel
    """The one that the figures are of."""
    named: Mapping[str, FederatedModel]
    """It and what it is compared with, by name; it is the first."""


def models_of(
    config: SiteConfig, study: Study, folder: Path | None, device: torch.device
) -> Models:
    """Return the networks of a folder that ``rarefed-server export`` wrote, or those kept here.

    Raises:
        RarefedError: As ``kept_models``, or ``exported_model`` and ``exported_models``.
    """
    if folder is None:
        return kept_models(config, study, device)
    return exported_models(exported_model(folder, device=device), study)


def kept_models(config: SiteConfig, study: Study, device: torch.device) -> Models:
    """Return what the site keeps of the study's end; without its own arrays too, where it has any.

    Raises:
        RarefedError: As ``final_model`` and ``shared_model``.
    """
    final = final_model(config, study, device=device)
    shared = shared_model(config, study, device=device)
    if shared is None:
        return Models(final, {"global": final.model})
    return Models(final, {"personal": final.model, "global": shared.model})


def exported_models(exported: FinalModel, study: Study) -> Models:
    """Return an exported network.

    Raises:
        StudyMismatchError: It is of another study.
    """
    if exported.study.digest() != study.digest():
        raise StudyMismatchError(
            f"The model is one of the study {exported.study.name}, not of {study.name} as given.",
            remedy="Give the study.toml that lies beside the model.",
        )
    return Models(exported, {"global": exported.model})


def evaluate_site(
    config: SiteConfig,
    study: Study,
    models: Models,
    *,
    alone: bool,
    device: torch.device,
    log: logging.Logger,
    progress: Callable[[int], None] | None = None,
) -> LocalFigures:
    """Return all figures of a model on the held-out patients of the site's tasks.

    Args:
        config: The hospital.
        study: The study.
        models: The networks.
        alone: Whether to train this site's patients alone, too, and compare.
        device: Where the arithmetic runs.
        log: The site's own.
        progress: Called with the number of rounds that were trained alone.

    Raises:
        TaskWithoutSiteError: Site and model share no task.
        DataError: What is wrong with the data.
        FederationError: ``alone``, and the site does not know how the study began.
        DivergedError: A network gives no finite numbers, or training alone does not end.
    """
    common = set(study.tasks) & set(config.data) & set(models.final.tasks)
    if not common:
        raise TaskWithoutSiteError(
            f"{config.name} has none of the model's tasks ({', '.join(models.final.tasks)}).",
            remedy="Add a [data.TASK] table to site.toml, with the study's name for the task.",
        )
    named = dict(models.named)
    first = first_model(config, study, device=device).model if alone else None
    tasks = load_tasks(study, config, deal(study, config), log)
    if first is not None:
        images = {name: data.splits["train"] for name, data in tasks.items()}
        named["alone"] = train_alone(
            first, images, study, site=config.name, device=device, progress=progress
        )
    held = {name: tasks[name] for name in sorted(common)}
    return _figures(config, study, Models(models.final, named), held, device)


def _figures(
    config: SiteConfig,
    study: Study,
    models: Models,
    held: Mapping[str, TaskData],
    device: torch.device,
) -> LocalFigures:
    """Measure the final model on the tasks' images, and compare all models where several are."""
    final, named = models
    return LocalFigures(
        format="rarefed-evaluation-1",
        disclaimer=DISCLAIMER,
        site=config.name,
        study=study.name,
        digest=study.digest(),
        model=next(iter(named)),
        model_round=final.model_round,
        sha256=final.sha256,
        software=software_version(),
        minimum_patients=config.limits.minimum_patients,
        tasks={
            name: _task(config, study, final.model, name, data, device)
            for name, data in held.items()
        },
        benefit={
            name: _benefit(config, study, named, name, data, device)
            for name, data in held.items()
            if len(named) > 1
        },
    )


def _task(
    config: SiteConfig,
    study: Study,
    model: FederatedModel,
    name: str,
    data: TaskData,
    device: torch.device,
) -> TaskFigures:
    return figures_of_task(
        {s: logits_of(model, data.splits[s], name, device=device) for s in HELD_OUT},
        data,
        study.tasks[name],
        minimum=config.limits.minimum_patients,
        each_image=config.data[name].patients == "each_image",
        seed=stream(study.seed, config.name, "bootstrap", name),
    )


def _benefit(
    config: SiteConfig,
    study: Study,
    named: Mapping[str, FederatedModel],
    name: str,
    data: TaskData,
    device: torch.device,
) -> Benefit:
    """Compare the models in pairs, on draws that all of them share."""
    test, task = data.splits["test"], study.tasks[name]
    seed = stream(study.seed, config.name, "bootstrap", name)  # as for the other figures
    cases = {
        which: patient_cases(logits_of(model, test, name, device=device), test, task)
        for which, model in named.items()
    }
    pairs = [
        (one, other)
        for one, other in (("global", "alone"), ("personal", "alone"), ("personal", "global"))
        if one in cases and other in cases
    ]
    return Benefit(
        {which: intervals(own, seed=seed) for which, own in cases.items()},
        {f"{a} - {b}": differences(cases[a], cases[b], seed=seed) for a, b in pairs},
    )


def file_of(config: SiteConfig, study: Study) -> Path:
    """Return where a site's figures of a study are kept."""
    return config.state / f"evaluation-{study.digest()[:16]}.json"


def write_figures(found: LocalFigures, file: Path) -> dict[str, Any]:
    """Write the figures as JSON that none but the owner can read, and return them."""
    plain = asdict(found)
    write_json(file, plain, mode=0o600)
    return plain
