"""Who takes part: each site declares itself before its first round."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.errors import ReplyError
from common.messages import Order
from common.study import Study
from server.mail import Arrived, Letter, Mail
from server.roster import Member, check_roster
from server.timing import Timing


@dataclass
class Door:
    """Lets sites in, at the beginning and between rounds.

    Args:
        study: What is to be trained.
        mail: The way to the sites.
        timing: How long to wait for whom.
    """

    study: Study
    mail: Mail
    timing: Timing
    joined: list[Member] = field(default_factory=list)
    """Sites that have declared themselves and that no round has taken up yet."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why a site that answered does not take part, by site."""
    places: list[str] = field(default_factory=list)
    """All sites that ever took part, in the order in which they joined, where the study numbers
    them: it tells no more of them apart than it says."""
    _asked: dict[int, float] = field(default_factory=dict)
    """When a node was last asked to declare itself."""
    _names: dict[int, str] = field(default_factory=dict)
    _let_in: set[str] = field(default_factory=set)
    _inside: set[int] = field(default_factory=set)
    """Nodes that have joined; they are not asked again, whether or not a round asks them."""

    def ask(self, present: Mapping[int, str]) -> None:
        """Ask nodes that have not joined to declare themselves, each once in a while.

        Also one that was asked and is silent: Flower's SuperNode can keep a reply back until
        the next message comes, namely when the reply to an earlier run came in between.
        """
        now = time.monotonic()
        due = [node for node in sorted(set(present) - self._inside) if self._is_due(node, now)]
        if not due:
            return
        order = Order("check", self.study, 0, {}, "", None)
        self._names.update(present)
        self._asked.update(dict.fromkeys(due, now))
        letters = [Letter(node, present[node], order) for node in due]
        # A question that nobody fetched is void by the time it has been asked twice more.
        lifetime = 2 * self.timing.recheck_s if self.timing.sites_return else 0.0
        self.mail.push(letters, lifetime=lifetime or self.study.federation.deadline_s)

    def _is_due(self, node: int, now: float) -> bool:
        if node not in self._asked:
            return True
        return self.timing.sites_return and now - self._asked[node] >= self.timing.recheck_s

    def hear(self, arrived: Arrived) -> None:
        """Take a site's declaration, or note why it does not take part."""
        node, reply = arrived.sent.node, arrived.reply
        if node in self._inside or arrived.lost:
            return  # a second answer, or a question that has expired; it is asked again
        name = self._names.get(node, "")
        if isinstance(reply, ReplyError):
            self.refused[name or f"node {node}"] = reply.message
            return
        who = name or reply.site
        if self.mail.seals and not name:
            self.refused[f"node {node}"] = "it was not enrolled under a name"
        elif name and reply.site != name:
            self.refused[who] = "it answers under another site's name"
        elif reply.refusal or reply.declaration is None:
            self.refused[who] = reply.refusal or "no declaration"
        elif reply.digest != self.study.digest() or not (
            set(reply.declaration.each_image)
            <= set(reply.declaration.tasks)
            <= set(self.study.tasks)
        ):
            self.refused[who] = "it answers for another study"
        elif not reply.declaration.tasks:
            self.refused[who] = "it has none of the study's tasks"
        elif self._is_full_for(reply.site):
            self.refused[who] = "the study tells no more sites apart (training.adversarial_sites)"
        else:
            self.refused.pop(who, None)
            declared = reply.declaration
            self.joined.append(Member(node, reply.site, declared, declared.base))
            self._inside.add(node)
            self._let_in.add(reply.site)

    def _is_full_for(self, site: str) -> bool:
        """Say whether a study that has begun has no number left for a site."""
        most, known = self.study.training.adversarial_sites, {*self.places, *self._let_in}
        return most is not None and bool(self.places) and site not in known and len(known) >= most

    def give_places(self, members: Sequence[Member]) -> None:
        """Number those sites that have no number yet, where the study numbers its sites."""
        if self.study.training.aligns:
            self.places += sorted({member.name for member in members} - set(self.places))

    def ask_again(self, node: int) -> None:
        """Have a site declare itself anew, as what it answers is not what it had declared."""
        self._inside.discard(node)

    def newcomers(self) -> list[Member]:
        """Return those who have joined since the last call."""
        joined, self.joined = self.joined, []
        return joined


def enrol(door: Door, sites: int) -> list[Member]:
    """Ask every site what it holds, and check that the study can begin with the answers.

    It ends when all expected sites have joined; or, where sites may still come or change their
    mind, when the time to gather has passed and the study can begin; or when nobody else will
    come and all have answered; or at the study's deadline.

    Args:
        door: Where the sites come in.
        sites: How many are expected.

    Returns:
        The sites that take part, by name.

    Raises:
        FederationError: The study cannot begin; see ``check_roster``.
    """
    began = time.monotonic()
    members: list[Member] = []
    while True:
        passed = time.monotonic() - began
        present = door.mail.present()
        # Where nobody comes later, all are asked together, when all are there.
        if (
            door.timing.sites_return
            or len(present) >= sites
            or passed >= door.study.federation.deadline_s
        ):
            door.ask(present)
        for arrived in door.mail.pull():
            if arrived.sent.kind == "check" and arrived.sent.round == 0:
                door.hear(arrived)
        members += door.newcomers()
        if _complete(door, members, sites, len(present), passed):
            break
        door.mail.wait()
    check_roster(door.study, members, door.refused)
    door.give_places(members)
    return sorted(members, key=lambda member: member.name)


def _complete(door: Door, members: list[Member], sites: int, present: int, passed: float) -> bool:
    federation = door.study.federation
    if len(members) >= sites:
        return True
    had = {task for member in members for task in member.tasks}
    can_begin = len(members) >= federation.quorum and had >= set(door.study.tasks)
    if door.timing.sites_return and can_begin and passed >= door.timing.gather_s:
        return True
    if door.mail.under_way("check", 0):
        return passed >= 2 * federation.deadline_s  # a deadline to come, and one to answer
    if passed >= federation.deadline_s:
        return True
    return not door.timing.sites_return and present >= sites
