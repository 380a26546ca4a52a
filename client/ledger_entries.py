"""What stands in a line of the ledger, and what is told or refused because of many of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from client.accounting import Mechanism
from client.plan import Plan
from common.errors import BudgetError
from common.study import Study


class Training(NamedTuple):
    """One line of the ledger."""

    study: str
    """Digest of the study."""
    name: str
    round: int
    order: str
    """Digest of the order as it was sealed."""
    cohort: str
    """Digest of the cohort; empty in lines of old versions, which did not keep it."""
    mechanism: Mechanism | None
    """What the training drew and added; None for one without privacy."""
    epsilon: float
    """What all of the study's trainings together may cost a patient; 0 without privacy."""
    delta: float
    """The delta of that epsilon; 0 without privacy."""


class Entered(NamedTuple):
    """What is known of a training once it stands in the ledger."""

    hash: str
    """The line's own hash, by which the audit log names it."""
    epsilon: float | None
    """What the patient of this training who has spent most has then spent in all trainings with
    privacy, at the site's delta; ``math.inf`` where it is too large to be told, None for a
    training without privacy."""


class Spending(NamedTuple):
    """What trainings have cost the patients of this site."""

    trainings: int
    """Lines: an order that was trained twice has two."""
    without_privacy: int
    """Those among them without privacy: what they cost has no bound."""
    unknown: int
    """Those among them whose patients are not known, of an old version."""
    patients: int
    """Patients who were in any of the others."""
    epsilon: float
    """What the trainings with privacy cost the patient who was in most of them."""
    delta: float


class Left(NamedTuple):
    """How many more rounds of a study fit."""

    study: int
    """Within the study's own epsilon."""
    site: int | None
    """Those of them within the hospital's ``limits.max_epsilon`` too; None when it has set none."""


def training_of(entry: Mapping[str, Any]) -> Training:
    """Return a line as a training; those of old versions lack cohort and privacy."""
    private = entry.get("privacy")
    mechanism = None
    if private is not None:
        mechanism = Mechanism(
            float(private["noise_multiplier"]), float(private["sample_rate"]), int(private["steps"])
        )
    return Training(
        study=str(entry["study"]),
        name=str(entry.get("name", "")),
        round=int(entry.get("round", 0)),
        order=str(entry["order"]),
        cohort=str(entry["cohort"] if private else entry.get("cohort", "")),
        mechanism=mechanism,
        epsilon=float(private["epsilon"]) if private else 0.0,
        delta=float(private["delta"]) if private else 0.0,
    )


def privacy_of(plan: Plan) -> dict[str, float]:
    """Return what a line says of how its training is made private."""
    keys = ("noise_multiplier", "sample_rate", "steps", "epsilon", "delta", "clip_norm")
    values = plan._asdict()
    return {key: values[key] for key in keys}


def parts_of(trainings: Sequence[Training]) -> list[tuple[str, Mechanism]]:
    """Return cohort and steps of those with privacy."""
    return [(found.cohort, found.mechanism) for found in trainings if found.mechanism is not None]


def check_number(
    study: Study, order_digest: str, before: Sequence[Training], extra_rounds: int
) -> None:
    """Refuse another training than those that the study and the hospital allow.

    Raises:
        BudgetError: They have all been made; the very same order counts once.
    """
    digest = study.digest()
    done = {found.order for found in before if found.study == digest}
    if order_digest not in done and len(done) >= study.rounds + extra_rounds:
        raise BudgetError(
            f"Study {study.name} has had {len(done)} trainings at this site; "
            f"{study.rounds} rounds and {extra_rounds} extra are allowed.",
            remedy="Ask the coordinator why; then raise limits.extra_rounds in site.toml, "
            "if you agree.",
        )


def check_turn(study: Study, number: int, before: Sequence[Training]) -> None:
    """Refuse a private round once a later one was trained: an old order would spend for nothing.

    Raises:
        BudgetError: A later round was trained.
    """
    digest = study.digest()
    last = max((t.round for t in before if t.study == digest and t.mechanism), default=0)
    if number < last:
        raise BudgetError(
            f"Round {number} of study {study.name} was asked for after round {last} was trained.",
            remedy="If the coordinator has not gone back to an older backup, somebody hands in an "
            "old order again: look at the audit log. A study with privacy never goes back.",
        )
