"""The site: answers an order from its own data, and lets out nothing but what was asked for."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import RecordDict

from client import egress
from client.config import SiteConfig, site_key
from client.dataset import Images, TaskData, batches, load_task
from client.evaluate import evaluate
from client.manifest import read_manifest
from client.site_log import open_log
from client.split import split_rows
from client.store import SiteStore
from client.train import train
from common import metrics
from common.arrays import Array
from common.errors import DataError, OrderError, RarefedError, StudyMismatchError
from common.layout import Layout
from common.messages import (
    Counted,
    Declaration,
    Order,
    Reply,
    Splits,
    Training,
    order_from_record,
    reply_to_record,
)
from common.models import FederatedModel, build_model
from common.seeds import stream
from common.study import Study
from common.versions import software_version
from common.weights import layout_of, put, take


@dataclass
class Prepared:
    """What a site keeps warm from round to round of one study."""

    study: Study
    model: FederatedModel
    layout: Layout
    tasks: Mapping[str, TaskData]
    store: SiteStore
    base: str
    """Digest of the base that the model holds; empty before the first order."""


class Site:
    """One hospital's data, model and device.

    Args:
        config: The hospital's own settings.

    Raises:
        DataError: The log cannot be written, or there is no such device.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self.log = open_log(config)
        self.device = _device(config.device)
        self._prepared: Prepared | None = None

    def prepare(self, study: Study) -> Prepared:
        """Read the data of the study's tasks and build its network, once.

        Raises:
            DataError: What is wrong with the data, in full; for the hospital's eyes.
            StudyError: The study's backbone cannot be built.
        """
        if self._prepared is not None and self._prepared.study.digest() == study.digest():
            return self._prepared
        key = site_key(self.config)
        tasks = {}
        for name in sorted(set(study.tasks) & set(self.config.data)):
            task = study.tasks[name]
            rows = read_manifest(
                self.config.data[name].manifest, task=name, classes=task.classes, key=key
            )
            tasks[name] = load_task(
                split_rows(rows, key=key, validation=study.split.validation, test=study.split.test),
                task,
                size=study.backbone.image_size,
                max_unreadable=self.config.limits.max_unreadable,
                workers=max(1, self.config.threads or torch.get_num_threads()),
                log=self.log,
            )
        model = build_model(study).to(self.device).to(memory_format=torch.channels_last)
        store = SiteStore(self.config.state, study.digest())
        self._prepared = Prepared(study, model, layout_of(model, study), tasks, store, base="")
        return self._prepared

    def declare(self, study: Study) -> Declaration:
        """Say how much the site holds of each task of the study, and what it cannot read.

        Raises:
            DataError: What is wrong with the data, in full.
        """
        return _declaration(self.prepare(study))

    def answer(self, order: Order) -> Reply:
        """Do what an order asks and return the reply; every error becomes a coded refusal."""
        digest = order.study.digest()
        try:
            if self.config.threads:
                torch.set_num_threads(self.config.threads)
            return egress.release(self._follow(order, digest), order)
        except RarefedError as error:
            self.log.error(  # noqa: TRY400 - expected, so without a traceback
                "round %d refused (%s): %s", order.round, error.code, error
            )
            return egress.refusal(self.config.name, digest, order.round, error)
        except Exception:
            self.log.exception("round %d failed", order.round)
            return egress.refusal(self.config.name, digest, order.round, RarefedError("failed"))

    def _follow(self, order: Order, digest: str) -> Reply:
        prepared = self.prepare(order.study)
        if order.kind == "check":
            declared = self.declare(order.study)
            return Reply(self.config.name, digest, order.round, declaration=declared)
        _load(prepared, order)
        began = time.perf_counter()
        states = self._evaluate(prepared)
        evaluated = time.perf_counter()
        steps, loss = 0, 0.0
        groups: dict[str, dict[str, Array]] = {}
        weights: dict[str, float] = {}
        if order.kind == "train":
            steps, loss = self._train(prepared, order.round)
            groups, weights = _changes(prepared, order)
        trained = time.perf_counter()
        return Reply(
            site=self.config.name,
            digest=digest,
            round=order.round,
            training=Training(
                steps=steps,
                loss=loss,
                seconds=trained - evaluated,
                evaluation_seconds=evaluated - began,
            ),
            groups=groups,
            weights=weights,
            metrics=states,
        )

    def _evaluate(self, prepared: Prepared) -> dict[tuple[str, str], dict[str, Array]]:
        """Measure the arriving model on every task's validation and test patients."""
        result = {}
        for name, data in prepared.tasks.items():
            task = prepared.study.tasks[name]
            for split in egress.HELD_OUT:
                state = evaluate(prepared.model, data.splits[split], name, task, device=self.device)
                result[name, split] = dict(metrics.to_arrays(state))
        return result

    def _train(self, prepared: Prepared, number: int) -> tuple[int, float]:
        """Train the model in place, and keep what stays at this site."""
        study = prepared.study
        seed = stream(study.seed, self.config.name, number)
        images = {name: data.splits["train"] for name, data in prepared.tasks.items()}
        order_of_batches = batches(
            {name: len(data) for name, data in images.items()},
            batch_size=study.training.batch_size,
            epochs=study.training.local_epochs,
            seed=stream(seed, "batches"),
        )
        # Until training has ended well, the model holds no base: one that failed may have left
        # anything in it, and the next order then starts from the stored arrays.
        base, prepared.base = prepared.base, ""
        with torch.random.fork_rng():
            torch.manual_seed(stream(seed, "dropout"))
            done = train(prepared.model, images, order_of_batches, study, device=self.device)
        prepared.base = base
        if prepared.layout.local:
            prepared.store.save_local(take(prepared.model, prepared.layout.local), number)
        return done.steps, done.loss


