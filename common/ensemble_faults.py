"""What can be wrong with the members of an ensemble, in a study's raw values."""

from collections.abc import Iterator
from typing import Any

from common.backbones import raw_members, values_of_members
from common.faults import Fault, table


def ensemble_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with an ensemble as such."""
    members = raw_members(values)
    if len(members) == 1:
        yield Fault("ensemble", "one network is no ensemble", "give two or more, or leave it out")
    backbone = table(values, "backbone")
    file = backbone.get("weights")
    has_file = isinstance(file, str) and file not in ("pretrained", "none")
    seen: dict[tuple[Any, ...], int] = {}
    for number, (member, alone) in enumerate(zip(members, values_of_members(values), strict=False)):
        renamed = member.get("name", backbone.get("name")) != backbone.get("name")
        if has_file and renamed and member.get("weights") is None:
            what = "backbone.weights is the file of another network"
            yield Fault(f"ensemble.{number}.weights", what, "give this member weights of its own")
        own = table(alone, "backbone")
        begins = tuple(str(v) for v in (own.get("name"), own.get("weights"), alone.get("seed")))
        first = seen.setdefault(begins, number)
        if first != number:
            what = f"it begins as ensemble.{first} does, and would stay the same"
            yield Fault(f"ensemble.{number}.seed", what, "give it another seed")
    yield from _votes_faults(values)


def _votes_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield why members could not vote by their validation scores."""
    federation, where = table(values, "federation"), "federation.votes"
    if federation.get("votes", "equal") != "validation":
        return
    if not values.get("ensemble"):
        yield Fault(where, "one network alone has no members", "leave it out, or add an ensemble")
    if federation.get("personal", "none") == "head":
        what = "each site keeps its own heads, which no score of all sites is of"
        yield Fault(where, what, "leave it out, or share the heads")


def at_member(fault: Fault, values: dict[str, Any], number: int) -> Fault:
    """Return a fault that a member's study would have by itself, at the key that it stems from.

    Args:
        fault: What is wrong with it.
        values: The study's raw values.
        number: Which member, from 0.
    """
    members = raw_members(values)
    key = fault.where.removeprefix("backbone.")
    stems = key != fault.where and number < len(members) and members[number].get(key) is not None
    return fault._replace(where=f"ensemble.{number}.{key}") if stems else fault
