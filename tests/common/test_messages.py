"""Laws of orders and replies on the wire."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from common import messages, metrics, metrics_wire
from common.arrays import Array as Values
from common.arrays import Arrays, digest
from common.attention import ATTENTION, FIGURES, from_arrays, to_arrays
from common.chained_log import Head
from common.errors import ReplyError, StudyMismatchError
from common.held_out import SPLIT_OF
from common.messages import (
    MESSAGE_TYPES,
    MOST_LOWERED,
    Order,
    Reply,
    order_from_record,
    order_to_record,
    reply_from_record,
    reply_to_record,
    size_in_bytes,
)
from common.packed_arrays import PackedArrays
from common.statements import Counted, Declaration, Splits, Training, rounded
from common.study import Study
from common.training import MOST_SITES
from common.versions import PROTOCOL
from common.wire_arrays import WireArrays

STUDY = Study.parse(
    {
        "name": "study",
        "rounds": 2,
        "backbone": {"name": "test_resnet", "weights": "/coordinator/start.safetensors"},
        "tasks": {
            "ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"},
            "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
        },
    }
)
SHARED: dict[str, Values] = {
    "w": np.array([[0.1, -0.0], [np.finfo(np.float32).tiny / 4, 3e38]], np.float32),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
}
HEAD: dict[str, Values] = {"heads.ct.bias": np.array([1, 2], np.float32)}
BASE: dict[str, Values] = {"count": np.array(3, np.int64), "flags": np.array([True, False])}
COUNTS = Counted(patients=3, images=5)
DECLARATION = Declaration(
    software="1.0",
    base="",
    tasks={"ct": Splits(train=COUNTS, validation=COUNTS, test=COUNTS)},
    unreadable={"ct": 1},
    patients=3,
)
TRAINING = Training(steps=4, loss=0.5, seconds=1.0, evaluation_seconds=0.25)


def order(*, base: Arrays | None = BASE) -> Order:
    return Order("train", STUDY, 2, {"shared": SHARED, "head:ct": HEAD}, "ab" * 32, base)


def reply(**changes: Any) -> Reply:
    state = metrics_wire.to_arrays(metrics.zero(2, 1))
    full = Reply(
        site="hospital-1",
        digest=STUDY.digest(),
        round=2,
        declaration=DECLARATION,
        training=TRAINING,
        groups={"shared": SHARED, "head:ct": HEAD},
        weights={"shared": 0.1 + 0.2, "head:ct": 3.0},
        metrics={("ct", "validation"): state, ("ct", "test"): state},
    )
    return full._replace(**changes)


def wired(record: RecordDict) -> RecordDict:
    """Send a record through the protocol buffers that Flower puts on the network."""
    proto = recorddict_to_proto(record)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def plain(arrays: Arrays) -> Arrays:
    return {name: arrays[name] for name in arrays}


@pytest.mark.parametrize("kind", MESSAGE_TYPES)
@pytest.mark.parametrize("base", [None, BASE, {}], ids=["no base", "base", "empty base"])
def test_an_order_arrives_as_it_was_sent(kind: messages.Kind, base: Arrays | None) -> None:
    """Every field comes back, every array bit for bit, and the study without its folder."""
    sent = order(base=base)._replace(kind=kind)
    found = order_from_record(wired(order_to_record(sent)))
    assert (found.kind, found.round, found.base_digest) == (kind, 2, "ab" * 32)
    assert found.study.digest() == STUDY.digest()
    assert found.study.backbone.weights == "start.safetensors"
    assert set(found.groups) == {"shared", "head:ct"}
    assert digest(found.groups["shared"]) == digest(SHARED)
    assert digest(found.groups["head:ct"]) == digest(HEAD)
    assert (found.base is None) == (base is None)
    if base is not None:
        assert found.base is not None
        assert digest(found.base) == digest(base)


@pytest.mark.parametrize("place", [None, 0, MOST_SITES - 1])
@pytest.mark.parametrize(("lowered", "model_round"), [(0, None), (0, 0), (3, 1), (MOST_LOWERED, 1)])
def test_an_order_says_what_its_round_does_not(
    lowered: int, model_round: int | None, place: int | None
) -> None:
    """How often rates were lowered, whose model it brings and to whom, come back as sent."""
    sent = order()._replace(lowered=lowered, model_round=model_round, place=place)
    found = order_from_record(wired(order_to_record(sent)))
    assert (found.lowered, found.model_round, found.place) == (lowered, model_round, place)


def test_a_reply_arrives_as_it_was_sent() -> None:
    """Every field comes back, floats exactly and arrays bit for bit."""
    sent = reply()
    found = reply_from_record(wired(reply_to_record(sent)))
    arrays = ("groups", "metrics")
    assert found._replace(groups={}, metrics={}) == sent._replace(groups={}, metrics={})
    for field in arrays:
        ours, theirs = getattr(sent, field), getattr(found, field)
        assert set(ours) == set(theirs)
        assert all(digest(theirs[key]) == digest(ours[key]) for key in ours)


def test_states_of_patients_travel_as_any_other() -> None:
    """By task and name of the state, bit for bit, beside those of images."""
    state = reply().metrics["ct", "test"]
    sent = reply(metrics={("ct", name): state for name in SPLIT_OF})
    found = reply_from_record(wired(reply_to_record(sent)))
    assert list(found.metrics) == [
        ("ct", "validation"), ("ct", "test"), ("ct", "validation_patients"),
        ("ct", "test_patients"),
    ]  # fmt: skip
    assert {digest(arrays) for arrays in found.metrics.values()} == {digest(state)}


def test_sums_of_attention_travel_as_any_state() -> None:
    """They stand under the task and their own name, bit for bit."""
    table = np.array([[7.0, 0.1 + 0.2, 1.3]] * len(FIGURES))
    record = wired(reply_to_record(reply(metrics={("ct", ATTENTION): to_arrays(table)})))
    assert set(record) - {"reply", "shared", "head:ct", "weights"} == {"metrics/ct/attention"}
    found = from_arrays(reply_from_record(record).metrics["ct", ATTENTION])
    assert np.array_equal(found, table)


def test_a_training_may_have_no_loss() -> None:
    """A training without a loss comes back as such; metrics may be left out, some or all."""
    quiet = TRAINING.model_copy(update={"loss": None})
    metrics_left = {("ct", "test"): reply().metrics["ct", "test"]}
    for sent in (reply(training=quiet, metrics={}), reply(training=quiet, metrics=metrics_left)):
        found = reply_from_record(wired(reply_to_record(sent)))
        assert found.training == quiet
        assert set(found.metrics) == set(sent.metrics)


def test_the_head_of_an_audit_log_comes_and_goes() -> None:
    """A reply tells it, the next order brings it back; an older release sends and sees neither."""
    head = Head(7, "ab" * 32)
    record = order_to_record(order()._replace(countersigned=head))
    assert dict(record.config_records["countersigned"]) == {"entries": 7, "head": "ab" * 32}
    assert order_from_record(wired(record)).countersigned == head
    assert order_from_record(wired(order_to_record(order()))).countersigned is None
    answer = reply_to_record(reply(audit=head))
    assert dict(answer.config_records["audit"]) == {"entries": 7, "head": "ab" * 32}
    assert reply_from_record(wired(answer)).audit == head
    assert reply_from_record(wired(reply_to_record(reply()))).audit is None
    assert set(answer) - set(reply_to_record(reply())) == {"audit"}


NO_HEADS: tuple[dict[str, Any], ...] = (
    {}, {"entries": 7}, {"head": "ab" * 32}, {"entries": -1, "head": "ab" * 32},
    {"entries": 10**10, "head": "ab" * 32}, {"entries": True, "head": "ab" * 32},
    {"entries": 7.0, "head": "ab" * 32}, {"entries": "7", "head": "ab" * 32},
    {"entries": 7, "head": "AB" * 32}, {"entries": 7, "head": "ab" * 31},
    {"entries": 7, "head": "ab" * 32 + "\n"}, {"entries": 7, "head": b"ab" * 32},
    {"entries": 7, "head": "ab" * 32, "name": "Jane Doe"},
)  # fmt: skip


@pytest.mark.parametrize("values", NO_HEADS)
def test_what_is_no_head_is_refused(values: dict[str, Any]) -> None:
    """A head is a number of lines and a hash, on both ways, and nothing more."""
    sent = order_to_record(order())
    sent["countersigned"] = ConfigRecord(values)
    with pytest.raises(StudyMismatchError):
        order_from_record(sent)
    answer = reply_to_record(reply())
    answer["audit"] = ConfigRecord(values)
    with pytest.raises(ReplyError):
        reply_from_record(answer)


def test_a_declaration_without_unknown_patients_may_leave_them_out() -> None:
    """What a declaration does not say of unknown patients is that there are none."""
    record = reply_to_record(reply())
    header = json.loads(str(record.config_records["reply"]["header"]))
    del header["declaration"]["each_image"]
    record["reply"] = ConfigRecord({"header": json.dumps(header)})
    assert reply_from_record(wired(record)).declaration == DECLARATION
    told = DECLARATION.model_copy(update={"each_image": ("ct",)})
    found = reply_from_record(wired(reply_to_record(reply(declaration=told))))
    assert found.declaration == told


def test_a_refusal_carries_a_code_and_nothing_else() -> None:
    """A refusal comes back as its code; it has no arrays, weights, metrics or counts."""
    sent = Reply(site="hospital-1", digest="0" * 64, round=3, refusal="missing_folder")
    record = reply_to_record(sent)
    assert reply_from_record(wired(record)) == sent
    assert set(record) == {"reply", "weights"}
    assert not record["weights"]


def test_the_names_of_an_order_are_frozen() -> None:
    """Two releases of one protocol must agree on these names to the letter."""
    record = order_to_record(order())
    assert set(record) == {"order", "shared", "head:ct", "base"}
    assert dict(record.config_records["order"]) == {
        "protocol": PROTOCOL, "kind": "train", "study": STUDY.wire(), "digest": STUDY.digest(),
        "round": 2, "base": "ab" * 32,
    }  # fmt: skip
    assert "base" not in order_to_record(order(base=None))
    more = order_to_record(order()._replace(lowered=2, model_round=0, place=1)).config_records[
        "order"
    ]
    told = {"lowered": 2, "model_round": 0, "place": 1}
    assert {name: more[name] for name in more if name not in record["order"]} == told
    assert PROTOCOL == 1
    assert dict(MESSAGE_TYPES) == {"check": "query", "train": "train", "evaluate": "evaluate"}


def test_the_names_of_a_reply_are_frozen() -> None:
    """Two releases of one protocol must agree on these names to the letter."""
    record = reply_to_record(reply())
    assert set(record) == {
        "reply", "shared", "head:ct", "weights", "metrics/ct/validation", "metrics/ct/test",
    }  # fmt: skip
    assert set(record.metric_records["weights"]) == {"shared", "head:ct"}
    assert set(record.config_records["reply"]) == {"header"}
    counts = {"patients": 3, "images": 5}
    assert json.loads(str(record.config_records["reply"]["header"])) == {
        "protocol": 1,
        "site": "hospital-1",
        "digest": STUDY.digest(),
        "round": 2,
        "refusal": "",
        "declaration": {
            "software": "1.0",
            "base": "",
            "tasks": {"ct": {"train": counts, "validation": counts, "test": counts}},
            "unreadable": {"ct": 1},
            "patients": 3,
            "each_image": [],
        },
        "training": {"steps": 4, "loss": 0.5, "seconds": 1.0, "evaluation_seconds": 0.25},
    }


def test_arrays_travel_as_plain_numpy() -> None:
    """Each array is NumPy's own format, without Python objects."""
    for record in (order_to_record(order()), reply_to_record(reply())):
        for arrays in record.array_records.values():
            for array in arrays.values():
                assert array.stype == "numpy.ndarray"
                value = np.lib.format.read_array(io.BytesIO(array.data))
                assert value.dtype != object


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def headed(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
STREAM = bytes.fromhex("80045d942e")  # Python's own stream of an empty list, which runs code
HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }\n"


