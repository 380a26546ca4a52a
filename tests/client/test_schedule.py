"""Laws of how learning rates change over the rounds."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from client.schedule import rate_factor, rate_factors
from common.training import Schedule

STEPS = 5
"""Gradient steps in a round."""

KINDS: list[dict[str, Any]] = [
    {"kind": "constant"},
    {"kind": "cosine", "floor": 0.1},
    {"kind": "restarts", "period": 1.5, "growth": 1.7},
    {"kind": "restarts", "period": 2, "floor": 0.2},
    {"kind": "step", "period": 2, "factor": 0.5, "floor": 0.2},
    {"kind": "plateau", "factor": 0.5, "floor": 0.2},
]


def over_the_rounds(schedule: Schedule, rounds: int, steps: int = STEPS) -> list[float]:
    """Return the factors of all steps of a study, asked for round by round."""
    return [
        factor
        for number in range(1, rounds + 1)
        for factor in rate_factors(schedule, number, rounds, steps)
    ]


def by_torch(make: Any, steps: int, *, share: float = 1.0) -> list[float]:
    """Return the rates that one of PyTorch's schedules gives an optimizer with a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make(optimizer)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if share == 1 else schedule.step((step + 1) * share)
    return found


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_a_cosine_over_the_rounds_is_torchs_in_one_go(floor: float) -> None:
    """Rounds of new optimizers go through the same rates as one long training."""
    expected = by_torch(
        lambda o: lr_scheduler.CosineAnnealingLR(o, 7 * STEPS, eta_min=floor), 7 * STEPS
    )
    found = over_the_rounds(Schedule(kind="cosine", floor=floor), 7)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("growth", [1, 2, 3])
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_restarts_over_the_rounds_are_torchs_in_one_go(growth: int, floor: float) -> None:
    """Cycles begin again where PyTorch's warm restarts do, inside a round or between two."""
    schedule = Schedule(kind="restarts", period=2, growth=growth, floor=floor)
    expected = by_torch(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, growth, eta_min=floor),
        30 * STEPS,
        share=1 / STEPS,
    )
    assert over_the_rounds(schedule, 30) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("period", [1, 3, 0.2, 0.6])
def test_steps_over_the_rounds_are_torchs_in_one_go(period: float) -> None:
    """Rates fall after every period, though fractions of rounds are not exact numbers."""
    schedule = Schedule(kind="step", period=period, factor=0.9)
    steps = round(period * STEPS)
    expected = by_torch(lambda o: lr_scheduler.StepLR(o, steps, gamma=0.9), 7 * STEPS)
    assert over_the_rounds(schedule, 7) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rounds", [1, 2.4, 7])
def test_a_warm_up_is_torchs_in_one_go(rounds: float) -> None:
    """It rises linearly, from one step's share to all, and then is over."""
    steps = round(rounds * STEPS)
    expected = by_torch(
        lambda o: lr_scheduler.LinearLR(o, 1 / steps, total_iters=steps - 1), 7 * STEPS
    )
    found = over_the_rounds(Schedule(warmup_rounds=rounds), 7)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[-1] == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["kind"]))
def test_a_warm_up_multiplies_what_follows(kind: dict[str, Any]) -> None:
    """With a warm-up each rate is the schedule's own times the warm-up's, and never 0."""
    both = over_the_rounds(Schedule(**kind, warmup_rounds=2.5), 6)
    one, other = (
        over_the_rounds(Schedule(**kind), 6),
        over_the_rounds(Schedule(warmup_rounds=2.5), 6),
    )
    assert both == pytest.approx([a * b for a, b in zip(one, other, strict=True)])
    assert min(both) > 0


def test_a_plateau_falls_when_it_is_told() -> None:
    """Its rates hang on how often they were lowered alone, and end at the floor."""
    schedule = Schedule(kind="plateau", factor=0.5, floor=0.2)
    found = [rate_factor(schedule, 3.0, 10, lowered=lowered) for lowered in range(5)]
    assert found == [1, 0.5, 0.25, 0.2, 0.2]
    assert rate_factors(schedule, 4, 10, 3, lowered=1) == [0.5] * 3


def test_the_default_changes_no_rate() -> None:
    """Without a schedule every factor is exactly 1."""
    assert over_the_rounds(Schedule(), 4) == [1.0] * 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["kind"]))
def test_steps_of_sites_with_few_and_many_images_meet(kind: dict[str, Any]) -> None:
    """A round begins at the same rate whatever the number of a site's steps."""
    few, many = (over_the_rounds(Schedule(**kind), 6, steps) for steps in (3, 50))
    assert few[::3] == pytest.approx(many[::50])


@given(
    kind=st.sampled_from(["restarts", "step"]),
    period=st.floats(0.01, 100_000),
    growth=st.floats(1, 100),
    done=st.floats(0, 1e5, exclude_max=True),
)
def test_every_factor_is_a_share(kind: Any, period: float, growth: float, done: float) -> None:
    """However odd a period, the factor lies between floor and 1, and is found at once."""
    schedule = Schedule(kind=kind, period=period, growth=growth if kind == "restarts" else 1.0)
    factor = rate_factor(schedule, done, 100_000)
    assert 0 <= factor <= 1
    assert math.isfinite(factor)


def test_no_steps_have_no_factors() -> None:
    """A site without images of the study's tasks makes no step."""
    assert rate_factors(Schedule(kind="cosine"), 1, 3, 0) == []
