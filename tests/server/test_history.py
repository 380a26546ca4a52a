"""Laws of the record of the rounds."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from common import metrics
from common.messages import Counted
from common.metrics import METRICS, MetricState
from common.study import Study
from server import history
from server.history import HISTORY, RoundRecord

Make = Callable[..., Any]

KEYS = [
    "round", "model_round", "trained", "asked", "answered", "refused", "silent", "tasks",
    "training", "bytes", "seconds",
]  # fmt: skip


def state(make_state: Make, images: int, classes: int = 2) -> MetricState:
    positive = 1 if classes == 2 else None
    arrays = make_state(classes, positive, Counted(patients=2, images=images))
    return metrics.from_arrays(arrays, classes, positive)


def test_the_keys_of_a_line_are_frozen(tmp_path: Path) -> None:
    """Each round is one JSON line with these keys, in the order of the rounds."""
    assert [field.name for field in fields(RoundRecord)] == KEYS
    for number in (1, 2):
        record = RoundRecord(number, model_round=number - 1, trained=True, refused={"a": "data"})
        history.append(tmp_path / "run", record)
    lines = (tmp_path / "run" / HISTORY).read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    assert [list(line) for line in read] == [KEYS, KEYS]
    assert [line["round"] for line in read] == [1, 2]
    assert read[0]["refused"] == {"a": "data"}


def test_figures_stand_beside_their_numbers(make_state: Make) -> None:
    """Every metric comes with the patients and images that it was measured on."""
    found = history.figures(state(make_state, 4), 1)
    assert list(found) == [*METRICS, "n_patients", "n_images"]
    assert (found["n_patients"], found["n_images"]) == (2, 4)
    assert found["accuracy"] == 0.5


def test_pooled_figures_are_of_all_sites_together(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """Pooled is the merged states' metrics, per site each state's; tasks without sites are out."""
    one, two = state(make_state, 4), state(make_state, 9)
    states = {"b": {("ct", "test"): two}, "a": {("ct", "test"): one, ("ct", "validation"): one}}
    found = history.task_figures(make_study(), states)
    assert list(found) == ["ct"]
    assert list(found["ct"]) == ["validation", "test"]
    test = found["ct"]["test"]
    assert list(test["per_site"]) == ["a", "b"]
    assert test["per_site"]["a"] == history.figures(one, 1)
    assert test["pooled"] == history.figures(metrics.merge([one, two]), 1)
    assert test["pooled"]["n_images"] == 13
    assert found["ct"]["validation"]["pooled"]["n_images"] == 4
    assert history.task_figures(make_study(), {}) == {}


def test_the_order_of_sites_changes_no_figure(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """States that arrive in another order give the same figures, bit for bit."""
    states = {
        name: {("mr", "test"): state(make_state, images, 3)}
        for name, images in (("a", 3), ("b", 7), ("c", 11))
    }
    turned = dict(reversed(states.items()))
    first, second = (history.task_figures(make_study(), found) for found in (states, turned))
    assert json.dumps(first) == json.dumps(second)


def test_seconds_add_up_over_rounds() -> None:
    """A total is the sum over the rounds that have the figure."""
    records = [RoundRecord(n, n - 1, trained=True, seconds={"training": n}) for n in (1, 2)]
    records.append(RoundRecord(3, 2, trained=False, seconds={"total": 5.0}))
    assert history.total(records, "training") == 3
    assert history.total(records, "total") == 5.0
    assert history.total([], "total") == 0
