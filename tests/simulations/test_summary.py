"""Laws of ``summary.json``: its shape, frozen, and sums that agree."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from common.study import Study
from common.weights import layout_of
from server.initial_weights import initial_model
from simulations.federation import find_hospitals, play
from simulations.run import read_summary
from simulations.summary import summarise

StudyOf = Callable[..., Study]

FIGURES = {
    "accuracy": "number", "balanced_accuracy": "number", "precision": "number",
    "sensitivity": "number", "specificity": "number", "f1": "number", "auroc": "number",
    "auroc_bound": "number", "average_precision": "number", "brier": "number",
    "calibration_error": "number", "loss": "number", "n_patients": "count", "n_images": "count",
}  # fmt: skip

NUMBERS = {"auroc_bound", "n_patients", "n_images"}
INTERVALS = {name: ["number"] for name in FIGURES if name not in NUMBERS}
SHARE = {"value": "number", "interval": ["number"], "n": "count"}
POINT = {
    "threshold": "number", "probability": "number",
    "sensitivity": SHARE, "specificity": SHARE, "ppv": SHARE, "npv": SHARE,
}  # fmt: skip
BEFORE_AND_AFTER = {"before": "number", "after": "number"}
TEST = {
    "pooled": FIGURES,
    "per_site": {"SITE": FIGURES},
    "intervals": {"pooled": INTERVALS, "per_site": {"SITE": INTERVALS}},
    "operating_points": {
        "CLASS": {"youden": POINT, "sensitivity": POINT, "specificity": POINT},
    },
    "temperature": {
        "value": "number", "loss": BEFORE_AND_AFTER, "calibration_error": BEFORE_AND_AFTER,
    },
    "reliability": {
        "n": ["count"], "confidence": ["number"], "accuracy": ["number"],
        "interval": [["number"]],
    },
}  # fmt: skip

ESTIMATE = {"value": "number", "low": "number", "high": "number", "reason": "text"}
ESTIMATES = {name: ESTIMATE for name in FIGURES if name not in NUMBERS}
SPREAD = {
    "lowest": "number", "highest": "number", "worst_site": "text", "std": "number",
    "sites": "count",
}  # fmt: skip
ROW = {
    "model": "text",
    "site": "name",
    "per_site": {"SITE": ESTIMATES},
    "pooled": ESTIMATES,
    "spread": dict.fromkeys(ESTIMATES, SPREAD),
}
BENEFIT = {
    "patients": "count",
    "figures": {"MODEL": ESTIMATES},
    "differences": {"PAIR": ESTIMATES},
    "verdicts": {"PAIR": "text"},
    "sentence": "text",
}

SHAPE = {
    "study": "text",
    "study_digest": "text",
    "engine": "text",
    "sites": ["text"],
    "refused": {"SITE": "text"},
    "rounds": "count",
    "rounds_made": "count",
    "model_round": "count",
    "averaged": ["count"],
    "stopped": "text",
    "seed": "count",
    "strategy": "text",
    "normalisation": "text",
    "weights": {"source": "text", "left_out": ["text"]},
    "tasks": {
        "TASK": {
            **TEST,
            "patients": TEST,
        },
    },
    "yardsticks": {
        "alone": {
            "TASK": {
                **FIGURES,
                "per_site": {"SITE": {**FIGURES, "patients": FIGURES}},
                "patients": FIGURES,
            },
        },
        "ensemble": {"TASK": {**FIGURES, "patients": FIGURES}},
        "pooled": {"TASK": {**FIGURES, "patients": FIGURES}},
    },
    "matrix": {
        "TASK": {
            "sites": {"SITE": {"patients": "count", "by_class": {"CLASS": "count"}}},
            "left_out": {"SITE": "text"},
            "rows": [ROW],
            "no_personal": {"SITE": "text"},
        },
    },
    "benefit": {"TASK": {"SITE": BENEFIT}},
    "unreadable": {"SITE": {"TASK": "count"}},
    "each_image": {"SITE": ["text"]},
    "bytes": {"down": {"SITE": ["count"]}, "up": {"SITE": ["count"]}},
    "seconds": {
        "total": "number", "training": "number", "evaluation": "number", "overhead": "number",
    },
    "versions": {
        "python": "text", "rarefed": "text", "flwr": "text", "torch": "text",
        "torchvision": "text", "timm": "text", "numpy": "text", "pydicom": "text",
    },
}  # fmt: skip
"""Every key of the file; words in capitals stand for any task, site, class, model and pair."""
ANY = {"TASK", "SITE", "CLASS", "MODEL", "PAIR"}
MAY_BE_EMPTY = ("refused", "each_image", "left_out", "no_personal", "benefit.")
"""Usually nobody is refused, all patients are known, and every site can be judged."""


def check_shape(value: Any, shape: Any, where: str = "summary") -> None:
    """Hold a value to the shape: no key more, none less, and in the same order."""
    if value is None and isinstance(shape, list):
        return  # an interval that there is not
    if value is None and shape in (SPREAD, ESTIMATES, "count"):
        return  # of one site, or of patients that cannot be judged
    if isinstance(shape, list):
        assert isinstance(value, list), where
        for item in value:
            check_shape(item, shape[0], f"{where}[]")
    elif isinstance(shape, dict):
        assert isinstance(value, dict), where
        (first, *_) = shape
        if first in ANY:
            assert value or any(word in where for word in MAY_BE_EMPTY), where
            shape = dict.fromkeys(value, shape[first])
        assert list(value) == list(shape), where
        for key, part in shape.items():
            check_shape(value[key], part, f"{where}.{key}")
    else:
        kinds = {"text": str, "count": int, "number": float | None, "name": str | None}
        assert isinstance(value, kinds[shape]), where


def refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def test_the_shape_is_the_one_that_was_agreed(finished: Path) -> None:
    """No key comes, goes, moves or changes its type by accident."""
    check_shape(read_summary(finished), SHAPE)


def test_it_is_plain_json(finished: Path) -> None:
    """Neither summary nor history holds a NaN or an infinity (RFC 8259, section 6)."""
    json.loads((finished / "summary.json").read_text(), parse_constant=refuse)
    for line in (finished / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_it_says_what_was_played(finished: Path, long_study: Study) -> None:
    """Study, digest, rounds, seed, strategy, start and sites are those of the run."""
    summary = read_summary(finished)
    assert summary["study"] == long_study.name
    assert summary["study_digest"] == long_study.digest()
    assert (summary["rounds"], summary["seed"]) == (long_study.rounds, long_study.seed)
    assert (summary["strategy"], summary["normalisation"]) == ("fedavg", "average")
    assert summary["weights"] == {"source": "none", "left_out": []}
    assert summary["engine"] == "inline"
    assert summary["sites"] == [f"hospital-{number}" for number in range(1, 5)]
    assert list(summary["tasks"]) == list(long_study.tasks)
    assert "not installed" not in summary["versions"].values()


def test_bytes_are_at_least_those_of_the_arrays(finished: Path, long_study: Study) -> None:
    """Each exchange brings at least what the site's groups weigh, and takes as much back."""
    summary = read_summary(finished)
    arrays = load_file(finished / "model.safetensors")
    layout = layout_of(initial_model(long_study).model, long_study)
    tasks = {site: task for task, v in summary["tasks"].items() for site in v["per_site"]}
    for site, task in tasks.items():
        names = [name for group in layout.groups_of([task]) for name in layout.groups[group]]
        least = sum(arrays[name].nbytes for name in names)
        down, up = summary["bytes"]["down"][site], summary["bytes"]["up"][site]
        assert len(down) == len(up) == long_study.rounds + 1
        assert all(sent >= least for sent in down)
        assert all(sent >= least for sent in up[:-1])
        assert 0 < up[-1] < 100_000  # the last exchange brings back metrics alone


