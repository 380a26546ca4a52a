"""The study's network on this site's held-out patients, and what taking part gained.

Everything here stays at the site.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from client.alone import train_alone
from client.benefit import TUNED, Benefit, compare
from client.classical_ways import Said, ask_ways, ways_at_site
from client.config import SiteConfig
from client.dataset import TaskData
from client.evaluate import logits_of
from client.final_model import (
    FinalModel,
    exported_model,
    final_model,
    first_model,
    shared_model,
    tuned_model,
)
from client.local_figures import TaskFigures, figures_of_task
from client.prepared import deal, load_tasks
from common.classical_names import Way
from common.errors import StudyMismatchError, TaskWithoutSiteError
from common.files import write_json
from common.held_out import HELD_OUT
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study
from common.versions import software_version

_ADAPTED = (
    "Batch normalisation has the statistics of each split's own images: what is said of an image "
    "depends on those beside it. Predictions and maps of single images use the stored statistics."
)
DISCLAIMER = "Not a medical device: the figures are for research and say nothing of one patient."


@dataclass(frozen=True)
class LocalFigures:
    """One site's own figures of one model."""

    format: str
    disclaimer: str
    site: str
    study: str
    digest: str
    model: str
    """``personal`` with the site's own normalisation or heads in it, else ``global``; or
    ``fine-tuned``, which the site trained further by itself."""
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
    """Return what the site keeps of the study's end, and the same without its own arrays.

    The second is there where the site has such arrays, and the rest has heads.

    Raises:
        RarefedError: As ``final_model`` and ``shared_model``.
    """
    final = final_model(config, study, device=device)
    shared = shared_model(config, study, device=device)
    if shared is not None:
        return Models(final, {"personal": final.model, "global": shared.model})
    own = study.federation.personal == "head"
    return Models(final, {"personal" if own else "global": final.model})


def tuned_models(config: SiteConfig, study: Study, device: torch.device) -> Models:
    """Return the network that the site tuned by itself, and what it keeps of the study's end.

    Raises:
        RarefedError: As ``tuned_model`` and ``kept_models``.
    """
    tuned = tuned_model(config, study, device=device)
    return Models(tuned, {TUNED: tuned.model, **kept_models(config, study, device).named})


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
    classical: Collection[Way] = (),
    device: torch.device,
    log: logging.Logger,
    progress: Callable[[str], None] = lambda _: None,
) -> LocalFigures:
    """Return all figures of a model on the held-out patients of the site's tasks.

    Args:
        config: The hospital.
        study: The study.
        models: The networks.
        alone: Whether to train this site's patients alone, too, and compare.
        classical: Ways to fit to this site's patients, too, and compare, beside the study's own.
        device: Where the arithmetic runs.
        log: The site's own.
        progress: Called with a word on what is being done.

    Raises:
        TaskWithoutSiteError: Site and model share no task.
        DataError: What is wrong with the data, or ``classical`` and it has too few patients.
        FederationError: The site does not know how the study began, and that is asked for.
        OutputError, StudyError: As ``ways_at_site``.
        DivergedError: A network gives no finite numbers, or training alone does not end.
    """
    asked = asked_tasks(config, models.final)
    named = dict(models.named)
    first = first_model(config, study, device=device).model if alone else None
    ways = ways_at_site(config, study, classical, device)
    progress("reading images")
    tasks = load_tasks(study, config, deal(study, config), log)
    held = {name: tasks[name] for name in asked}
    said = ask_ways(study, config.name, held, ways, progress)
    if first is not None:
        named["alone"] = train_alone(
            first,
            {name: data.splits["train"] for name, data in tasks.items()},
            study,
            site=config.name,
            device=device,
            validation={name: data.splits["validation"] for name, data in tasks.items()},
            progress=lambda done: progress(f"alone: round {done} of {study.rounds}"),
        )
    progress("measuring")
    return _figures(config, study, Models(models.final, named), held, said, device)


def asked_tasks(config: SiteConfig, final: FinalModel) -> list[str]:
    """Return the tasks of which a site has images and a network a trained head, in order.

    Raises:
        TaskWithoutSiteError: There is none.
    """
    if not (found := sorted(set(final.study.tasks) & set(config.data) & set(final.tasks))):
        raise TaskWithoutSiteError(
            f"{config.name} has none of the model's tasks ({', '.join(final.tasks)}).",
            remedy="Add a [data.TASK] table to site.toml, with the study's name for the task.",
        )
    return found


def _figures(
    config: SiteConfig,
    study: Study,
    models: Models,
    held: Mapping[str, TaskData],
    classical: Mapping[str, Said],
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
            name: _task(config, study, final.model, name, data, device, classical[name].notes)
            for name, data in held.items()
        },
        benefit={
            name: compare(config, study, named, name, data, device, classical[name].logits)
            for name, data in held.items()
            if len(named) + len(classical[name].logits) > 1
        },
    )


def _task(
    config: SiteConfig,
    study: Study,
    model: FederatedModel,
    name: str,
    data: TaskData,
    device: torch.device,
    notes: tuple[str, ...],
) -> TaskFigures:
    adapted = study.evaluation.adapted
    found = figures_of_task(
        {
            split: logits_of(model, data.splits[split], name, device=device, adapted=adapted)
            for split in HELD_OUT
        },
        data,
        study.tasks[name],
        minimum=config.limits.minimum_patients,
        each_image=config.data[name].patients == "each_image",
        seed=stream(study.seed, config.name, "bootstrap", name),
    )
    return replace(found, notes=(*found.notes, *([_ADAPTED] if adapted else []), *notes))


def file_of(config: SiteConfig, study: Study, model: str = "") -> Path:
    """Return where a site's figures of a study are kept; those of ``TUNED`` stand apart."""
    apart = "-personal" if model == TUNED else ""
    return config.state / f"evaluation-{study.digest()[:16]}{apart}.json"


def write_figures(found: LocalFigures, file: Path) -> dict[str, Any]:
    """Write the figures as JSON that none but the owner can read, and return them."""
    plain = asdict(found)
    write_json(file, plain, mode=0o600)
    return plain
