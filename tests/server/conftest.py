"""Sites for the coordinator's tests: they answer over a real grid, and train nothing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from common import metrics
from common.arrays import Array, Arrays, digest
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
from common.study import Study
from simulations.grid import LocalGrid

HELD_OUT = Counted(patients=2, images=4)
Spoil = Callable[[Reply, Order], Reply | RecordDict]


@dataclass
class FakeSite:
    """A site that adds ``change`` to every array it is sent.

    ``spoil`` makes of an honest reply to a train or evaluate order whatever is to be sent.
    """

    name: str
    tasks: Mapping[str, int] = field(default_factory=lambda: {"ct": 10})
    """Training patients by task; as many images."""
    change: float = 0.5
    spoil: Spoil | None = None
    base: Arrays | None = None
    orders: list[Order] = field(default_factory=list)

    def answer(self, order: Order) -> Reply | RecordDict:
        """Follow an order, and note it."""
        self.orders.append(order)
        honest = Reply(self.name, order.study.digest(), order.round)
        if order.kind == "check":
            return honest._replace(declaration=self.declaration())
        if order.base is not None:
            self.base = {name: order.base[name] for name in order.base}
        if self.base is None or digest(self.base) != order.base_digest:
            return honest._replace(refusal="order")
        honest = honest._replace(metrics=self.metrics(order.study))
        if order.kind == "train":
            honest = honest._replace(
                groups=self.changes(order),
                weights={g: self.declaration().weight(g, "patients") for g in order.groups},
                training=Training(steps=3, loss=0.25, seconds=0.5, evaluation_seconds=0.125),
            )
        return self.spoil(honest, order) if self.spoil else honest

    def declaration(self) -> Declaration:
        """Say what the site holds."""
        tasks = {
            name: Splits(train=Counted(patients=n, images=n), validation=HELD_OUT, test=HELD_OUT)
            for name, n in self.tasks.items()
        }
        return Declaration(
            software="test",
            base="" if self.base is None else digest(self.base),
            tasks=tasks,
            unreadable={},
            patients=sum(self.tasks.values()),
        )

    def changes(self, order: Order) -> dict[str, dict[str, Array]]:
        """Return the same change for every number."""
        return {
            group: {name: np.full(arrays[name].shape, self.change, np.float32) for name in arrays}
            for group, arrays in order.groups.items()
        }

    def metrics(self, study: Study) -> dict[tuple[str, str], dict[str, Array]]:
        """Return the states of its held-out images."""
        return {
            (name, split): state_of(
                len(study.tasks[name].classes), study.tasks[name].positive_index
            )
            for name in self.tasks
            for split in ("validation", "test")
        }


def state_of(n_classes: int, positive: int | None, counts: Counted = HELD_OUT) -> dict[str, Array]:
    """Return the metric state of so many patients and images, the first class shown of all."""
    logits = np.zeros((counts.images, n_classes))
    labels = np.arange(counts.images) % n_classes
    state = metrics.update(metrics.zero(n_classes, positive), logits, labels, positive)
    return dict(metrics.to_arrays(metrics.with_patients(state, counts.patients)))


class FakeGrid(LocalGrid):
    """A grid to fake sites, of which those in ``deaf`` never answer after their enrolment."""

    def __init__(self, sites: list[FakeSite], deaf: Iterable[str] = ()) -> None:
        self.sites = sites
        self.deaf = set(deaf)
        app = ClientApp()

        def answer(message: Message, context: Context) -> Message:
            site = sites[int(context.node_config["partition-id"])]
            reply = site.answer(order_from_record(message.content))
            record = reply_to_record(reply) if isinstance(reply, Reply) else reply
            return Message(record, reply_to=message)

        app.query()(answer)
        app.train()(answer)
        app.evaluate()(answer)
        super().__init__(app, len(sites))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies of those that hear."""
        heard = [i for i in message_ids if not self._is_deaf(self._pushed[i])]
        return super().pull_messages(heard)

    def _is_deaf(self, message: Message) -> bool:
        name = self.sites[message.metadata.dst_node_id - 1].name
        return name in self.deaf and message.metadata.message_type != "query"


def study_of(**sections: Any) -> Study:
    """Return a study of two tasks on the smallest network, with sections replaced."""
    values: dict[str, Any] = {
        "name": "study",
        "rounds": 2,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "tasks": {
            "ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"},
            "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
        },
        "federation": {"quorum": 2, "deadline_s": 60.0},
    }
    return Study.parse(values | sections)


@pytest.fixture(autouse=True)
def _flower_task() -> None:
    """Say which task this process runs, as Flower's own processes do; messages need it."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


# Test files cannot import this one; what they need of it comes as fixtures.


@pytest.fixture
def make_site() -> Callable[..., FakeSite]:
    return FakeSite


@pytest.fixture
def make_grid() -> Callable[..., FakeGrid]:
    return FakeGrid


@pytest.fixture
def make_study() -> Callable[..., Study]:
    return study_of


@pytest.fixture
def make_state() -> Callable[..., dict[str, Array]]:
    return state_of