def test_bytes_are_none_where_a_site_was_not_asked(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """A site that sat a round out has a zero in its place."""
    study = study_of(federation={"fraction": 0.5})
    played = play(study, find_hospitals(small), tmp_path / "run", threads=1)
    summary = summarise(study, played, engine="inline", yardsticks=None)
    for number, record in enumerate(played.outcome.records):
        asked = {site for site, sent in summary["bytes"]["down"].items() if sent[number] > 0}
        assert asked == set(record.asked)
    assert summary["yardsticks"] is None
    assert summarise(study, played, engine="ray", yardsticks=None)["seconds"]["overhead"] is None


def test_seconds_add_up(finished: Path) -> None:
    """Training, evaluation and overhead are the wall time, and none of them is negative."""
    seconds = read_summary(finished)["seconds"]
    parts = [seconds[name] for name in ("training", "evaluation", "overhead")]
    assert seconds["total"] == pytest.approx(sum(parts))
    assert min(parts) > 0
    lines = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    assert sum(line["seconds"]["total"] for line in lines) < seconds["total"]
    for name in ("training", "evaluation"):
        assert seconds[name] == pytest.approx(sum(line["seconds"][name] for line in lines))


def test_arrays_without_a_place_are_named(
    small: Path, study_of: StudyOf, tmp_path: Path, weights: Path
) -> None:
    """The weights file is named without its folder, and what was left of it by array."""
    study = study_of("rings", rounds=1, backbone={"weights": str(weights)})
    played = play(study, find_hospitals(small), tmp_path / "run", threads=1)
    start = replace(played.start, left_out=("fc.bias", "fc.weight"))
    summary = summarise(study, replace(played, start=start), engine="inline", yardsticks=None)
    assert summary["weights"] == {
        "source": "small.safetensors", "left_out": ["fc.bias", "fc.weight"],
    }  # fmt: skip
