"""The site: answers an order from its own data, and lets out nothing but what was asked for."""

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from flwr.app import RecordDict

from client import egress
from client.alignment import alignment_of
from client.anchor import near_of
from client.attention_suppression import Looked, may_report, suppress_attention
from client.config import SiteConfig
from client.dataset import round_of_batches
from client.device import device_of
from client.evaluate import evaluate
from client.ledger import Ledger
from client.ledger_entries import Entered
from client.member_states import member_states
from client.order_arrays import changes_of, initial_backbone, load_order
from client.phases import in_phase
from client.prepared import Prepared, prepare
from client.site_log import open_log
from client.store import FINAL, FIRST
from client.suppression import Key, suppress
from client.train import Trained, train
from common import metrics_wire
from common.arrays import Array
from common.attention import ATTENTION
from common.attention import to_arrays as sums_to_arrays
from common.errors import OrderError, PrivacyError, RarefedError, StudyMismatchError
from common.held_out import HELD_OUT, OF_PATIENTS
from common.messages import Order, Reply, order_from_record, reply_to_record
from common.seeds import stream
from common.statements import Declaration, Training
from common.study import Study
from common.weights import take

if TYPE_CHECKING:
    from client.attention import Attention


@dataclass(frozen=True)
class Answer:
    """A reply, and what the site knows of it that does not leave."""

    reply: Reply
    entered: Entered | None = None
    """The entry of the training in the ledger."""
    measured: tuple[Key, ...] = ()
    """What was measured, by task and name of the state, whether or not the figures leave."""


