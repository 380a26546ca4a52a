"""Sites for the coordinator's tests: they answer over a real grid, and train nothing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from common import metrics, metrics_wire
from common.arrays import Array, Arrays, digest
from common.layout import Layout
from common.messages import Order, Reply, order_from_record, reply_to_record
from common.seals import Sealer
from common.statements import Counted, Declaration, Splits, Training
from common.study import Study
from server.history import RoundRecord
from server.rounds import Outcome, begin_study, run_study
from server.timing import AT_ONCE, Timing
from simulations.grid import LocalGrid

HELD_OUT = Counted(patients=2, images=4)
Spoil = Callable[[Reply, Order], Reply | RecordDict]


@dataclass
class FakeSite:
    """A site that adds ``change`` to every array it is sent.

    ``spoil`` makes of an honest reply to a train or evaluate order whatever is to be sent, and
    ``meanwhile`` is called with each order before it is followed: the world moves on.
    """

    name: str
    tasks: Mapping[str, int] = field(default_factory=lambda: {"ct": 10})
    """Training patients by task; as many images."""
    change: float = 0.5
    spoil: Spoil | None = None
    base: Arrays | None = None
    orders: list[Order] = field(default_factory=list)
    records: list[RecordDict] = field(default_factory=list)
    """The orders as they came."""
    enrolled: str = ""
    """The name that the grid knows it under."""
    away: bool = False
    """It is not connected; what it is sent meanwhile is lost."""
    losses: list[int] = field(default_factory=list)
    """Flower's error code for each of its next orders; 0 for one that gets through."""
    refusal: str = ""
    """Why it does not take part, as long as there is a reason."""
    unknown: tuple[str, ...] = ()
    """Tasks whose patients it does not know."""
    meanwhile: Callable[[Order], None] | None = None

    def answer(self, order: Order) -> Reply | RecordDict:
        """Follow an order, and note it."""
        self.orders.append(order)
        if self.meanwhile is not None:
            self.meanwhile(order)
        if self.refusal:
            return Reply(self.name, order.study.digest(), order.round, refusal=self.refusal)
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
            each_image=self.unknown,
        )

    def changes(self, order: Order) -> dict[str, dict[str, Array]]:
        """Return the same change for every number."""
        dtype = order.study.federation.update_dtype
        return {
            group: {name: np.full(arrays[name].shape, self.change, dtype) for name in arrays}
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
    return dict(metrics_wire.to_arrays(metrics.with_patients(state, counts.patients)))


class FakeGrid(LocalGrid):
    """A grid to fake sites, of which those in ``deaf`` keep their orders after their enrolment.

    They answer once they are no longer deaf, however late that is.
    """

    def __init__(self, sites: list[FakeSite], deaf: Iterable[str] = ()) -> None:
        self.sites = sites
        self.deaf = set(deaf)
        self.swallow: set[str] = set()
        """Sites whose next reply to an order vanishes without a word."""
        self.swallow_checks: set[str] = set()
        """Sites whose next declaration vanishes."""
        app = ClientApp()

        def answer(message: Message, context: Context) -> Message:
            site = sites[int(context.node_config["partition-id"])]
            site.records.append(message.content)
            reply = site.answer(order_from_record(message.content))
            record = reply_to_record(reply) if isinstance(reply, Reply) else reply
            return Message(record, reply_to=message)

        app.query()(answer)
        app.train()(answer)
        app.evaluate()(answer)
        super().__init__(app, len(sites))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies of those that hear."""
        there = [i for i in message_ids if i in self._pushed]
        heard = [i for i in there if not self._is_deaf(self._pushed[i])]
        vanished = {i for i in heard if self._vanishes(self._pushed.get(i))}
        replies = super().pull_messages(heard)
        return [reply for i, reply in zip(heard, replies, strict=True) if i not in vanished]

    def _vanishes(self, message: Message | None) -> bool:
        if message is None:
            return False
        is_check = message.metadata.message_type == "query"
        vanishing = self.swallow_checks if is_check else self.swallow
        name = self._site_of(message).name
        gone = name in vanishing
        vanishing.discard(name)
        return gone

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes of the sites that are connected, with their enrolled names."""
        here = ((n, site) for n, site in enumerate(self.sites, 1) if not site.away)
        return [NodeInfo(node_id=number, name=site.enrolled) for number, site in here]

    def _answer(self, message: Message) -> Message:
        """Return a site's reply, or Flower's error where order or reply was lost on its way."""
        site = self._site_of(message)
        code = ErrorCode.NODE_UNAVAILABLE if site.away else site.losses and site.losses.pop(0)
        if not code:
            return super()._answer(message)
        if code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE:
            super()._answer(message)  # the work was done
        return Message(Error(code), reply_to=message)

    def _is_deaf(self, message: Message) -> bool:
        return self._site_of(message).name in self.deaf and message.metadata.message_type != "query"

    def _site_of(self, message: Message) -> FakeSite:
        return self.sites[message.metadata.dst_node_id - 1]


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


SMALL = Layout(
    groups={
        "shared": ("backbone.weight", "backbone.scalar"),
        "statistics": ("backbone.mean",),
        "head:ct": ("heads.ct.bias",),
    },
    local=(),
    base=("counter",),
)
"""A network that is quick to play with: only its arrays' names count here."""
SMALL_ARRAYS: Mapping[str, Array] = {
    "backbone.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "backbone.scalar": np.array(0.25, np.float32),
    "backbone.mean": np.zeros(4, np.float32),
    "heads.ct.bias": np.zeros(2, np.float32),
    "counter": np.array(3, np.int64),
}


def small_study_of(rounds: int = 2, **federation: Any) -> Study:
    """Return a study of one task, with settings of its federation."""
    task = {"modality": "CT", "classes": ["a", "b"], "positive": "b"}
    federation = {"quorum": 2, "deadline_s": 20.0} | federation
    return study_of(rounds=rounds, tasks={"ct": task}, federation=federation)


def play_small(
    study: Study,
    grid: FakeGrid,
    folder: Path,
    *,
    timing: Timing = AT_ONCE,
    sealer: Sealer | None = None,
) -> Outcome:
    """Begin or go on with a study of the small network."""

    def watch(record: RoundRecord) -> None:
        assert record.seconds["total"] >= 0

    begin_study(study, SMALL_ARRAYS, folder)
    sites = len(grid.sites)
    return run_study(
        study, grid, SMALL, folder, sites=sites, watch=watch, timing=timing, sealer=sealer
    )


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


@pytest.fixture
def make_small_study() -> Callable[..., Study]:
    return small_study_of


@pytest.fixture
def small_layout() -> Layout:
    return SMALL


@pytest.fixture
def small_arrays() -> Mapping[str, Array]:
    return SMALL_ARRAYS


@pytest.fixture
def play_on() -> Callable[..., Outcome]:
    return play_small


TINY_PROJECT = b"""
[project]
name = "tiny"
version = "0.0.1"
description = "a test's"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
clientapp = "tiny:client"
serverapp = "tiny:app"
[tool.flwr.app.config]
study-id = ""
"""
TINY_APP = b"""
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client = ClientApp()
app = ServerApp()
"""


@pytest.fixture(scope="session")
def tiny_bundle() -> bytes:
    """A bundle of apps that do nothing, and import nothing of ours."""
    return build_fab_from_files({"pyproject.toml": TINY_PROJECT, "tiny.py": TINY_APP})[0]
