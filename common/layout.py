"""Which arrays of the network travel: their names, by what happens to them.

Every entry of the network's state belongs to exactly one kind:

- the group ``shared``: trained parts of the backbone, averaged over all sites;
- the group ``statistics``: running means and variances of batch normalisation, likewise. They
  are a group of their own because they are measured, not trained: a server's optimizer that
  stepped along their change could make a variance negative;
- the group ``sites``: the discriminator that tells sites apart, likewise, of a study that has one;
- the groups ``head:TASK``: one task's head, averaged over the sites that have the task;
- the groups ``votes:TASK``: what each member of an ensemble weighs in a task, of a study that finds
  it by their validation scores. No site trains it: orders to train do not have it, replies never;
- ``local``: batch normalisation that each site keeps to itself (FedBN, Li et al. 2021), and
  personal heads (FedPer, Arivazhagan et al. 2019), whose groups are then empty;
- ``base``: all the rest, frozen weights and counters among it. The coordinator sends it once to
  a site that does not have it yet, and it never travels again.

Integer buffers (batch norm's step counter, index tables) are always ``base``: an average of
counters means nothing.

A study that holds its backbone near the initial one has those arrays a second time, as they were
at first: they are sent once with the base, under the names of ``initial_name``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from common.arrays import Array, Arrays

SHARED = "shared"
STATISTICS = "statistics"
SITES = "sites"
BACKBONE = "backbone."
"""Before the name of each array of the backbone in the network's state."""
DISCRIMINATOR = "discriminator."
"""Before the name of each array of what tells sites apart."""
INITIAL = "initial:"
"""Before the name of an array that is sent as it was at the study's beginning."""


def head_group(task: str) -> str:
    """Return the name of the group that holds one task's head."""
    return f"head:{task}"


def votes_group(task: str) -> str:
    """Return the name of the group that holds what the members of an ensemble weigh in a task."""
    return f"votes:{task}"


def votes_name(task: str) -> str:
    """Return the name of the one array in that group."""
    return f"heads.{task}.votes"


def initial_name(name: str) -> str:
    """Return the name under which an array is sent as it was at the study's beginning."""
    return f"{INITIAL}{name}"


@dataclass(frozen=True)
class Layout:
    """Names of the network's arrays, by what happens to them."""

    groups: Mapping[str, tuple[str, ...]]
    """Arrays that travel, by group; a group may be empty."""
    local: tuple[str, ...]
    """Arrays that stay at their site once it has the first ones."""
    base: tuple[str, ...]
    """Arrays that never change, or count."""
    initial: tuple[str, ...] = ()
    """Arrays of the backbone that travel each round, and whose initial values sites keep beside;
    none where the study's objective does not ask for them."""
    stages: int = 0
    """How many stages the backbone has, where the study unfreezes one after the other; else 0."""

    def groups_of(self, tasks: Iterable[str], *, trained: bool = True) -> tuple[str, ...]:
        """Return the groups that an order has for a site with these tasks, without empty ones.

        Args:
            tasks: The site's.
            trained: Whether the order is to train; the members' votes are no part of that.
        """
        tasks = tuple(tasks)
        wanted = [SHARED, STATISTICS, SITES, *(head_group(task) for task in tasks)]
        wanted += () if trained else (votes_group(task) for task in tasks)
        return tuple(name for name in wanted if self.groups.get(name))

    @property
    def sent_once(self) -> tuple[str, ...]:
        """Arrays of the network that a site gets one time: the base, and the first local ones."""
        return (*self.base, *self.local)

    @property
    def names_sent_once(self) -> tuple[str, ...]:
        """Names under which all that a site gets one time is sent."""
        return (*self.sent_once, *(initial_name(name) for name in self.initial))

    def to_plain(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        plain = asdict(self)
        if not self.initial:
            del plain["initial"]
        if not self.stages:
            del plain["stages"]
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Undo ``to_plain``, also after it went through JSON.

        Raises:
            KeyError, TypeError, ValueError: It is no layout.
        """
        groups = {str(group): _names(names) for group, names in dict(plain["groups"]).items()}
        initial = _names(plain.get("initial", ()))
        stages = int(plain.get("stages", 0))
        return cls(groups, _names(plain["local"]), _names(plain["base"]), initial, stages)


def arrays_sent_once(arrays: Arrays, layout: Layout) -> dict[str, Array]:
    """Return what a site is sent one time, out of all arrays of the study's first network."""
    again = {initial_name(name): arrays[name] for name in layout.initial}
    return {name: arrays[name] for name in layout.sent_once} | again


def split_sent_once(sent: Arrays, layout: Layout) -> tuple[dict[str, Array], dict[str, Array]]:
    """Undo ``arrays_sent_once``: return what belongs into the network, and the initial backbone.

    The latter is every array of the backbone as it was at first, by its name in the network; none
    where the layout says so.

    Raises:
        ValueError: Other initial arrays came than the layout says.
    """
    own = {name: sent[name] for name in sent if not name.startswith(INITIAL)}
    again = {name.removeprefix(INITIAL): sent[name] for name in sent if name not in own}
    if set(again) != set(layout.initial):
        raise ValueError("other initial arrays than the study asks for")
    backbone = {name: own[name] for name in own if name.startswith(BACKBONE)}
    return own, backbone | again if again else {}


def without_discriminator(arrays: Arrays) -> dict[str, Array]:
    """Return a network's arrays without those that tell sites apart: training alone needs them."""
    return {name: arrays[name] for name in arrays if not name.startswith(DISCRIMINATOR)}


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(name, str) for name in values):
        raise TypeError("no list of names")
    return tuple(values)
