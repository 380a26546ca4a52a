"""What is said of a study's last measurement alone: intervals, operating points, calibration.

The rounds before do without: resampling every site's states in each round would cost more than
the rest of the coordinator's work.
"""

from collections.abc import Mapping
from typing import Any

from common import curves, intervals, metrics, operating, temperature
from common.intervals import Interval
from common.metrics import CALIBRATION_BINS, MetricState
from common.seeds import stream
from common.study import Study, Task

Parts = Mapping[str, MetricState]
"""Metric states of one split, by site."""


def all_intervals(study: Study, task: str, name: str, parts: Parts) -> dict[str, Any]:
    """Return the 95 % intervals of the pooled figures and of each site's.

    Args:
        study: Its seed leads the resampling, so that simulation and deployment agree.
        task: Whose states these are.
        name: Name of the states, as in ``common/held_out.py``.
        parts: At least one.
    """
    positive = study.tasks[task].positive_index
    words = (study.seed, "intervals", task, name)
    pooled = metrics.merge(parts.values())
    return {
        "pooled": _listed(intervals.intervals(pooled, positive, stream(*words, "pooled"))),
        "per_site": {
            site: _listed(intervals.intervals(part, positive, stream(*words, "site", site)))
            for site, part in sorted(parts.items())
        },
    }


def _listed(found: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    """Return intervals as JSON gives them back, so that records that were read are the same."""
    return {name: list(interval) if interval else None for name, interval in found.items()}


def on_test(task: Task, validation: Parts, test: Parts) -> dict[str, Any]:
    """Return what was chosen on all sites' validation images and what it does on their test images.

    Args:
        task: Whose states these are.
        validation: May be empty; then nothing is chosen.
        test: At least one.
    """
    tested = metrics.merge(test.values())
    chosen_on = metrics.merge(validation.values()) if validation else None
    return {
        "operating_points": _operating_points(task, chosen_on, tested),
        "temperature": _temperature(task, chosen_on, tested),
        "reliability": curves.reliability(tested),
    }


def _operating_points(
    task: Task, validation: MetricState | None, test: MetricState
) -> dict[str, Any]:
    """Return each rule's operating point by class; None of a class that has none."""
    positive = task.positive_index
    names = list(task.classes) if positive is None else [task.classes[positive]]
    found: dict[str, Any] = {}
    for k, name in enumerate(names):
        chosen = operating.choose(validation, k) if validation is not None else None
        found[name] = chosen and {
            rule: operating.at_edge(test, k, edge) for rule, edge in chosen.items()
        }
    return found


def _temperature(
    task: Task, validation: MetricState | None, test: MetricState
) -> dict[str, Any] | None:
    """Return the temperature, and the test images' figures before and after it."""
    best = temperature.best_temperature(validation.scaled_loss) if validation is not None else None
    if best is None or not metrics.told(test):
        return None
    losses = [temperature.loss_at(test.scaled_loss, test.n_images, t) for t in (1.0, best)]
    errors: list[float | None] = [None, None]
    if task.positive_index is not None:
        (histogram,) = test.histogram
        errors = [
            temperature.scaled_calibration_error(histogram, t, CALIBRATION_BINS)
            for t in (1.0, best)
        ]
    return {
        "value": best,
        "loss": dict(zip(("before", "after"), losses, strict=True)),
        "calibration_error": dict(zip(("before", "after"), errors, strict=True)),
    }
