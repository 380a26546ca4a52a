"""Laws of what the last exchange says; the reference is what the sums give by themselves."""

from typing import Any

import numpy as np
import pytest

from common import curves, intervals, metrics, operating, temperature
from common.metrics import MetricState, compute, merge, untold
from common.seeds import stream
from common.study import Study
from server.last_figures import all_intervals, on_test

STUDY = Study.parse(
    {
        "name": "a-study",
        "rounds": 1,
        "backbone": {"name": "test_vit", "weights": "none", "image_size": 160},
        "tasks": {
            "ct": {"modality": "CT", "classes": ["no", "yes"], "positive": "yes"},
            "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
        },
    }
)


def state_of(task: str, n: int, seed: int) -> MetricState:
    """Return the state of n patients with logits that are three times too large."""
    k, positive = len(STUDY.tasks[task].classes), STUDY.tasks[task].positive_index
    random = np.random.default_rng(seed)
    logits = random.normal(scale=1.5, size=(n, k))
    labels = (logits + random.gumbel(size=(n, k))).argmax(axis=1)
    state = metrics.update(metrics.zero(k, positive), 3 * logits, labels, positive)
    return metrics.with_patients(state, n)


@pytest.mark.parametrize("task", ["ct", "mr"])
def test_intervals_are_of_all_sites_and_of_each(task: str) -> None:
    """Pooled is of the merged sums, each site's of its own; none depends on the order of sites."""
    parts = {site: state_of(task, 80, seed) for seed, site in enumerate(("b", "a"))}
    positive = STUDY.tasks[task].positive_index
    found = all_intervals(STUDY, task, "test", parts)
    assert list(found["per_site"]) == ["a", "b"]
    seed = stream(STUDY.seed, "intervals", task, "test", "pooled")
    expected = intervals.intervals(merge(parts.values()), positive, seed)
    assert found["pooled"] == {name: list(ends) for name, ends in expected.items() if ends}
    assert found == all_intervals(STUDY, task, "test", dict(reversed(parts.items())))


def test_what_validation_chose_is_held_to_test() -> None:
    """Thresholds and temperature come from validation images; figures are of test images."""
    validation = {site: state_of("ct", 150, seed) for seed, site in enumerate("ab")}
    test = {site: state_of("ct", 100, 10 + seed) for seed, site in enumerate("ab")}
    found = on_test(STUDY.tasks["ct"], validation, test)
    chosen_on, tested = merge(validation.values()), merge(test.values())
    edges = operating.choose(chosen_on, 0)
    assert edges is not None
    assert found["operating_points"] == {
        "yes": {rule: operating.at_edge(tested, 0, edge) for rule, edge in edges.items()}
    }
    best = temperature.best_temperature(chosen_on.scaled_loss)
    told: dict[str, Any] = found["temperature"]
    assert told["value"] == best == pytest.approx(3, rel=0.2)
    before = compute(tested, 1)
    assert told["loss"]["before"] == pytest.approx(before["loss"], rel=1e-6)
    assert told["loss"]["after"] < told["loss"]["before"]
    error = told["calibration_error"]
    assert error["before"] == pytest.approx(before["calibration_error"], abs=0.01)
    assert error["after"] < error["before"]
    assert found["reliability"] == curves.reliability(tested)


def test_a_site_that_does_not_tell_its_losses_leaves_no_temperature() -> None:
    """Neither of validation nor of test images may the losses be missing; points stay."""
    parts = [{site: state_of("ct", 80, n) for n, site in enumerate("ab")} for _ in range(2)]
    quiet = {**parts[0], "b": untold(parts[0]["b"])}
    whole = on_test(STUDY.tasks["ct"], *parts)
    assert whole["temperature"] is not None
    for validation, test in ((quiet, parts[1]), (parts[0], quiet)):
        assert on_test(STUDY.tasks["ct"], validation, test) == {**whole, "temperature": None}


def test_each_class_of_many_has_its_points() -> None:
    """Without a positive class every class has operating points, and no calibration error."""
    validation, test = {"a": state_of("mr", 200, 1)}, {"a": state_of("mr", 200, 2)}
    found = on_test(STUDY.tasks["mr"], validation, test)
    assert list(found["operating_points"]) == ["a", "b", "c"]
    assert all(set(points) == set(operating.RULES) for points in found["operating_points"].values())
    assert found["temperature"]["calibration_error"] == {"before": None, "after": None}


def test_without_validation_nothing_is_chosen() -> None:
    """Where every site kept its validation figures, test images are described alone."""
    found = on_test(STUDY.tasks["ct"], {}, {"a": state_of("ct", 60, 3)})
    assert found["operating_points"] == {"yes": None}
    assert found["temperature"] is None
    assert found["reliability"]["n"]
