"""Orders and replies, and the only file that knows how they look on the wire.

    order   ConfigRecord "order"            what is asked: kind, study, digest, round, base digest,
                                                 and only if needed: lowered, model_round, place
            ArrayRecord  one for each group      the global arrays: "shared", "head:TASK", ...,
                                                 in packs (``common/packed_arrays.py``)
            ArrayRecord  "base"              only for a site that does not have it yet; beside it
                                                 the initial backbone, if the study stays near it
            ConfigRecord "countersigned"     the head of the site's audit log that came last
    reply   ConfigRecord "reply"            who answers what, and a code if it refuses
            ArrayRecord  one for each group      the change (local minus global) of its arrays
            MetricRecord "weights"           what each group's change weighs
            ArrayRecord  "metrics/T/S"       sums and histograms of task T; S is a split, or
                                                 its patients, or a member of an ensemble
                                                 (``common/held_out.py``), or where the network
                                                 looks (``common/attention.py``)
            ConfigRecord "audit"             of a vault: the head of its audit log

What travels is the change, never the local weights: a change may be cast to fewer bits at small
cost, a weight may not.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import Field, Json, ValidationError

from common.arrays import Arrays
from common.chained_log import Head
from common.errors import OrderError, ReplyError, StudyError, StudyMismatchError
from common.packed_arrays import PackedArrays
from common.seals import COUNTERSIGNED
from common.statements import Count, Declaration, Form, Name, Training
from common.study import Study
from common.training import MOST_SITES
from common.versions import PROTOCOL

Kind = Literal["check", "train", "evaluate"]
MESSAGE_TYPES: Mapping[Kind, str] = {"check": "query", "train": "train", "evaluate": "evaluate"}
"""Flower's message type for each kind of order."""

_SAME_VERSION = "Install the same version of rarefed at the coordinator and at the site."
_AUDIT = "audit"

Part = TypeVar("Part", ConfigRecord, MetricRecord)

MOST_LOWERED = 10_000
"""Rates that were lowered so often are nothing; a count above it is none."""


class _Header(Form):
    protocol: int
    site: Name
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    round: Count
    refusal: Annotated[str, Field(pattern="^[a-z_]{0,40}$")]
    declaration: Declaration | None
    training: Training | None


class _OrderHead(Form):
    protocol: int
    kind: Kind
    study: Json[dict[str, Any]]
    digest: str
    round: Count
    base: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    lowered: Annotated[int, Field(ge=0, le=MOST_LOWERED)] = 0
    model_round: Count | None = None
    place: Annotated[int, Field(ge=0, lt=MOST_SITES)] | None = None


class _Head(Form):
    entries: Count
    head: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Order(NamedTuple):
    """What the coordinator asks of one site."""

    kind: Kind
    study: Study
    round: int
    """1, 2, ...; 0 for a check."""
    groups: Mapping[str, Arrays]
    base_digest: str
    base: Arrays | None
    countersigned: Head | None = None
    """The last head of the site's audit log that the coordinator has got from it in the study."""
    lowered: int = 0
    """How often a schedule ``plateau`` has lowered the learning rates; 0 to ``MOST_LOWERED``."""
    model_round: int | None = None
    """The round after which the model was so; None where it is the one before."""
    place: int | None = None
    """Which site this is, of those that a discriminator tells apart: 0, 1, ...; None elsewhere."""


class Reply(NamedTuple):
    """What a site answers."""

    site: str
    digest: str
    round: int
    refusal: str = ""
    """Code of the reason why the site did not do what was asked; empty when it did."""
    declaration: Declaration | None = None
    training: Training | None = None
    groups: Mapping[str, Arrays] = {}
    weights: Mapping[str, float] = {}
    metrics: Mapping[tuple[str, str], Arrays] = {}
    """Metric states and sums of attention as arrays, by task and name of the state; a site may
    leave out some or all."""
    audit: Head | None = None
    """Where the vault's audit log stood before the line of this exchange; None in a simulation."""


def order_to_record(order: Order) -> RecordDict:
    """Pack an order for Flower."""
    head: dict[str, Any] = {
        "protocol": PROTOCOL,
        "kind": order.kind,
        "study": order.study.wire(),
        "digest": order.study.digest(),
        "round": order.round,
        "base": order.base_digest,
    }
    more = {"lowered": order.lowered or None, "model_round": order.model_round}
    head |= {k: v for k, v in (*more.items(), ("place", order.place)) if v is not None}
    record = RecordDict({"order": ConfigRecord(head)})
    for group, arrays in order.groups.items():
        record[group] = _pack(arrays)
    if order.base is not None:
        record["base"] = _pack(order.base)
    if order.countersigned is not None:
        record[COUNTERSIGNED] = head_to_part(order.countersigned)
    return record


