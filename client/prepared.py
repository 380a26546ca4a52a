"""What a site gets ready for a study and keeps warm from round to round: network, images, plan."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from client.config import SiteConfig, site_key
from client.dataset import TaskData, load_task
from client.egress import HELD_OUT
from client.manifest import Row, read_manifest
from client.plan import Plan, plan_of
from client.split import split_rows
from client.store import SiteStore
from client.suppression import Behind, Key, behind_of, stated
from common.layout import Layout
from common.messages import Counted, Declaration, Splits
from common.models import FederatedModel, build_model
from common.private_models import check_private
from common.study import Study
from common.versions import software_version
from common.weights import layout_of


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
    """Who stands behind the figures of each task and split."""
    base: str = ""
    """Digest of the base that the model holds; empty before the first order."""

    def declare(self) -> Declaration:
        """Return what the site says of itself now."""
        return self.declaration.model_copy(update={"base": self.store.base_digest()})

    def training_patients(self) -> dict[str, frozenset[str]]:
        """Return the keyed hashes of the training patients by task."""
        return {name: frozenset(d.splits["train"].patients) for name, d in self.tasks.items()}


def prepare(
    study: Study, config: SiteConfig, *, device: torch.device, log: logging.Logger
) -> Prepared:
    """Build the study's network and read the site's images of its tasks.

    What can be refused without an image is refused before one is read.

    Raises:
        PrivacyError: The study cannot be private here as it asks, or as the hospital demands.
        DataError: What is wrong with the data, in full; for the hospital's eyes.
        StudyError: The study's backbone cannot be built.
    """
    model = build_model(study)
    if study.privacy is not None:
        from client.privacy import preflight  # noqa: PLC0415 - Opacus takes seconds to import

        check_private(model)
        preflight(model, study)
    rows = _rows(study, config)
    _plan(study, config, [{row.patient for row in found["train"]} for found in rows.values()])
    tasks = {
        name: load_task(
            found,
            study.tasks[name],
            size=study.backbone.image_size,
            max_unreadable=config.limits.max_unreadable,
            workers=max(1, config.threads or torch.get_num_threads()),
            log=log,
        )
        for name, found in rows.items()
    }
    trained = [set(data.splits["train"].patients) for data in tasks.values()]
    return Prepared(
        study=study,
        model=model.to(device).to(memory_format=torch.channels_last),
        layout=layout_of(model, study),
        tasks=tasks,
        store=SiteStore(config.state, study.digest()),
        plan=_plan(study, config, trained),  # unreadable images may have cost it patients
        declaration=_declaration(tasks, config),
        behind={
            (name, split): behind_of(
                data.splits[split].labels.tolist(),
                data.splits[split].patients,
                len(study.tasks[name].classes),
            )
            for name, data in tasks.items()
            for split in HELD_OUT
        },
    )


def _rows(study: Study, config: SiteConfig) -> dict[str, dict[str, list[Row]]]:
    """Return the rows of the site's tables by task and split."""
    key, rows = site_key(config), {}
    for name in sorted(set(study.tasks) & set(config.data)):
        found = read_manifest(
            config.data[name].manifest, task=name, classes=study.tasks[name].classes, key=key
        )
        rows[name] = split_rows(
            found, key=key, validation=study.split.validation, test=study.split.test
        )
    return rows


def _plan(study: Study, config: SiteConfig, trained: Collection[set[str]]) -> Plan | None:
    """Return how trainings are made private; a site without any task trains nothing."""
    return plan_of(study, config.limits, len(set().union(*trained))) if trained else None


def _declaration(tasks: Mapping[str, TaskData], config: SiteConfig) -> Declaration:
    def says(count: int) -> int:
        return stated(count, config.limits)

    def splits(data: TaskData) -> Splits:
        counted = {
            name: Counted(patients=says(images.n_patients), images=says(len(images)))
            for name, images in data.splits.items()
        }
        return Splits(**counted)

    trained = {p for data in tasks.values() for p in data.splits["train"].patients}
    return Declaration(
        software=software_version(),
        base="",
        tasks={name: splits(data) for name, data in tasks.items()},
        unreadable={name: says(data.unreadable) for name, data in tasks.items()},
        patients=says(len(trained)),
    )