@pytest.mark.parametrize(
    "data",
    [
        headed(OBJECTS) + STREAM, STREAM, b"", b"rubbish",
        archive(), b"PK\x03\x04rubbish", headed(HUGE), headed(b"((("), headed(b"'''"),
        headed(b"{1: 2}"), saved(np.zeros(9, np.float32))[:-1],
    ],
    ids=[
        "objects", "object stream", "nothing", "rubbish", "archive", "broken archive", "too large",
        "bracket", "quote", "header", "truncated",
    ],
)  # fmt: skip
def test_foreign_bytes_are_no_array(data: bytes) -> None:
    """Whatever bytes stand where an array should be, asking for it is a ValueError."""
    record = ArrayRecord({"w": Array("float32", (9,), "numpy.ndarray", data)})
    with pytest.raises(ValueError, match=r"."):
        WireArrays(record)["w"]


def test_another_serialisation_is_no_array() -> None:
    """Bytes that say to be of another form than NumPy's are not read at all."""
    record = ArrayRecord({"w": Array("float32", (2,), "torch.tensor", saved(np.zeros(2)))})
    with pytest.raises(ValueError, match="torch"):
        WireArrays(record)["w"]
    with pytest.raises(KeyError):
        WireArrays(record)["other"]


def test_arrays_are_encoded_once() -> None:
    """Many orders carry the very same bytes, not copies of them."""
    groups = {"shared": PackedArrays.of(SHARED)}
    one, two = (order_to_record(order()._replace(groups=groups)) for _ in range(2))
    assert one["shared"] is two["shared"] is groups["shared"].record
    again = order_from_record(one).groups["shared"]
    assert order_to_record(order()._replace(groups={"shared": again}))["shared"] is one["shared"]