def order_from_record(record: RecordDict) -> Order:
    """Unpack an order at a site.

    Raises:
        StudyMismatchError: The order speaks another protocol or is malformed, or its study is
            not the one whose digest it states.
        OrderError: Its arrays are malformed.
    """
    part = record.get("order")
    sent: Mapping[str, Any] = part if isinstance(part, ConfigRecord) else {}
    if sent.get("protocol") != PROTOCOL:
        raise StudyMismatchError(
            f"The order speaks protocol {sent.get('protocol')!r}, this software {PROTOCOL}.",
            remedy=_SAME_VERSION,
        )
    try:
        head = _OrderHead.model_validate(dict(sent))
        study = Study.parse(head.study)
        countersigned = _head_of(record, COUNTERSIGNED)
    except (StudyError, ValidationError) as error:
        what = error.message if isinstance(error, StudyError) else str(error)
        raise StudyMismatchError(
            f"The order is not valid here: {what}", remedy=_SAME_VERSION
        ) from error
    if study.digest() != head.digest:
        raise StudyMismatchError("The order's study has another digest than the order states.")
    try:
        arrays = {name: PackedArrays(value) for name, value in _arrays_of(record).items()}
    except ValueError as error:
        raise OrderError(f"The order's arrays cannot be read: {error}.") from error
    base = arrays.pop("base", None)
    order = Order(head.kind, study, head.round, arrays, head.base, base, countersigned)
    return order._replace(lowered=head.lowered, model_round=head.model_round, place=head.place)


def reply_to_record(reply: Reply) -> RecordDict:
    """Pack a reply for Flower."""
    header = _Header(
        protocol=PROTOCOL,
        site=reply.site,
        digest=reply.digest,
        round=reply.round,
        refusal=reply.refusal,
        declaration=reply.declaration,
        training=reply.training,
    )
    record = RecordDict({"reply": ConfigRecord({"header": header.model_dump_json()})})
    for group, arrays in reply.groups.items():
        record[group] = _pack(arrays)
    record["weights"] = MetricRecord(dict(reply.weights))
    for (task, split), state in reply.metrics.items():
        record[f"metrics/{task}/{split}"] = _pack(state)
    if reply.audit is not None:
        record[_AUDIT] = head_to_part(reply.audit)
    return record


def reply_from_record(record: RecordDict) -> Reply:
    """Unpack a reply at the coordinator; its arrays are checked by ``server/ingress.py``.

    Raises:
        ReplyError: The reply is not of this form.
    """
    try:
        header = _Header.model_validate_json(str(_part(record, "reply", ConfigRecord)["header"]))
        sent = _part(record, "weights", MetricRecord)
        weights = {name: float(value) for name, value in sent.items()}  # type: ignore[arg-type]
        audit = _head_of(record, _AUDIT)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ReplyError(
            f"The reply is malformed: {error}",
            remedy="The site should install the coordinator's version of rarefed.",
        ) from error
    if header.protocol != PROTOCOL:
        raise ReplyError(f"The reply speaks protocol {header.protocol}, not {PROTOCOL}.")
    groups: dict[str, Arrays] = {}
    metrics: dict[tuple[str, str], Arrays] = {}
    for name, part in _arrays_of(record).items():
        try:
            arrays = PackedArrays(part)
        except ValueError as error:
            raise ReplyError(f"The reply's arrays cannot be read: {error}.") from error
        if name.startswith("metrics/") and name.count("/") == 2:  # noqa: PLR2004 - metrics/T/S
            _, task, split = name.split("/")
            metrics[task, split] = arrays
        else:
            groups[name] = arrays
    return Reply(
        site=header.site,
        digest=header.digest,
        round=header.round,
        refusal=header.refusal,
        declaration=header.declaration,
        training=header.training,
        groups=groups,
        weights=weights,
        metrics=metrics,
        audit=audit,
    )


def head_to_part(head: Head) -> ConfigRecord:
    """Return the head of an audit log as it stands on the wire, in orders and in replies."""
    return ConfigRecord(head._asdict())


def size_in_bytes(record: RecordDict) -> int:
    """Return how many bytes of content a record carries: arrays as sent, and its text."""
    arrays = sum(len(a.data) for part in _arrays_of(record).values() for a in part.values())
    numbers = sum(8 * len(part) for part in record.values() if isinstance(part, MetricRecord))
    texts = sum(
        len(value.encode()) if isinstance(value, str) else 8
        for part in record.values()
        if isinstance(part, ConfigRecord)
        for value in part.values()
    )
    return arrays + numbers + texts


# Flower's own ``record.array_records`` and its like tie the record into a cycle, so that its
# arrays would stay in memory until Python's garbage collector comes by.
def _arrays_of(record: RecordDict) -> dict[str, ArrayRecord]:
    return {name: part for name, part in record.items() if isinstance(part, ArrayRecord)}


def _part(record: RecordDict, name: str, kind: type[Part]) -> Part:
    """Return one part of a record; KeyError where there is none of that name and kind."""
    part = record.get(name)
    if not isinstance(part, kind):
        raise KeyError(name)
    return part


def _head_of(record: RecordDict, name: str) -> Head | None:
    """Return the head in a part of a record, if it is there; a ValidationError if malformed."""
    part = record.get(name)
    if not isinstance(part, ConfigRecord):
        return None
    return Head(**_Head.model_validate(dict(part)).model_dump())


def _pack(arrays: Arrays) -> ArrayRecord:
    return (arrays if isinstance(arrays, PackedArrays) else PackedArrays.of(arrays)).record
