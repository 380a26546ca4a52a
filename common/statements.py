"""What a site says of itself: how much it holds, and how a training went, in sums."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 10**9
"""No hospital has more patients, and no study more rounds; larger numbers are no numbers."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]

ROUNDED_TO = 5
"""What a site rounds its numbers to that does not state them exactly."""


def rounded(count: int) -> int:
    """Return the nearest multiple of ``ROUNDED_TO``; what is not none stays above none."""
    return ROUNDED_TO * max(min(count, 1), (count + ROUNDED_TO // 2) // ROUNDED_TO)


class Form(BaseModel):
    """Something that travels as JSON: typed, unknown keys refused, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Counted(Form):
    """How much of one split of one task a site holds, as it states it: exact or ``rounded``."""

    patients: Count
    images: Count


class Splits(Form):
    """How much of each split of one task a site holds."""

    train: Counted
    validation: Counted
    test: Counted


class Declaration(Form):
    """What a site says of itself before the first round."""

    software: Annotated[str, Field(max_length=40)]
    base: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    """Digest of the base that the site holds for this study; empty when it holds none."""
    tasks: dict[Name, Splits]
    unreadable: dict[Name, Count]
    patients: Count
    """Training patients over all tasks, each counted once."""
    each_image: tuple[Name, ...] = ()
    """Tasks whose patients are not known, so that each image counts as a patient of its own."""

    def weight(self, group: str, weighting: str) -> float:
        """Return what this site's change of a group of arrays weighs."""
        if weighting == "equal":
            return 1.0
        if group.startswith("head:"):
            train = self.tasks[group.removeprefix("head:")].train
            return float(train.patients if weighting == "patients" else train.images)
        if weighting == "patients":
            return float(self.patients)
        return float(sum(splits.train.images for splits in self.tasks.values()))


class Training(Form):
    """What the local training of one round was, in sums."""

    steps: Count
    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    """Mean training loss over the round's images, by the study's loss; None in a study with
    privacy, whose noise does not cover it."""
    seconds: Seconds
    evaluation_seconds: Seconds
