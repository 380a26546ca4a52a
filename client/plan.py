"""How a site makes the trainings of a study private: one plan, fixed at the first of them.

Were noise and draw planned anew for each number of patients, each plan would spend a share of
epsilon that suits its own rounds alone, and the last rounds would not fit. What is fixed stays
right for any number: a patient's privacy depends on the probability of being drawn, not on how
many others there are.
"""

from functools import cache
from typing import NamedTuple

from client.accounting import Mechanism, default_delta, noise_multiplier
from client.config import Limits
from common.errors import PrivacyError
from common.privacy import Privacy
from common.study import Study


class Begun(NamedTuple):
    """How the first private training of a study at this site was made."""

    mechanism: Mechanism
    """What a round draws and adds."""
    epsilon: float
    """What all planned rounds together may cost a patient."""
    delta: float


class Plan(NamedTuple):
    """What DP-SGD does in each round of a study at this site; it never leaves the site."""

    noise_multiplier: float
    """Standard deviation of the noise over ``clip_norm``."""
    sample_rate: float
    """Probability with which a step draws a patient, in (0, 1]."""
    steps: int
    """Gradient steps of one round."""
    patients: int
    """Training patients, each counted once over all tasks."""
    clip_norm: float
    """Bound on the L2 norm of one patient's gradient."""
    images_per_patient: int
    """Images that a drawn patient gives to a step, at most."""
    epsilon: float
    """What all planned rounds together may cost a patient."""
    delta: float


def plan_of(study: Study, limits: Limits, patients: int, begun: Begun | None = None) -> Plan | None:
    """Return how a study's trainings are made private at this site; limits only tighten.

    The noise is calibrated so that all planned rounds, and the spare ones, cost a patient no more
    than the plan's epsilon. Once a training was made, noise, rate and steps stay what they were;
    a tighter epsilon or delta of the hospital then leaves room for fewer rounds.

    Args:
        study: The study.
        limits: What the hospital insists on.
        patients: Training patients at this site, each counted once over all tasks.
        begun: How the study's first private training at this site was made, if there was one.

    Returns:
        The plan; None for a study without privacy.

    Raises:
        PrivacyError: The hospital demands privacy and the study has none; there are fewer
            patients than a batch has; delta is not below one in the number of patients; or no
            noise keeps the study within its epsilon.
    """
    asked = study.privacy
    if asked is None:
        _check_without(study, limits)
        return None
    _check_patients(study, patients)
    delta = _delta(asked, limits, patients, begun)
    bounds = (asked.epsilon, limits.study_epsilon, limits.max_epsilon, begun and begun.epsilon)
    epsilon = min(bound for bound in bounds if bound is not None)
    round_ = begun.mechanism if begun else _calibrated(study, asked, patients, epsilon, delta)
    return Plan(
        noise_multiplier=round_.noise_multiplier,
        sample_rate=round_.sample_rate,
        steps=round_.steps,
        patients=patients,
        clip_norm=asked.clip_norm,
        images_per_patient=asked.images_per_patient,
        epsilon=epsilon,
        delta=delta,
    )


def _check_patients(study: Study, patients: int) -> None:
    batch = study.training.batch_size
    if patients < batch:
        raise PrivacyError(
            f"Study {study.name} draws {batch} patients a step; this site has {patients}.",
            remedy="Ask the coordinator for a smaller training.batch_size.",
        )


def _delta(asked: Privacy, limits: Limits, patients: int, begun: Begun | None) -> float:
    """Return the plan's delta.

    Raises:
        PrivacyError: It is not below one in the number of patients.
    """
    bounds = (asked.delta, limits.delta, begun and begun.delta)
    stated = [bound for bound in bounds if bound is not None]
    delta = min(stated) if stated else default_delta(patients)
    if delta >= 1 / patients:
        raise PrivacyError(
            f"Delta is {delta:.3g}, which is not below one in the {patients} patients here: it "
            "would allow to publish one of them whole.",
            remedy="Set limits.delta in site.toml to a tenth of that or less.",
        )
    return delta


def _calibrated(
    study: Study, asked: Privacy, patients: int, epsilon: float, delta: float
) -> Mechanism:
    """Return a round of which all planned and spare ones cost a patient at most ``epsilon``.

    Raises:
        PrivacyError: No noise does that.
    """
    batch = study.training.batch_size
    rate = batch / patients
    steps = study.training.local_epochs * -(-patients // batch)  # rounded up, in whole numbers
    rounds = study.rounds + asked.spare_rounds
    return Mechanism(_noise(epsilon, delta, rate, rounds * steps), rate, steps)


def _check_without(study: Study, limits: Limits) -> None:
    """Refuse a study without privacy where the hospital demands it.

    A bound on what all studies may cost demands it too: without privacy the cost is unbounded.
    """
    demands = {
        "require_privacy": limits.require_privacy,
        "max_epsilon": limits.max_epsilon is not None,
    }
    if any(demands.values()):
        names = " and ".join(f"limits.{name}" for name, demanded in demands.items() if demanded)
        raise PrivacyError(
            f"Study {study.name} has no privacy, which {names} of this site demands.",
            remedy="Ask the coordinator for a study with a [privacy] section.",
        )


@cache
def _noise(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    return noise_multiplier(epsilon, delta, sample_rate=sample_rate, steps=steps)
