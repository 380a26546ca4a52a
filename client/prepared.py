"""What a site gets ready for a study and keeps warm from round to round: network, images, plan."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from client.cache import cache_of
from client.config import SiteConfig, site_key
from client.dataset import TaskData, load_task
from client.gate import Terms, terms_of
from client.manifest import Row, manifest_of
from client.patients import who_stands_behind
from client.phases import PhaseFeatures
from client.plan import Begun, Plan, plan_of
from client.reading_pass import workers_of
from client.split import split_rows
from client.store import SiteStore
from client.suppression import Behind, Key, stated
from common.held_out import HELD_OUT
from common.layout import Layout
from common.models import FederatedModel, build_model
from common.private_models import check_private
from common.statements import Counted, Declaration, Splits
from common.study import Study
from common.versions import software_version
from common.weights import layout_of


class Dealt(NamedTuple):
    """The rows of one task."""

    rows: Mapping[str, Sequence[Row]]
    """By split."""
    terms: Terms
    """What the hospital asks of them."""


@dataclass
class Prepared:
    """One study at one site."""

    study: Study
    model: FederatedModel
    layout: Layout
    tasks: Mapping[str, TaskData]
    store: SiteStore
    plan: Plan | None
    """How trainings are made private; None in a study without privacy."""
    declaration: Declaration
    """What the site says of itself; the base it holds may change."""
    behind: Mapping[Key, Behind]
    """Who stands behind each metric state."""
    features: PhaseFeatures
    """Where the images' features are kept."""
    base: str = ""
    """Digest of the base that the model holds; empty before the first order."""

    def declare(self) -> Declaration:
        """Return what the site says of itself now."""
        return self.declaration.model_copy(update={"base": self.store.base_digest()})

    def training_patients(self) -> dict[str, frozenset[str]]:
        """Return the keyed hashes of the training patients by task."""
        return {name: frozenset(d.splits["train"].patients) for name, d in self.tasks.items()}


def prepare(
    study: Study,
    config: SiteConfig,
    *,
    begun: Begun | None,
    device: torch.device,
    log: logging.Logger,
) -> Prepared:
    """Build the study's network and read the site's images of its tasks.

    What can be refused without an image is refused before one is read.

    Args:
        study: The study.
        config: The hospital.
        begun: How the study's first private training here was made, if there was one.
        device: Where the network is to run.
        log: Where the data's faults are told.

    Raises:
        PrivacyError: The study cannot be private here as it asks, or as the hospital demands.
        DataError: What is wrong with the data, in full; for the hospital's eyes.
        StudyError: The study's backbone cannot be built.
    """
    model = network_of(study).to(device).to(memory_format=torch.channels_last)
    dealt = deal(study, config)
    plan_for(study, config, listed_patients(dealt), begun)
    tasks = load_tasks(study, config, dealt, log)
    trained = [set(data.splits["train"].patients) for data in tasks.values()]
    return Prepared(
        study=study,
        model=model,
        layout=layout_of(model, study),
        tasks=tasks,
        store=SiteStore(config.state, study.digest()),
        features=PhaseFeatures(model, study, config.name, device, log),
        plan=plan_for(study, config, trained, begun),  # the gate may have cost it patients
        declaration=_declaration(tasks, config),
        behind=who_stands_behind(study, tasks),
    )


def load_tasks(
    study: Study, config: SiteConfig, dealt: Mapping[str, Dealt], log: logging.Logger
) -> dict[str, TaskData]:
    """Read the images of the tasks whose rows were dealt.

    Args:
        study: The study.
        config: The hospital.
        dealt: As ``deal`` returns them, or some of them.
        log: Where the data's faults are told.

    Raises:
        DataError: What is wrong with the data, in full.
    """
    cache = cache_of(config, log)
    workers, apart = workers_of(config)
    return {
        name: load_task(
            found.rows,
            study.tasks[name],
            size=study.backbone.image_size,
            terms=found.terms,
            workers=workers,
            log=log,
            cache=cache,
            apart=apart,
        )
        for name, found in dealt.items()
    }


def network_of(study: Study) -> FederatedModel:
    """Build the study's network, and see that it can be trained as the study asks.

    Raises:
        PrivacyError: It cannot be trained privately.
        StudyError: The backbone cannot be built.
    """
    model = build_model(study)
    if study.privacy is not None:
        from client.privacy import preflight  # noqa: PLC0415 - Opacus takes seconds to import

        check_private(model)
        preflight(model, study)
    return model


def deal(study: Study, config: SiteConfig) -> dict[str, Dealt]:
    """Return the rows of the site's tables by task, dealt into splits, and what is asked of them.

    Raises:
        DataError: As ``manifest_of``, ``split_rows`` and ``gate.terms_of``.
    """
    key, names = site_key(config), sorted(set(study.tasks) & set(config.data))
    tables = {name: manifest_of(config, name, study.tasks[name].classes) for name in names}
    split = study.split
    rows = {
        name: split_rows(table.rows, key=key, validation=split.validation, test=split.test)
        for name, table in tables.items()
    }
    held = {
        name: {row.patient for held_out in HELD_OUT for row in found[held_out]}
        for name, found in rows.items()
    }
    others = {
        name: set().union(*(held[other] for other in names if other != name)) for name in names
    }
    return {
        name: Dealt(rows[name], terms_of(config, name, tables[name], others[name]))
        for name in names
    }


def listed_patients(dealt: Mapping[str, Dealt]) -> list[set[str]]:
    """Return the keyed hashes of the patients listed for training, task by task."""
    return [{row.patient for row in found.rows["train"]} for found in dealt.values()]


def plan_for(
    study: Study, config: SiteConfig, trained: Collection[set[str]], begun: Begun | None
) -> Plan | None:
    """Return how trainings are made private; a site without any task trains nothing.

    Raises:
        PrivacyError: They cannot be, with so few patients.
    """
    if not trained:
        return None
    return plan_of(study, config.limits, len(set().union(*trained)), begun)


def _declaration(tasks: Mapping[str, TaskData], config: SiteConfig) -> Declaration:
    return declaration_of(
        {
            name: {split: images.patients for split, images in data.splits.items()}
            for name, data in tasks.items()
        },
        {name: data.unreadable for name, data in tasks.items()},
        config,
    )


def declaration_of(
    patients: Mapping[str, Mapping[str, Sequence[str]]],
    left_out: Mapping[str, int],
    config: SiteConfig,
) -> Declaration:
    """Return what a site says of itself.

    Args:
        patients: The patient of each image, by task and split.
        left_out: Rows that the gate left out, by task.
        config: The hospital.
    """

    def says(count: int) -> int:
        return stated(count, config.limits)

    def splits(owners: Mapping[str, Sequence[str]]) -> Splits:
        counted = {
            name: Counted(patients=says(len(set(found))), images=says(len(found)))
            for name, found in owners.items()
        }
        return Splits(**counted)

    trained = {patient for owners in patients.values() for patient in owners["train"]}
    return Declaration(
        software=software_version(),
        base="",
        tasks={name: splits(owners) for name, owners in patients.items()},
        unreadable={name: says(count) for name, count in left_out.items()},
        patients=says(len(trained)),
        each_image=tuple(n for n in patients if config.data[n].patients == "each_image"),
    )