def respond(site: Site, record: RecordDict) -> RecordDict:
    """Answer an order as it came over the wire."""
    try:
        order = order_from_record(record)
    except (OrderError, StudyMismatchError) as error:
        site.log.error("an order was refused: %s", error)  # noqa: TRY400 - expected
        return reply_to_record(egress.refusal(site.config.name, "0" * 64, 0, error))
    return reply_to_record(site.answer(order))


def _load(prepared: Prepared, order: Order) -> None:
    """Put the order's arrays into the model, and beneath them the base and what is local.

    Raises:
        OrderError: The base is missing or not the one that was announced, groups are not those
            of this site's tasks, or an array does not fit.
    """
    expected = prepared.layout.groups_of(prepared.tasks)
    if set(order.groups) != set(expected):
        raise OrderError(
            f"The order has the groups {sorted(order.groups)}, not {sorted(expected)}."
        )
    try:
        if order.base is not None:
            prepared.store.save_base(order.base, order.base_digest)
        arrays = prepared.store.load_local(order.round)
        untrained = bool(prepared.layout.local) and not arrays  # a first round, perhaps redone
        if prepared.base != order.base_digest or untrained:
            put(prepared.model, prepared.store.load_base(order.base_digest))
            prepared.base = order.base_digest
        put(prepared.model, arrays)
        for group, found in order.groups.items():
            if set(found) != set(prepared.layout.groups[group]):
                raise OrderError(f"The order's group {group} has other arrays than the network.")
            put(prepared.model, found)
    except ValueError as error:
        prepared.base = ""
        raise OrderError(f"The order's arrays do not fit the network: {error}") from error


def _changes(
    prepared: Prepared, order: Order
) -> tuple[dict[str, dict[str, Array]], dict[str, float]]:
    """Return local minus global by group, in the study's type of number, and what each weighs."""
    declared = _declaration(prepared)
    groups, weights = {}, {}
    dtype = np.dtype(prepared.study.federation.update_dtype)
    state = prepared.model.state_dict()
    for group, current in order.groups.items():
        groups[group] = {
            name: (state[name].cpu().numpy() - old).astype(dtype, copy=False)
            for name, old in current.items()
        }
        weights[group] = declared.weight(group, prepared.study.federation.weighting)
    return groups, weights


def _declaration(prepared: Prepared) -> Declaration:
    def count(images: Images) -> Counted:
        return Counted(patients=images.n_patients, images=len(images))

    train_patients = {p for d in prepared.tasks.values() for p in d.splits["train"].patients}
    return Declaration(
        software=software_version(),
        base=prepared.store.base_digest(),
        tasks={
            name: Splits(
                train=count(data.splits["train"]),
                validation=count(data.splits["validation"]),
                test=count(data.splits["test"]),
            )
            for name, data in prepared.tasks.items()
        },
        unreadable={name: data.unreadable for name, data in prepared.tasks.items()},
        patients=len(train_patients),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DataError(
            f"torch finds no device {name} here.",
            remedy="Set 'device' in site.toml to cpu or auto, or install torch with CUDA.",
        )
    return device
