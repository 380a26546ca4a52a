"""The study, told once from top to bottom: enrol, then order, send, accept, combine, record.

This is our own loop over Flower's ``Grid``; the mathematics is in ``server/strategies.py``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from flwr.serverapp import Grid

from common.arrays import Arrays
from common.arrays import digest as digest_of
from common.attention import Table
from common.chained_log import Head
from common.errors import QuorumError, ReplyError
from common.layout import Layout
from common.messages import MOST_LOWERED, Kind, Order, Reply
from common.seals import Sealer
from common.seeds import stream
from common.study import Study
from server import endings, history, ingress, scores, votes
from server.central_privacy import CARRIED, SiteNoise, make_noise
from server.checkpoint import find_checkpoint, has_begun, save_round, stored_base
from server.combining import accept, begin, finish, make_combiners
from server.door import Door, enrol
from server.endings import Turn
from server.exchange import exchange, gather
from server.history import RoundRecord
from server.mail import Mail
from server.roster import Member, declared, each_image
from server.stored_arrays import StoredArrays
from server.strategies import Combiner
from server.timing import AT_ONCE, Timing

Watch = Callable[[RoundRecord], None]


@dataclass
class Outcome:
    """What a study left behind."""

    members: Sequence[Member]
    refused: Mapping[str, str]
    """Why a site that answered does not take part, by site."""
    records: list[RoundRecord] = field(default_factory=list)
    model: Path = Path()


class Base(NamedTuple):
    """Arrays that a site is sent once, and their digest."""

    digest: str
    arrays: Arrays
    kept: Arrays
    """Those of them that every model has."""


class Desk(NamedTuple):
    """What the coordinator works with in every round."""

    door: Door
    layout: Layout
    folder: Path
    base: Base
    combiners: Mapping[str, Combiner]
    noise: SiteNoise | None


class Heard(NamedTuple):
    """What the sites said in an exchange, by site, beside what they trained."""

    states: dict[str, ingress.States]
    attention: dict[str, dict[str, Table]]


def run_study(
    study: Study,
    grid: Grid,
    layout: Layout,
    folder: Path,
    *,
    sites: int,
    watch: Watch,
    timing: Timing = AT_ONCE,
    sealer: Sealer | None = None,
) -> Outcome:
    """Run the rounds of a study and measure the model that comes out.

    The folder holds the study since ``begin_study``, with all rounds that are done; the rounds
    go on from there.

    Args:
        study: What was agreed.
        grid: Flower's way to the sites.
        layout: How the network's arrays are divided.
        folder: Where the model and the history are read and written.
        sites: How many sites are expected; enrolment waits for them until the deadline.
        watch: Called with the record of each round once it is on disk.
        timing: How long to wait for sites that come and go.
        sealer: Seals each order for its site.

    Raises:
        QuorumError: Too few sites enrolled, or too few usable replies came in a round; model
            and history up to then are on disk.
        TaskWithoutSiteError: A task has no site.
        OutputError: The folder cannot be written, or does not hold the study.
        StudyError: The network cannot have the study's central privacy.
    """
    done = find_checkpoint(folder, study)
    sent, kept = stored_base(folder, done.model, layout), StoredArrays(done.model, layout.sent_once)
    base = Base(digest_of(sent), sent, kept)
    noise = make_noise(study, layout, done.states)
    combiners = make_combiners(study, layout, done.states, noise)
    door = Door(study, Mail(grid, sealer), timing, places=list(done.places))
    desk = Desk(door, layout, folder, base, combiners, noise)
    members = enrol(door, max(sites, len(done.members)))
    outcome = Outcome(members, door.refused, history.rewind(folder, done.round), done.model)
    for turn in endings.turns(folder, study, layout, done, outcome.records):
        record = play_round(turn, desk, outcome)
        watch(record)
        _check_quorum(study, record)
    return outcome


def play_round(turn: Turn, desk: Desk, outcome: Outcome) -> RoundRecord:
    """Order, send, accept, combine and record; bring the outcome up to date, return the record.

    A last turn measures a model that the study may end with, and trains nothing.
    """
    door, study, before = desk.door, desk.door.study, outcome.records
    began, record = time.monotonic(), open_record(turn, desk, before)
    current = {g: StoredArrays(outcome.model, names) for g, names in desk.layout.groups.items()}

    members, here = gather(door, outcome.members, record)
    asked = here if turn.last else sample(study, here, turn.number)
    orders = make_orders(desk, current, asked, record, before)
    if not turn.last:
        begin(desk.combiners, current, study, turn.number, asked)
    heard = hear(door, orders, desk.combiners, record, desk.noise)
    record.tasks = history.task_figures(study, heard.states, heard.attention, last=turn.last)
    record.score = scores.score_of(study, record.tasks)
    if turn.last:
        votes.note(record, study, heard.states, current)
    path = settle(desk, record, members, began, before)

    outcome.members, outcome.model = members, path or outcome.model
    outcome.records.append(record)
    return record


def open_record(turn: Turn, desk: Desk, before: Sequence[RoundRecord]) -> RoundRecord:
    """Return the record of an exchange that begins, with what the rounds before decide of it."""
    study = desk.door.study
    record = RoundRecord(turn.number, turn.model_round, trained=not turn.last)
    record.averaged = list(turn.averaged)
    if turn.last:
        record.stopped = endings.stopped(study, desk.layout, before)
    else:
        record.lowered = min(scores.times_lowered(study, before), MOST_LOWERED)
    return record


def settle(
    desk: Desk,
    record: RoundRecord,
    members: Sequence[Member],
    began: float,
    before: Sequence[RoundRecord],
) -> Path | None:
    """Combine the replies where enough came, and write the round down; return the new model."""
    study, folder, noise = desk.door.study, desk.folder, desk.noise
    record.combined = record.trained and len(record.answered) >= study.federation.quorum
    arrays = finish(desk.combiners, desk.base.kept) if record.combined else {}
    if record.combined and noise is not None:
        record.central_privacy = noise.close_round(len(record.answered))
    record.each_image, record.declared = each_image(members), declared(members)
    record.seconds["total"] = time.monotonic() - began
    history.append(folder, record)
    if not record.combined:
        return None
    carried = {group: combiner.state() for group, combiner in desk.combiners.items()}
    if noise is not None:
        carried[CARRIED] = noise.state()
    wanted = endings.wanted(study, [*before, record], record.round)
    endings.keep(folder, wanted, record.model_round)
    names = tuple(member.name for member in members)
    places = tuple(desk.door.places)
    path = save_round(folder, arrays, carried, study, record.round, names, places)
    endings.forget(folder, wanted)
    return path


def begin_study(study: Study, arrays: Arrays, folder: Path) -> None:
    """Write down the initial arrays; a study that has begun stays as it is.

    Raises:
        OutputError: The folder cannot be written, or holds another study.
    """
    if has_begun(folder):
        find_checkpoint(folder, study)
    else:
        save_round(folder, arrays, {}, study, 0)


def sample(study: Study, members: Sequence[Member], number: int) -> list[Member]:
    """Choose the sites of a round: the study's fraction, at least its quorum."""
    count = max(round(study.federation.fraction * len(members)), study.federation.quorum)
    if count >= len(members):
        return list(members)
    chosen = Random(stream(study.seed, "sites", number)).sample(list(members), count)
    return sorted(chosen, key=lambda member: member.name)


