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

from common.arrays import Array, Arrays
from common.arrays import digest as digest_of
from common.attention import Table
from common.chained_log import Head
from common.errors import QuorumError, ReplyError
from common.layout import Layout
from common.messages import Kind, Order, Reply
from common.seals import Sealer
from common.seeds import stream
from common.study import Study
from server import history, ingress
from server.central_privacy import CARRIED, SiteNoise, make_noise
from server.checkpoint import States, StoredArrays, find_checkpoint, has_begun, save_round
from server.door import Door, enrol
from server.exchange import exchange, gather
from server.history import RoundRecord
from server.mail import Mail
from server.noisy_mean import with_noise
from server.roster import Member, declared, each_image
from server.strategies import Combiner, make_combiner
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
    """Run every round of a study and measure the model that comes out.

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
    stored = StoredArrays(done.model, layout.sent_once)
    base = Base(digest_of(stored), stored)
    noise = make_noise(study, layout, done.states)
    combiners = make_combiners(study, layout, done.states, noise)
    door = Door(study, Mail(grid, sealer), timing)
    members = enrol(door, max(sites, len(done.members)))
    outcome = Outcome(members, door.refused, history.rewind(folder, done.round), done.model)
    for number in range(done.round + 1, study.rounds + 2):
        record = play_round(number, door, layout, folder, base, combiners, noise, outcome)
        watch(record)
        _check_quorum(study, record)
    return outcome


def play_round(
    number: int,
    door: Door,
    layout: Layout,
    folder: Path,
    base: Base,
    combiners: Mapping[str, Combiner],
    noise: SiteNoise | None,
    outcome: Outcome,
) -> RoundRecord:
    """Order, send, accept, combine and record; bring the outcome up to date, return the record.

    The round after the study's last one measures the final model and trains nothing.
    """
    study = door.study
    began, last = time.monotonic(), number > study.rounds
    current = {g: StoredArrays(outcome.model, names) for g, names in layout.groups.items()}
    record = RoundRecord(number, model_round=number - 1, trained=not last)

    members, here = gather(door, outcome.members, record)
    asked = here if last else sample(study, here, number)
    orders = make_orders(study, layout, current, asked, number, base, outcome.records)
    if not last:
        begin(combiners, current, study, number, asked)
    heard = hear(door, orders, combiners, record, noise)
    record.tasks = history.task_figures(study, heard.states, heard.attention, last=last)
    path = settle(folder, study, record, combiners, base, members, began, noise)

    outcome.members, outcome.model = members, path or outcome.model
    outcome.records.append(record)
    return record


def settle(
    folder: Path,
    study: Study,
    record: RoundRecord,
    combiners: Mapping[str, Combiner],
    base: Base,
    members: Sequence[Member],
    began: float,
    noise: SiteNoise | None,
) -> Path | None:
    """Combine the replies where enough came, and write the round down; return the new model."""
    record.combined = record.trained and len(record.answered) >= study.federation.quorum
    arrays = finish(combiners, base) if record.combined else {}
    if record.combined and noise is not None:
        record.central_privacy = noise.close_round(len(record.answered))
    record.each_image, record.declared = each_image(members), declared(members)
    record.seconds["total"] = time.monotonic() - began
    history.append(folder, record)
    if not record.combined:
        return None
    carried = {group: combiner.state() for group, combiner in combiners.items()}
    if noise is not None:
        carried[CARRIED] = noise.state()
    names = tuple(member.name for member in members)
    return save_round(folder, arrays, carried, study, record.round, names)


def begin_study(study: Study, arrays: Arrays, folder: Path) -> None:
    """Write down the initial arrays; a study that has begun stays as it is.

    Raises:
        OutputError: The folder cannot be written, or holds another study.
    """
    if has_begun(folder):
        find_checkpoint(folder, study)
    else:
        save_round(folder, arrays, {}, study, 0)


def make_combiners(
    study: Study, layout: Layout, states: States, noise: SiteNoise | None
) -> dict[str, Combiner]:
    """Return each group's combiner, as it was when the last round was done."""
    federation = study.federation
    combiners = {g: with_noise(make_combiner(g, federation), noise) for g in layout.groups}
    for group, combiner in combiners.items():
        combiner.restore(states.get(group, {}), layout.groups[group])
    return combiners


def sample(study: Study, members: Sequence[Member], number: int) -> list[Member]:
    """Choose the sites of a round: the study's fraction, at least its quorum."""
    count = max(round(study.federation.fraction * len(members)), study.federation.quorum)
    if count >= len(members):
        return list(members)
    chosen = Random(stream(study.seed, "sites", number)).sample(list(members), count)
    return sorted(chosen, key=lambda member: member.name)


def make_orders(
    study: Study,
    layout: Layout,
    current: Mapping[str, Arrays],
    asked: Sequence[Member],
    number: int,
    base: Base,
    before: Sequence[RoundRecord],
) -> dict[str, tuple[Member, Order]]:
    """Write the orders of a round, by site; each countersigns the last head of its site's log."""
    heads = history.last_heads(before)
    return {
        m.name: (m, make_order(study, layout, current, m, number, base, heads.get(m.name)))
        for m in asked
    }


def make_order(
    study: Study,
    layout: Layout,
    current: Mapping[str, Arrays],
    member: Member,
    number: int,
    base: Base,
    head: Head | None,
) -> Order:
    """Write one site's order: its groups of arrays, the base where it is missing, and the head."""
    kind: Kind = "evaluate" if number > study.rounds else "train"
    groups = {group: current[group] for group in layout.groups_of(member.tasks)}
    missing = base.arrays if member.base != base.digest else None
    return Order(kind, study, number, groups, base.digest, missing, head)


def begin(
    combiners: Mapping[str, Combiner],
    current: Mapping[str, Arrays],
    study: Study,
    number: int,
    asked: Sequence[Member],
) -> None:
    """Start the round in every group, each with the weights that its sites declared."""
    for group, combiner in combiners.items():
        weights = [
            member.declaration.weight(group, study.federation.weighting)
            for member in asked
            if not group.startswith("head:") or group.removeprefix("head:") in member.tasks
        ]
        combiner.begin(number, current[group], sum(weights))


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


def accept(
    combiners: Mapping[str, Combiner], reply: Reply, record: RoundRecord, noise: SiteNoise | None
) -> None:
    """Hand an admitted reply to the combiners, and note what it says of the training."""
    record.answered.append(reply.site)
    if record.trained:
        factor = 1.0 if noise is None else noise.factor_for(reply.groups)
        for group, change in reply.groups.items():
            combiners[group].accept(reply.site, change, factor * reply.weights[group])
    if reply.training is not None:
        training = reply.training
        if record.trained:
            record.training[reply.site] = {"steps": training.steps, "loss": training.loss}
        for name, seconds in (
            ("training", training.seconds),
            ("evaluation", training.evaluation_seconds),
        ):
            record.seconds[name] = record.seconds.get(name, 0.0) + seconds


def note_head(record: RoundRecord, reply: Reply, known: Head | None) -> None:
    """Note where a site's audit log stands; the site's next order countersigns it."""
    if reply.audit is not None:
        record.audit_heads[reply.site] = reply.audit._asdict()
    if fault := ingress.head_fault(reply, known):
        record.audit_faults[reply.site] = fault


def finish(combiners: Mapping[str, Combiner], base: Base) -> dict[str, Array]:
    """Return all arrays of the next model."""
    arrays = dict(base.arrays)
    for combiner in combiners.values():
        arrays |= combiner.finish()
    return arrays


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
