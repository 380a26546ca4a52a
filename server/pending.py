"""Orders whose answers are missing, and what is done about those that were lost.

An order is lost for certain when Flower says so: its site went away with it, or the process that
carried it. A reply may also get lost without a word, when the line breaks while a site uploads
it. To find out, the site is asked for its declaration, in a few bytes: a site works on one message
after the other, so where it answers that, it has done with the order. To send an order twice
costs a download, and never a second training: the site keeps its reply.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.messages import Kind, Order
from server.mail import Arrived, Letter, Mail
from server.roster import Member
from server.timing import Timing


@dataclass
class Pending:
    """One order on its way.

    Args:
        member: Whom it is for.
        order: What is sent, and sent again.
        timing: How long to wait for what.
        deadline: When the round closes, by the monotonic clock.
    """

    member: Member
    order: Order
    timing: Timing
    deadline: float

    def __post_init__(self) -> None:
        self._left = self.timing.resends
        self._resend_at = math.inf
        self._ask_at = math.inf
        self._sent()

    def letter(self) -> Letter:
        """Return the order as it is sent."""
        return Letter(self.member.node_id, self.member.name, self.order)

    def is_under_way(self, mail: Mail) -> bool:
        """Tell whether Flower has the order."""
        return self.member.node_id in mail.under_way(self.order.kind, self.order.round)

    def note_lost(self) -> bool:
        """Plan to send the order again; False when that was done often enough."""
        self._left -= 1
        self._resend_at = time.monotonic() + self.timing.resend_s
        self._ask_at = math.inf
        return self._left >= 0

    def hear_probe(self, arrived: Arrived) -> None:
        """Take the answer to the question whether the order was lost."""
        if arrived.lost:  # nobody has looked at the question yet: the site is at work, or away
            self._ask_at = time.monotonic() + self.timing.probe_s
        elif self._left > 0 and self._resend_at == math.inf:
            self.note_lost()

    def tend(self, mail: Mail, present: Mapping[int, str]) -> int:
        """Do what is due, where the site is there; return the bytes of an order sent again."""
        now = time.monotonic()
        if self.member.node_id not in present:
            return 0
        if now >= self._resend_at:
            sizes = mail.push([self.letter()], lifetime=max(self.deadline - now, 1.0))
            if self.is_under_way(mail):
                self._sent()
                return sizes[self.member.node_id]
            self.note_lost()  # Flower could not take it
        elif now >= self._ask_at:
            self._ask_at = math.inf  # until the question is answered or has expired
            probe = Order(PROBE, self.order.study, self.order.round, {}, "", None)
            letter = Letter(self.member.node_id, self.member.name, probe)
            mail.push([letter], lifetime=2 * self.timing.probe_s)
        return 0

    def is_due(self) -> bool:
        """Tell whether ``tend`` has something to do."""
        return time.monotonic() >= min(self._resend_at, self._ask_at)

    def _sent(self) -> None:
        self._resend_at = math.inf
        self._ask_at = math.inf
        if self.timing.sites_return:
            self._ask_at = time.monotonic() + self.timing.probe_s


PROBE: Kind = "check"
"""What a site is asked to find out whether it has done with an order; it is numbered as the
round, where a check before the first round is numbered 0."""


def tend_all(pending: Iterable[Pending], mail: Mail) -> dict[str, int]:
    """Do what is due for each order; return the bytes of those sent again, by site."""
    due = [one for one in pending if one.is_due()]
    if not due:
        return {}
    present = mail.present()
    sent = {one.member.name: one.tend(mail, present) for one in due}
    return {name: size for name, size in sent.items() if size}