class Site:
    """One hospital's data, model and device.

    Args:
        config: The hospital's own settings.
        ledger: Every training is entered in it before it begins. Without one nothing is trained
            that has to be private.

    Raises:
        DataError: The log cannot be written, or there is no such device.
    """

    def __init__(self, config: SiteConfig, ledger: Ledger | None = None) -> None:
        self.config = config
        self.ledger = ledger
        self.log = open_log(config)
        self.device = device_of(config.device)
        self._prepared: Prepared | None = None

    def prepare(self, study: Study) -> Prepared:
        """Read the data of the study's tasks and build its network, once.

        Raises:
            DataError: What is wrong with the data, in full; for the hospital's eyes.
            StudyError: The study's backbone cannot be built.
            PrivacyError: The study cannot be private here as it asks, or as the hospital demands.
        """
        if self._prepared is None or self._prepared.study.digest() != study.digest():
            begun = None
            if self.ledger is not None:
                self.ledger.check_writable()
                begun = self.ledger.first_plan(study.digest())
            self._prepared = prepare(
                study, self.config, begun=begun, device=self.device, log=self.log
            )
        return self._prepared

    def declare(self, study: Study) -> Declaration:
        """Say how much the site holds of each task of the study, and what it cannot read.

        Raises:
            DataError: What is wrong with the data, in full.
        """
        return self.prepare(study).declare()

    def answer(self, order: Order, sealed: str | None = None) -> Answer:
        """Do what an order asks; every error becomes a coded refusal.

        Args:
            order: What is asked.
            sealed: SHA-256 of the order as it was sealed; where nothing is sealed, that of
                study and round stands for it.
        """
        digest = order.study.digest()
        sealed = sealed or hashlib.sha256(f"{digest}/{order.round}".encode()).hexdigest()
        entered = None
        try:
            if self.config.threads:
                torch.set_num_threads(self.config.threads)
            prepared = self.prepare(order.study)
            if order.kind != "check":
                load_order(prepared, order)
            if order.kind == "train":
                entered = self._enter(prepared, order.round, sealed)
            reply, looked = self._follow(prepared, order, digest)
            return self._let_out(reply, looked, prepared, order, entered)
        except RarefedError as error:
            self.log.error(  # noqa: TRY400 - expected, so without a traceback
                "round %d refused (%s): %s", order.round, error.code, error
            )
            refused = error
        except Exception:
            self.log.exception("round %d failed", order.round)
            refused = RarefedError("failed")
        return Answer(egress.refusal(self.config.name, digest, order.round, refused), entered)

    def _follow(self, prepared: Prepared, order: Order, digest: str) -> tuple[Reply, Looked]:
        """Return the reply, and who stands behind the sums of attention in it."""
        if order.kind == "check":
            declared = prepared.declare()
            return Reply(self.config.name, digest, order.round, declaration=declared), {}
        began = time.perf_counter()
        states = self._evaluate(prepared, order.round)
        states |= member_states(prepared, order, device=self.device)
        looked = self._look(prepared) if may_report(order, self.config.limits) else {}
        states |= {(name, ATTENTION): sums_to_arrays(of.table) for name, of in looked.items()}
        evaluated = time.perf_counter()
        if order.kind == "evaluate":
            behind = order.round - 1 if order.model_round is None else order.model_round
            self._keep(prepared, FINAL, behind)
        elif order.round == 1:
            self._keep(prepared, FIRST, 0)
        done = Trained(0, 0.0)
        groups: dict[str, dict[str, Array]] = {}
        weights: dict[str, float] = {}
        if order.kind == "train":
            done = self._train(prepared, order)
            groups, weights = changes_of(prepared, order)
        trained = time.perf_counter()
        reply = Reply(
            site=self.config.name,
            digest=digest,
            round=order.round,
            training=Training(
                steps=done.steps,
                loss=done.loss if order.study.privacy is None else None,  # no noise covers it
                seconds=trained - evaluated,
                evaluation_seconds=evaluated - began,
            ),
            groups=groups,
            weights=weights,
            metrics=states,
        )
        return reply, {name: of.patients for name, of in looked.items()}

    def _let_out(
        self,
        reply: Reply,
        looked: Looked,
        prepared: Prepared,
        order: Order,
        entered: Entered | None,
    ) -> Answer:
        """Take out what too few patients stand behind, and let the rest through the one door."""
        limits, measured = self.config.limits, tuple(reply.metrics)
        own = egress.Own(self.config.name, prepared.declare(), prepared.behind, looked)
        reply = suppress(reply, order, limits, prepared.behind)
        reply = suppress_attention(reply, order, limits, prepared.behind, looked)
        return Answer(egress.release(reply, order, limits, own), entered, measured)

    def _enter(self, prepared: Prepared, number: int, sealed: str) -> Entered | None:
        """Enter a training in the ledger before it begins.

        Raises:
            BudgetError: The hospital allows no more of them.
            PrivacyError: There is no ledger for a training that has to be private.
        """
        if self.ledger is None:
            if prepared.plan is not None:
                raise PrivacyError("Nothing is trained privately without a ledger.")
            return None
        return self.ledger.enter(
            prepared.study,
            number,
            sealed,
            prepared.training_patients(),
            limits=self.config.limits,
            plan=prepared.plan,
        )

    def _evaluate(self, prepared: Prepared, number: int) -> dict[Key, dict[str, Array]]:
        """Measure the arriving model on every task's validation and test patients."""
        result, features = {}, prepared.features.in_round(number)
        for name, data in prepared.tasks.items():
            task = prepared.study.tasks[name]
            for split in HELD_OUT:
                found = evaluate(
                    prepared.model,
                    data.splits[split],
                    name,
                    task,
                    device=self.device,
                    features=features,
                    adapted=prepared.study.evaluation.adapted,
                )
                result[name, split] = metrics_wire.to_arrays(found.of_images)
                if found.of_patients is not None:
                    result[name, OF_PATIENTS[split]] = metrics_wire.to_arrays(found.of_patients)
        return result

    def _look(self, prepared: Prepared) -> dict[str, "Attention"]:
        """Measure where the arriving model looks in every task's test images."""
        from client.attention import attentions  # noqa: PLC0415 - grad-cam takes seconds to import

        images = {name: data.splits["test"] for name, data in prepared.tasks.items()}
        limits, study = self.config.limits, prepared.study
        return attentions(prepared.model, images, study, limits, device=self.device, log=self.log)

    def _keep(self, prepared: Prepared, name: str, model_round: int) -> None:
        """Keep the network that the study begins or ends with, for this site's own figures."""
        arrays, tasks = take(prepared.model, prepared.model.state_dict()), tuple(prepared.tasks)
        try:
            prepared.store.save_network(name, arrays, model_round=model_round, tasks=tasks)
        except OSError as error:  # the study goes on without
            self.log.error("the model cannot be kept: %s", error)  # noqa: TRY400 - expected

    def _train(self, prepared: Prepared, order: Order) -> Trained:
        """Train the model in place, and keep what stays at this site."""
        study, number = prepared.study, order.round
        seed = stream(study.seed, self.config.name, number)
        # Until training has ended well, the model holds no base: one that failed may have left
        # anything in it, and the next order then starts from the stored arrays.
        base, prepared.base = prepared.base, ""
        with torch.random.fork_rng():
            torch.manual_seed(stream(seed, "dropout"))
            with in_phase(prepared.model, study, number):
                done = _trained(prepared, order, seed, self.device)
        prepared.base = base
        if prepared.layout.local:
            prepared.store.save_local(take(prepared.model, prepared.layout.local), number)
        return done


def respond(site: Site, record: RecordDict) -> RecordDict:
    """Answer an order as it came over the wire."""
    try:
        order = order_from_record(record)
    except (OrderError, StudyMismatchError) as error:
        site.log.error("an order was refused: %s", error)  # noqa: TRY400 - expected
        return reply_to_record(egress.refusal(site.config.name, "0" * 64, 0, error))
    return reply_to_record(site.answer(order).reply)


def _trained(prepared: Prepared, order: Order, seed: int, device: torch.device) -> Trained:
    study, model, number = prepared.study, prepared.model, order.round
    images = {name: data.splits["train"] for name, data in prepared.tasks.items()}
    features = prepared.features.in_round(number)
    near = near_of(model, study, initial_backbone(prepared), features)
    if prepared.plan is not None:
        from client.privacy import train_privately  # noqa: PLC0415 - Opacus takes seconds

        return train_privately(
            model,
            images,
            study,
            prepared.plan,
            device=device,
            number=number,
            lowered=order.lowered,
            near=near,
            features=features,
        )
    return train(
        model,
        images,
        round_of_batches(images, study.training, seed),
        study,
        device=device,
        number=number,
        lowered=order.lowered,
        near=near,
        alignment=alignment_of(model, study, order.place, number),
        features=features,
        generator=torch.Generator().manual_seed(stream(seed, "augmentation")),
    )
