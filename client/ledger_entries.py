"""What stands in a line of the ledger, and what is told or refused because of many of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from client.accounting import Mechanism, default_delta
from client.cohorts import among, worst_epsilon
from client.config import Limits
from client.plan import Plan
from common.errors import BudgetError
from common.study import Study

SLACK = 1e-3
"""By how much of itself a study's epsilon may be exceeded. The noise was calibrated so that exactly
the planned rounds fit; they must fit still when a new version of a library changes the last digits.
The accountant's figure lies 0.5 % above the exact one, so the promise is kept all the same."""


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


def check_epsilon(
    study: Study,
    before: Sequence[Training],
    known: Mapping[str, frozenset[str]],
    cohort: frozenset[str],
    *,
    limits: Limits,
    plan: Plan,
) -> float:
    """Refuse a private training that would cost a patient more than is allowed.

    Args:
        study: The study.
        before: All trainings that were entered, of whatever study.
        known: The cohorts of those, by digest.
        cohort: The patients of this training.
        limits: What the hospital insists on.
        plan: How the training is made private.

    Returns:
        What the cohort's worst patient will have spent in all studies, at the site's delta.

    Raises:
        BudgetError: It is more than the study or the hospital allows.
    """
    theirs = among(known, cohort)
    this = [Mechanism(plan.noise_multiplier, plan.sample_rate, plan.steps)]
    digest = study.digest()
    of_study = [found for found in before if found.study == digest]
    here = worst_epsilon(parts_of(of_study), theirs, this, plan.delta)
    if here > plan.epsilon * (1 + SLACK):
        raise BudgetError(
            f"With this training study {study.name} would cost a patient epsilon {here:.4g} "
            f"at delta {plan.delta:.3g}; {plan.epsilon:.4g} is allowed.",
            remedy="Nothing, if all its rounds were trained; rounds that were redone have "
            "spent the rest. A new study is needed.",
        )
    delta = limits.delta or delta_of({**known, "": cohort})
    overall = worst_epsilon(parts_of(before), theirs, this, delta)
    if limits.max_epsilon is not None and overall > limits.max_epsilon:
        raise BudgetError(
            f"With this training all studies would cost a patient epsilon {overall:.4g} at "
            f"delta {delta:.3g}; limits.max_epsilon is {limits.max_epsilon:.4g}.",
            remedy="rarefed-client ledger shows what was spent; raise limits.max_epsilon in "
            "site.toml only if the hospital agrees.",
        )
    return overall


def delta_of(cohorts: Mapping[str, frozenset[str]]) -> float:
    """Return the delta of a hospital that has set none, from all patients ever entered."""
    return default_delta(max(2, len(frozenset[str]().union(*cohorts.values()))))
