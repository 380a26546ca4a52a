"""How a site makes the trainings of a study private: one plan for each study and cohort."""

from functools import cache
from typing import NamedTuple

from client.accounting import default_delta, noise_multiplier
from client.config import Limits
from common.errors import PrivacyError
from common.study import Study


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


def plan_of(study: Study, limits: Limits, patients: int) -> Plan | None:
    """Return how a study's trainings are made private at this site; limits only tighten.

    The noise is calibrated so that all planned rounds together cost a patient no more than the
    plan's epsilon. The same study, limits and patients always give the same plan.

    Args:
        study: The study.
        limits: What the hospital insists on.
        patients: Training patients at this site, each counted once over all tasks.

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
    batch = study.training.batch_size
    if patients < batch:
        raise PrivacyError(
            f"Study {study.name} draws {batch} patients a step; this site has {patients}.",
            remedy="Ask the coordinator for a smaller training.batch_size.",
        )
    stated = [value for value in (asked.delta, limits.delta) if value is not None]
    delta = min(stated) if stated else default_delta(patients)
    if delta >= 1 / patients:
        raise PrivacyError(
            f"Delta is {delta:.3g}, which is not below one in the {patients} patients here: it "
            "would allow to publish one of them whole.",
            remedy="Set limits.delta in site.toml to a tenth of that or less.",
        )
    bounds = (asked.epsilon, limits.study_epsilon, limits.max_epsilon)
    epsilon = min(bound for bound in bounds if bound is not None)
    sample_rate = batch / patients
    steps = study.training.local_epochs * -(-patients // batch)  # rounded up, in whole numbers
    return Plan(
        noise_multiplier=_calibrated(epsilon, delta, sample_rate, study.rounds * steps),
        sample_rate=sample_rate,
        steps=steps,
        patients=patients,
        clip_norm=asked.clip_norm,
        images_per_patient=asked.images_per_patient,
        epsilon=epsilon,
        delta=delta,
    )


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
def _calibrated(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    return noise_multiplier(epsilon, delta, sample_rate=sample_rate, steps=steps)
