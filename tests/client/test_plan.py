"""Laws of how a study is made private at a site."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from client.accounting import Mechanism, default_delta, epsilon
from client.config import Limits
from client.plan import Plan, plan_of
from common.errors import PrivacyError
from common.study import Study

MakeStudy = Callable[..., Study]


def planned(study: Study, patients: int = 40, **limits: Any) -> Plan:
    plan = plan_of(study, Limits(**limits), patients)
    assert plan is not None
    return plan


@pytest.fixture
def private(make_study: MakeStudy) -> Callable[..., Study]:
    """Return the maker of a study of three rounds with batches of 4 and privacy."""

    def make(**privacy: Any) -> Study:
        return make_study(privacy={"epsilon": 8.0} | privacy)

    return make


def test_a_study_without_privacy_has_no_plan(make_study: MakeStudy) -> None:
    """Where the hospital does not demand one."""
    assert plan_of(make_study(), Limits(study_epsilon=1.0, delta=1e-3), 40) is None


@pytest.mark.parametrize("demand", [{"require_privacy": True}, {"max_epsilon": 5.0}])
def test_a_hospital_may_demand_privacy(make_study: MakeStudy, demand: dict[str, Any]) -> None:
    """By its word, or by a bound on what all studies may cost, which has no meaning without."""
    with pytest.raises(PrivacyError, match=next(iter(demand))):
        plan_of(make_study(), Limits(**demand), 40)


def test_the_planned_rounds_cost_what_was_asked_for(private: MakeStudy) -> None:
    """Noise is calibrated over all steps of all rounds: within epsilon, and not far below."""
    plan = planned(private())
    assert (plan.sample_rate, plan.steps, plan.patients) == (0.1, 10, 40)
    assert (plan.epsilon, plan.delta) == (8.0, default_delta(40))
    spent = epsilon([Mechanism(plan.noise_multiplier, 0.1, 3 * 10)], plan.delta)
    assert 0.98 * 8.0 < spent <= 8.0


def test_what_the_study_says_of_a_step_is_in_the_plan(private: MakeStudy) -> None:
    """Bound and images of a patient."""
    plan = planned(private(clip_norm=0.5, images_per_patient=3))
    assert (plan.clip_norm, plan.images_per_patient) == (0.5, 3)


@pytest.mark.parametrize(("patients", "steps"), [(4, 1), (5, 2), (12, 3), (13, 4), (99, 25)])
def test_an_epoch_draws_as_many_patients_as_there_are(
    make_study: MakeStudy, patients: int, steps: int
) -> None:
    """On average: ceil(1 / rate) steps, counted in whole numbers, for each local epoch."""
    study = make_study(privacy={"epsilon": 8.0}, training={"local_epochs": 2})
    plan = planned(study, patients)
    assert plan.sample_rate == 4 / patients
    assert plan.steps == 2 * steps == 2 * math.ceil(patients / 4)


def test_limits_only_tighten(private: MakeStudy) -> None:
    """The least of the study's and the hospital's epsilon and delta counts."""
    strict = planned(private(delta=5e-3), study_epsilon=2.0, delta=1e-3)
    assert (strict.epsilon, strict.delta) == (2.0, 1e-3)
    lax = planned(private(delta=1e-3), study_epsilon=20.0, delta=5e-3)
    assert (lax.epsilon, lax.delta) == (8.0, 1e-3)
    assert planned(private(), delta=1e-2).delta == 1e-2
    assert strict.noise_multiplier > lax.noise_multiplier


def test_the_same_inputs_give_the_same_plan(private: MakeStudy) -> None:
    """Each round of a study has the plan of the one before."""
    assert planned(private()) == planned(private())


def test_a_site_smaller_than_a_batch_is_refused(private: MakeStudy) -> None:
    """It cannot draw that many patients; one as large as a batch draws all of them."""
    with pytest.raises(PrivacyError, match="this site has 3"):
        plan_of(private(), Limits(), 3)
    assert planned(private(), 4).sample_rate == 1.0


def test_a_delta_of_a_whole_patient_is_refused(private: MakeStudy) -> None:
    """At one in the number of patients, one could be published outright."""
    for study, limits in ((private(delta=1 / 40), Limits()), (private(), Limits(delta=0.1))):
        with pytest.raises(PrivacyError, match="Delta"):
            plan_of(study, limits, 40)
    assert planned(private(delta=0.1), delta=1e-3).delta == 1e-3


def test_a_target_out_of_reach_is_refused(private: MakeStudy) -> None:
    """A delta too small to be counted with has no noise."""
    with pytest.raises(PrivacyError, match="No noise"):
        plan_of(private(delta=1e-13), Limits(), 40)
