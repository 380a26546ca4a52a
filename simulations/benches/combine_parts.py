"""What ``combine_memory`` measures: a round of ours, and one of Flower's, on made-up arrays."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from common import metrics, metrics_wire
from common.layout import SHARED, Layout
from common.messages import Reply, reply_to_record
from common.packed_arrays import PackedArrays
from common.statements import Counted, Declaration, Splits, Training
from common.study import Study
from common.wire_arrays import WireArrays, npy_header
from server.checkpoint import save_model
from server.rounds import begin_study, run_study
from server.stored_arrays import StoredArrays
from simulations.grid import LocalGrid

Shapes = Mapping[str, tuple[int, ...]]
PATIENTS = 3


def write_model(folder: Path, shapes: Shapes) -> None:
    """Write a model of these shapes, and one site's change of it, unless they are there."""
    if (folder / "model.safetensors").exists():
        return
    arrays = {name: _values(shape) for name, shape in shapes.items()}
    for name, value in arrays.items():
        encoded = WireArrays.of({name: value}).record[name]
        (folder / f"{name}.npy").write_bytes(encoded.data)
    for number, pack in PackedArrays.of(arrays).record.items():
        (folder / f"{number}.pack").write_bytes(pack.data)
    save_model(folder, arrays, {})


def our_round(folder: Path, shapes: Shapes, sites: int) -> Callable[[], None]:
    """Return a call that plays one round of ``server/rounds.py`` and its last exchange."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    study = Study.parse(
        {
            "name": "memory",
            "rounds": 1,
            "backbone": {"name": "any", "weights": "none"},
            "tasks": {"a": {"modality": "CT", "classes": ["no", "yes"]}},
        }
    )
    start = StoredArrays(folder / "model.safetensors", tuple(shapes))
    layout = Layout(groups={SHARED: tuple(shapes)}, local=(), base=())
    grid = _Sites(study, folder, sites)

    def play() -> None:
        out = folder / f"run-{sites}"
        begin_study(study, start, out)
        done = run_study(study, grid, layout, out, sites=sites, watch=lambda _: None)
        answered = len(done.records[0].answered)
        if answered != sites:
            raise RuntimeError(f"{answered} of {sites} replies were used")

    return play


def flower_round(folder: Path, shapes: Shapes) -> Callable[[], None]:
    """Return a call that lets Flower's FedAvg combine 4 replies."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def play() -> None:
        replies = []
        for node in range(1, 5):
            arrays = _arrived(folder, shapes)
            weight = MetricRecord({"num-examples": PATIENTS})
            content = RecordDict({"arrays": arrays, "metrics": weight})
            replies.append(Message(content, dst_node_id=node, message_type="train"))
        FedAvg().aggregate_train(1, replies)

    return play


class _Sites(LocalGrid):
    """Sites that make each reply when it is pulled, and keep none."""

    def __init__(self, study: Study, folder: Path, count: int) -> None:
        super().__init__(ClientApp(), count)
        self._study, self._folder = study, folder
        self._asked: dict[str, tuple[int, str]] = {}
        logits, labels = np.zeros((PATIENTS, 2)), np.array([0, 1, 1])
        state = metrics.update(metrics.zero(2, None), logits, labels, None)
        self._state = metrics_wire.to_arrays(metrics.with_patients(state, PATIENTS))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take note of who is asked what; the order itself is let go, as if it were sent."""
        ids = []
        for message in messages:
            ids.append(os.urandom(8).hex())
            self._asked[ids[-1]] = message.metadata.dst_node_id, message.metadata.message_type
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Make the replies that are asked for."""
        return [self._reply(*self._asked.pop(i)) for i in message_ids]

    def _reply(self, node: int, kind: str) -> Message:
        record = reply_to_record(self._made(f"site-{node}", kind))
        return Message(record, dst_node_id=1, message_type=kind)

    def _made(self, site: str, kind: str) -> Reply:
        digest = self._study.digest()
        if kind == "query":
            counted = Counted(patients=PATIENTS, images=PATIENTS)
            splits = Splits(train=counted, validation=counted, test=counted)
            declared = Declaration(
                software="bench",
                base="",
                tasks={"a": splits},
                unreadable={"a": 0},
                patients=PATIENTS,
            )
            return Reply(site, digest, 0, declaration=declared)
        trains = kind == "train"
        return Reply(
            site,
            digest,
            1 if trains else 2,
            training=Training(steps=1, loss=1.0, seconds=1.0, evaluation_seconds=1.0),
            groups={SHARED: PackedArrays(_packs(self._folder))} if trains else {},
            weights={SHARED: float(PATIENTS)} if trains else {},
            metrics={("a", split): self._state for split in ("validation", "test")},
        )


def _packs(folder: Path) -> ArrayRecord:
    """Return the packs of a change as a network would bring them: bytes, once in memory."""
    header = len(npy_header("uint8", (0,)))
    packs = {}
    for file in sorted(folder.glob("*.pack"), key=lambda file: int(file.stem)):
        data = file.read_bytes()
        packs[file.stem] = Array("uint8", (len(data) - header,), "numpy.ndarray", data)
    return ArrayRecord(packs)


def _arrived(folder: Path, shapes: Shapes) -> ArrayRecord:
    """Return arrays as a network would bring them: bytes, once in memory."""
    return ArrayRecord(
        {
            name: Array("float32", shape, "numpy.ndarray", (folder / f"{name}.npy").read_bytes())
            for name, shape in shapes.items()
        }
    )


def _values(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
