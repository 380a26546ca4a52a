"""What no single key of ``[evaluation]`` shows to be wrong."""

from collections.abc import Iterator
from typing import Any

from common.classical_names import Way
from common.faults import Fault, table


def evaluation_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield which keys of ``[evaluation]`` contradict each other, or the rest of the study."""
    yield from _adaptation_faults(values)
    yield from _classical_faults(values)


def _adaptation_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield why no statistics of batch normalisation could be re-estimated."""
    if table(values, "evaluation").get("normalisation") != "adapted":
        return
    where = "evaluation.normalisation"
    if table(values, "backbone").get("normalisation") == "frozen":
        what = "frozen batch normalisation has the statistics of the beginning"
        yield Fault(where, what, "use backbone.normalisation = 'average' or 'local'")
    elif table(values, "training").get("train") == "head":
        what = "a frozen backbone has the statistics of the beginning"
        yield Fault(where, what, "let a part of the backbone train, or leave it out")


def _classical_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield why not all of the ways could be fitted, or stand beside one another."""
    where, given = "evaluation.classical", table(values, "evaluation").get("classical")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    if len(set(names)) < len(names):
        yield Fault(where, "a way is named twice", "name each way once")
    blind = [way for way in Way if way.looks_at_backbone and way in names]
    if blind and table(values, "backbone").get("weights") == "none":
        what = f"{', '.join(blind)} would look at a random backbone, whose features tell nothing"
        remedy = f"use {Way.HANDCRAFTED_SVM} or {Way.HANDCRAFTED_FOREST}, or pretrained weights"
        yield Fault(where, what, remedy)
