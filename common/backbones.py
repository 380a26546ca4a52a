"""The tables ``[backbone]`` and ``[[ensemble]]`` of a study: one network, or several that vote."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from common.faults import table
from common.section import Positive, Section

MOST_MEMBERS = 10
"""Networks of an ensemble: each round sends and trains all of them."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
_OWN = ("name", "weights", "sha256")


class Backbone(Section):
    """The network that all tasks share, and where its weights begin."""

    name: Annotated[str, Field(min_length=1)]
    """Any classifier that timm knows."""
    weights: Annotated[str, Field(min_length=1)] = "pretrained"
    """``pretrained`` (through timm), ``none`` (random) or the path of a safetensors file."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """What the weights file must be, byte for byte."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    """Height and width of the network's input, in pixels."""
    normalisation: Literal["average", "local", "frozen"] = "average"
    """What happens to batch normalisation: averaged like any weight, kept at each site (FedBN),
    or frozen at the initial values."""
    mean: tuple[float, float, float] | None = None
    """Mean of each colour channel that the weights expect; the backbone's own by default."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of each colour channel; the backbone's own by default."""

    @property
    def weights_file(self) -> Path | None:
        """The safetensors file of the initial weights, if there is one."""
        return None if self.weights in ("pretrained", "none") else Path(self.weights)


class Member(Section):
    """One network of an ensemble; what it leaves out is as ``[backbone]`` has it."""

    name: Annotated[str, Field(min_length=1)] | None = None
    weights: Annotated[str, Field(min_length=1)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    seed: Seed | None = None
    """Whence its initial heads and random weights come; the study's plus its place by default."""

    def backbone(self, shared: Backbone) -> Backbone:
        """Return the backbone of this member, of which ``shared`` says the rest."""
        own = self.model_dump(include=set(_OWN), exclude_none=True)
        return shared.model_copy(update=_digest_apart(own))

    def seed_at(self, number: int, seed: int) -> int:
        """Return its seed as member ``number``, from 0, of a study with the seed ``seed``."""
        return (seed + number) % 2**31 if self.seed is None else self.seed


def values_of_members(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a study's raw values as each member would have them by itself.

    Without an ensemble these are the study's own.
    """
    return [_alone(values, n, member) for n, member in enumerate(raw_members(values))] or [values]


def raw_members(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of the members in a study's raw values, as far as they are tables."""
    listed = values.get("ensemble")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _alone(values: dict[str, Any], number: int, member: dict[str, Any]) -> dict[str, Any]:
    own = {key: member[key] for key in _OWN if member.get(key) is not None}
    shared, seed = values.get("seed", 0), member.get("seed")
    if seed is None and isinstance(shared, int):
        seed = Member().seed_at(number, shared)
    return values | {"backbone": table(values, "backbone") | _digest_apart(own), "seed": seed}


def _digest_apart(own: dict[str, Any]) -> dict[str, Any]:
    """A digest of the study's weights file says nothing of a member's own."""
    return {"sha256": None, **own} if "weights" in own else own