def test_wire_arrays_read_like_a_mapping() -> None:
    """Names come in their order, and nobody can change the bytes that came through a value."""
    arrays = WireArrays.of(SHARED)
    assert list(arrays) == list(SHARED)
    assert len(arrays) == len(SHARED)
    with pytest.raises(ValueError, match="read-only"):
        arrays["w"][...] = 0
    assert digest(plain(arrays)) == digest(SHARED)


# Malformed replies


def header_of(record: RecordDict) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(str(record.config_records["reply"]["header"])))


def set_header(record: RecordDict, value: str) -> None:
    record["reply"] = ConfigRecord({"header": value})


def with_header(path: str, value: Any) -> Callable[[RecordDict], None]:
    """Return a change that sets one key of the header, or removes it with ``...``."""

    def change(record: RecordDict) -> None:
        head = header_of(record)
        *parents, last = path.split(".")
        table = head
        for parent in parents:
            table = table[parent]
        if value is ...:
            del table[last]
        else:
            table[last] = value
        set_header(record, json.dumps(head))

    return change


def without(name: str) -> Callable[[RecordDict], None]:
    def change(record: RecordDict) -> None:
        del record[name]

    return change


MALFORMED: dict[str, Callable[[RecordDict], None]] = {
    "no header record": without("reply"),
    "no weights record": without("weights"),
    "header of other name": lambda r: r.update(reply=ConfigRecord({"head": "{}"})),
    "no JSON": lambda r: set_header(r, "{"),
    "empty": lambda r: set_header(r, ""),
    "a list": lambda r: set_header(r, "[]"),
    "deeply nested": lambda r: set_header(r, "[" * 100_000),
    "weights are lists": lambda r: r.update(weights=MetricRecord({"shared": [1.0, 2.0]})),
    "weights are arrays": lambda r: r.update(weights=ArrayRecord({})),
    "protocol": with_header("protocol", 2),
    "protocol is text": with_header("protocol", "1"),
    "no site": with_header("site", ...),
    "site is a path": with_header("site", "../../etc"),
    "site is long": with_header("site", "a" * 64),
    "digest": with_header("digest", "xyz"),
    "round is negative": with_header("round", -1),
    "round is text": with_header("round", "2"),
    "round is a float": with_header("round", 2.0),
    "round is true": with_header("round", True),
    "refusal is prose": with_header("refusal", "Patient 17 is missing"),
    "extra key": with_header("note", "hello"),
    "extra key in training": with_header("training.note", "hello"),
    "extra key in counts": with_header("declaration.tasks.ct.train.note", 1),
    "loss is NaN": with_header("training.loss", float("nan")),
    "loss is infinite": with_header("training.loss", float("inf")),
    "loss is negative": with_header("training.loss", -1.0),
    "loss is text": with_header("training.loss", "0.5"),
    "no loss": with_header("training.loss", ...),
    "no steps": with_header("training.steps", ...),
    "count is negative": with_header("declaration.tasks.ct.train.images", -1),
    "count is a float": with_header("declaration.patients", 2.5),
    "task is a path": with_header("declaration.tasks.a/b", {}),
    "no test split": with_header("declaration.tasks.ct.test", ...),
    "software is long": with_header("declaration.software", "x" * 41),
    "base is no digest": with_header("declaration.base", "abc"),
    "task of unknown patients is a path": with_header("declaration.each_image", ["a/b"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_is_refused(name: str) -> None:
    """A reply of any other form is a ReplyError, whatever is wrong with it."""
    record = wired(reply_to_record(reply()))
    MALFORMED[name](record)
    with pytest.raises(ReplyError):
        reply_from_record(record)


def test_records_of_other_names_are_left_to_the_ingress() -> None:
    """Arrays of any other name count as a group, which the ingress compares with the order."""
    record = reply_to_record(reply())
    record["metrics/ct"] = ArrayRecord({})
    record["metrics/a/b/c"] = ArrayRecord({})
    record["base"] = ArrayRecord({})
    found = reply_from_record(record)
    assert set(found.groups) == {"shared", "head:ct", "metrics/ct", "metrics/a/b/c", "base"}
    assert set(found.metrics) == {("ct", "validation"), ("ct", "test")}


# Malformed orders


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", 2), ("protocol", "1"), ("protocol", ...), ("kind", "steal"), ("kind", ...),
        ("study", "{"), ("study", "[]"), ("study", "{}"), ("study", 3), ("study", ...),
        ("digest", "0" * 64), ("digest", ...), ("round", -1), ("round", "x"), ("round", ...),
        ("base", "xyz"), ("base", ...), ("lowered", -1), ("lowered", MOST_LOWERED + 1),
        ("lowered", 1.0), ("model_round", -1), ("model_round", "x"), ("rate", 1.0),
        ("place", -1), ("place", MOST_SITES), ("place", 0.0), ("place", "a"),
    ],
)  # fmt: skip
def test_a_malformed_order_is_refused(key: str, value: Any) -> None:
    """An order of another protocol, form or study is a StudyMismatchError at the site."""
    record = order_to_record(order())
    head = record.config_records["order"]
    if value is ...:
        del head[key]
    else:
        head[key] = value
    with pytest.raises(StudyMismatchError):
        order_from_record(record)


def test_an_order_without_its_head_is_refused() -> None:
    """Arrays alone are no order."""
    with pytest.raises(StudyMismatchError):
        order_from_record(RecordDict({"shared": ArrayRecord({})}))


def test_an_order_of_another_study_is_refused() -> None:
    """The study that an order carries must be the one whose digest it states."""
    record = order_to_record(order())
    other = Study.parse(json.loads(STUDY.wire()) | {"rounds": 3})
    record.config_records["order"]["study"] = other.wire()
    with pytest.raises(StudyMismatchError, match="another digest"):
        order_from_record(record)


# What a site weighs, and what a record weighs


def test_a_sites_weight_is_what_it_declared() -> None:
    """Heads weigh by their task's training split, the backbone by all tasks; equal is 1."""

    def counted(patients: int, images: int) -> Splits:
        other = Counted(patients=90, images=99)
        train = Counted(patients=patients, images=images)
        return Splits(train=train, validation=other, test=other)

    declared = DECLARATION.model_copy(
        update={"tasks": {"ct": counted(3, 10), "mr": counted(4, 20)}, "patients": 5}
    )
    for group, patients, images in (("shared", 5, 30), ("statistics", 5, 30), ("head:ct", 3, 10)):
        assert declared.weight(group, "patients") == patients
        assert declared.weight(group, "images") == images
        assert declared.weight(group, "equal") == 1


def test_rounded_numbers_are_the_nearest_fives() -> None:
    """Rounding moves a number by two at most, is done once, keeps the order, and none is none."""
    numbers = range(2000)
    assert [rounded(n) for n in (0, 1, 2, 3, 7, 8)] == [0, 5, 5, 5, 5, 10]
    assert all(abs(rounded(n) - n) <= 2 for n in numbers if n not in (1, 2))
    assert all(rounded(rounded(n)) == rounded(n) and rounded(n) % 5 == 0 for n in numbers)
    assert all(rounded(n) <= rounded(n + 1) for n in numbers)


def test_the_size_is_that_of_the_encoded_content(tmp_path: Path) -> None:
    """A record's size is its arrays as NumPy saves them, 8 bytes a number, and its text."""
    record = RecordDict(
        {
            "a": WireArrays.of(SHARED).record,
            "b": MetricRecord({"x": 1.0, "y": 2}),
            "c": ConfigRecord({"text": "Größe", "n": 3}),
        }
    )
    arrays = 0
    for name, value in SHARED.items():
        np.save(tmp_path / name, value)
        arrays += (tmp_path / f"{name}.npy").stat().st_size
    assert size_in_bytes(record) == arrays + 2 * 8 + len("Größe".encode()) + 8