def make_orders(
    desk: Desk,
    current: Mapping[str, Arrays],
    asked: Sequence[Member],
    record: RoundRecord,
    before: Sequence[RoundRecord],
) -> dict[str, tuple[Member, Order]]:
    """Write the orders of a round, by site; each countersigns the last head of its site's log."""
    kind: Kind = "train" if record.trained else "evaluate"
    order = Order(kind, desk.door.study, record.round, {}, desk.base.digest, None)
    if record.model_round != record.round - 1:
        order = order._replace(model_round=record.model_round)
    order = order._replace(lowered=record.lowered)
    heads = history.last_heads(before)
    return {m.name: (m, address(order, desk, current, m, heads.get(m.name))) for m in asked}


def address(
    order: Order, desk: Desk, current: Mapping[str, Arrays], member: Member, head: Head | None
) -> Order:
    """Make an order one site's: its arrays, the base where it is missing, its head, its number."""
    named = desk.layout.groups_of(member.tasks, trained=order.kind == "train")
    groups = {group: current[group] for group in named}
    missing = desk.base.arrays if member.base != desk.base.digest else None
    if order.kind == "train" and desk.door.places:
        order = order._replace(place=desk.door.places.index(member.name))
    return order._replace(groups=groups, base=missing, countersigned=head)


def hear(
    door: Door,
    orders: Mapping[str, tuple[Member, Order]],
    combiners: Mapping[str, Combiner],
    record: RoundRecord,
    noise: SiteNoise | None,
) -> Heard:
    """Send the orders, fold in each reply that may be used, and return the sites' figures."""
    heard = Heard({}, {})
    for member, reply in exchange(door, orders, record):
        order = orders[member.name][1]
        try:
            heard.states[member.name] = ingress.admit(reply, order, member)
        except ReplyError as error:
            record.refused[member.name] = reply.refusal or error.message
            member.base = ""  # whatever is wrong there, the next order brings all arrays
            if not reply.refusal:
                door.ask_again(member.node_id)
        else:
            member.base = order.base_digest
            heard.attention[member.name] = ingress.attention_of(reply)
            note_head(record, reply, order.countersigned)
            accept(combiners, reply, record, noise)
        del reply  # or it would stay in memory until the next one has come
    return heard


def note_head(record: RoundRecord, reply: Reply, known: Head | None) -> None:
    """Note where a site's audit log stands; the site's next order countersigns it."""
    if reply.audit is not None:
        record.audit_heads[reply.site] = reply.audit._asdict()
    if fault := ingress.head_fault(reply, known):
        record.audit_faults[reply.site] = fault


def _check_quorum(study: Study, record: RoundRecord) -> None:
    if len(record.answered) >= study.federation.quorum:
        return
    refused = "".join(f"\n  - {site}: {why}" for site, why in sorted(record.refused.items()))
    silent = f" Silent: {', '.join(record.silent)}." if record.silent else ""
    raise QuorumError(
        f"Round {record.round}: {len(record.answered)} usable replies, but the quorum is "
        f"{study.federation.quorum}.{silent}{refused}",
        remedy="The model of the round before is kept. See what the sites' own logs say.",
    )
