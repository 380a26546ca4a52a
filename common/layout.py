"""Which arrays of the network travel: their names, by what happens to them.

Every entry of the network's state belongs to exactly one kind:

- the group ``shared``: trained parts of the backbone, averaged over all sites;
- the group ``statistics``: running means and variances of batch normalisation, likewise. They
  are a group of their own because they are measured, not trained: a server's optimizer that
  stepped along their change could make a variance negative;
- the groups ``head:TASK``: one task's head, averaged over the sites that have the task;
- ``local``: batch normalisation that each site keeps to itself (FedBN, Li et al. 2021);
- ``base``: all the rest, frozen weights and counters among it. The coordinator sends it once to
  a site that does not have it yet, and it never travels again.

Integer buffers (batch norm's step counter, index tables) are always ``base``: an average of
counters means nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

SHARED = "shared"
STATISTICS = "statistics"


def head_group(task: str) -> str:
    """Return the name of the group that holds one task's head."""
    return f"head:{task}"


@dataclass(frozen=True)
class Layout:
    """Names of the network's arrays, by what happens to them."""

    groups: Mapping[str, tuple[str, ...]]
    """Arrays that travel each round, by group; a group may be empty."""
    local: tuple[str, ...]
    """Arrays that stay at their site once it has the first ones."""
    base: tuple[str, ...]
    """Arrays that never change, or count."""

    def groups_of(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """Return the groups that concern a site with these tasks, without empty ones."""
        wanted = [SHARED, STATISTICS, *(head_group(task) for task in tasks)]
        return tuple(name for name in wanted if self.groups.get(name))

    @property
    def sent_once(self) -> tuple[str, ...]:
        """Arrays that a site gets one time: the base, and where its local ones begin."""
        return (*self.base, *self.local)

    def to_plain(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Undo ``to_plain``, also after it went through JSON.

        Raises:
            KeyError, TypeError, ValueError: It is no layout.
        """
        groups = {str(group): _names(names) for group, names in dict(plain["groups"]).items()}
        return cls(groups, _names(plain["local"]), _names(plain["base"]))


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(name, str) for name in values):
        raise TypeError("no list of names")
    return tuple(values)
