"""One exchange with the sites: send the orders, hear the replies, close at the right moment."""

import time
from collections.abc import Iterator, Mapping, Sequence

from common.errors import ReplyError
from common.messages import Order, Reply
from server.door import Door
from server.history import RoundRecord
from server.mail import Arrived
from server.pending import PROBE, Pending, tend_all
from server.roster import Member, joined

Orders = Mapping[str, tuple[Member, Order]]


def exchange(door: Door, orders: Orders, record: RoundRecord) -> Iterator[tuple[Member, Reply]]:
    """Send the orders and yield replies as they come, one in memory at a time.

    The exchange closes when every site has answered, or at the study's deadline. Who stays
    silent, and whose reply is malformed, is noted in ``record``. An order that is lost with a
    machine is sent again when its site is back. Replies to earlier rounds are noted and left
    out; sites that have come since are asked to declare themselves, for the next round.
    """
    mail = door.mail
    by_node = {member.node_id: member for member, _ in orders.values()}
    pending = _send(door, orders, record)
    heard, look = set(), 0.0
    while pending and time.monotonic() < pending[min(pending)].deadline:
        for arrived in mail.pull():
            member = by_node.get(arrived.sent.node)
            waiting = pending.get(member.name) if member else None
            if arrived.sent.kind == PROBE:
                _hear_check(arrived, waiting, door, record)
            elif member is None or waiting is None or arrived.sent.round != record.round:
                _note_late(arrived, member, record)
            elif arrived.lost and waiting.note_lost():
                continue
            else:
                del pending[member.name]
                heard.add(member.name)
                record.bytes[member.name]["up"] = arrived.size
                yield from _sorted_out(arrived, member, record)
            del arrived  # or it would stay in memory until the next one has come
        for name, size in tend_all(pending.values(), mail).items():
            record.resent.append(name)
            record.bytes[name]["down"] += size
        if door.timing.sites_return and time.monotonic() >= look:
            look = time.monotonic() + door.timing.resend_s
            door.ask(mail.present())
        if pending:
            mail.wait()
    record.answered.sort()
    record.silent = sorted(set(orders) - heard)


def _send(door: Door, orders: Orders, record: RoundRecord) -> dict[str, Pending]:
    """Send the orders; return those that Flower took, by site."""
    deadline_s = door.study.federation.deadline_s
    deadline = time.monotonic() + deadline_s
    pending = {
        name: Pending(member, order, door.timing, deadline)
        for name, (member, order) in sorted(orders.items())
    }
    record.asked = list(pending)
    letters = [one.letter() for one in pending.values()]
    sizes = door.mail.push(letters, lifetime=deadline_s)
    for name, one in pending.items():
        record.bytes[name] = {"down": sizes[one.member.node_id], "up": 0}
    return {name: one for name, one in pending.items() if one.is_under_way(door.mail)}


def _hear_check(arrived: Arrived, waiting: Pending | None, door: Door, record: RoundRecord) -> None:
    """Take the declaration of a newcomer, or the answer of a site whose order may be lost."""
    if arrived.sent.round == 0:
        door.hear(arrived)
    elif waiting is not None and arrived.sent.round == record.round:
        waiting.hear_probe(arrived)


def _sorted_out(
    arrived: Arrived, member: Member, record: RoundRecord
) -> Iterator[tuple[Member, Reply]]:
    """Yield a reply that can be read; note what was wrong with another."""
    if isinstance(arrived.reply, ReplyError):
        record.refused[member.name] = arrived.reply.message
        member.base = ""
    else:
        yield member, arrived.reply


def _note_late(arrived: Arrived, member: Member | None, record: RoundRecord) -> None:
    """Note a reply that comes after its round has closed; an order that expired is none."""
    if not arrived.lost:
        record.late.append(member.name if member else f"node {arrived.sent.node}")


def gather(
    door: Door, members: Sequence[Member], record: RoundRecord
) -> tuple[list[Member], list[Member]]:
    """Take up the sites that have come, and wait a while for a member that has just gone.

    A member that did not come back in time is away: nobody waits for it again until it is back.
    Where fewer than the quorum are there, they are waited for until the study's deadline.

    Returns:
        All members, and those of them that are connected.
    """
    began, federation = time.monotonic(), door.study.federation
    while True:
        newcomers = door.newcomers()
        record.joined += [member.name for member in newcomers]
        door.give_places(newcomers)
        members = joined(members, newcomers)
        present = door.mail.present()
        here = [member for member in members if member.node_id in present]
        missed = [m for m in members if m.node_id not in present and not m.away]
        passed = time.monotonic() - began
        enough = len(here) >= federation.quorum
        waited = passed >= door.timing.gather_s or not missed
        if (enough and waited) or passed >= federation.deadline_s:
            for member in members:
                member.away = member.node_id not in present
            return list(members), here
        _listen(door, members, present, record)


def _listen(
    door: Door, members: Sequence[Member], present: Mapping[int, str], record: RoundRecord
) -> None:
    """Between two rounds, let sites in and leave late replies out."""
    by_node = {member.node_id: member for member in members}
    if door.timing.sites_return:
        door.ask(present)
    for arrived in door.mail.pull():
        if arrived.sent.kind == PROBE:
            _hear_check(arrived, None, door, record)
        else:
            _note_late(arrived, by_node.get(arrived.sent.node), record)
    door.mail.wait()
