"""Laws of a study's central privacy: what it may ask for, and what it is part of."""

import json
import re
from typing import Any

import pytest

from common.errors import StudyError
from common.federation import MEAN_STRATEGIES, STRATEGY_OPTIONS
from common.privacy import CentralPrivacy
from common.study import Study
from common.study_faults import _ADAPTIVE


def values(central: dict[str, Any] | None = None, **federation: Any) -> dict[str, Any]:
    study: dict[str, Any] = {
        "name": "noisy",
        "rounds": 2,
        "backbone": {"name": "test_resnet", "weights": "none"},
        "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
        "federation": {"weighting": "equal"} | federation,
    }
    return study if central is None else study | {"central_privacy": central}


def faults_of(study: dict[str, Any]) -> dict[str, str]:
    """Return what is said of each key that a study is refused for."""
    with pytest.raises(StudyError) as refused:
        Study.parse(study)
    lines = refused.value.message.splitlines()[1:]
    return dict(line.removeprefix("  - ").split(": ", 1) for line in lines)


def test_only_the_noise_has_to_be_said() -> None:
    """The bound is fixed at 1 and delta is 1e-5 unless the study says otherwise."""
    assert Study.parse(values({"noise_multiplier": 1})).central_privacy == CentralPrivacy(
        noise_multiplier=1.0,
        clip_norm=1.0,
        clipping="fixed",
        target_quantile=0.5,
        clip_learning_rate=0.2,
        count_noise=None,
        delta=1e-5,
    )


@pytest.mark.parametrize("strategy", STRATEGY_OPTIONS)
def test_a_strategy_steps_along_the_mean_or_is_refused(strategy: str) -> None:
    """Median, trimmed mean and Krum can be moved further by one site than the noise hides."""
    study = values({"noise_multiplier": 1.0}, strategy=strategy, quorum=3)
    if strategy in MEAN_STRATEGIES:
        Study.parse(study)
    else:
        found = faults_of(study)
        assert list(found) == ["federation.strategy"]
        assert strategy in found["federation.strategy"]
        assert all(name in found["federation.strategy"] for name in MEAN_STRATEGIES)


@pytest.mark.parametrize("weighting", ["patients", "images", None])
def test_all_sites_must_weigh_the_same(weighting: str | None) -> None:
    """Weights by patients or images, and the default, are refused with the remedy."""
    study = values({"noise_multiplier": 1.0})
    study["federation"] = {} if weighting is None else {"weighting": weighting}
    assert "'equal'" in faults_of(study)["federation.weighting"]
    del study["central_privacy"]
    Study.parse(study)


@pytest.mark.parametrize(
    ("key", "value"),
    [("noise_multiplier", 0), ("noise_multiplier", -1.0), ("noise_multiplier", 1001),
     ("clip_norm", 0.0), ("clipping", "median"), ("target_quantile", 1.1),
     ("target_quantile", -0.1), ("clip_learning_rate", 0), ("clip_learning_rate", 11),
     ("count_noise", 0.0), ("count_noise", "1"), ("delta", 0), ("delta", 1.0), ("epsilon", 1.0)],
)  # fmt: skip
def test_a_value_out_of_range_is_named(key: str, value: Any) -> None:
    """No noise, no bound, shares beyond one and unknown keys are one fault each."""
    central = {"noise_multiplier": 1.0, "clipping": "adaptive"} | {key: value}
    assert list(faults_of(values(central))) == [f"central_privacy.{key}"]


def test_the_noise_is_required() -> None:
    """A section without it is refused, and so is one that is no table."""
    assert list(faults_of(values({}))) == ["central_privacy.noise_multiplier"]
    assert list(faults_of(values() | {"central_privacy": 1.0})) == ["central_privacy"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("target_quantile", 0.6), ("clip_learning_rate", 0.3), ("count_noise", 5.0)],
)
def test_a_fixed_bound_has_no_settings_of_an_adaptive_one(key: str, value: float) -> None:
    """They are refused where they would do nothing, unless they are the defaults."""
    told = faults_of(values({"noise_multiplier": 1.0, key: value}))
    assert list(told) == [f"central_privacy.{key}"]
    assert "'adaptive'" in told[f"central_privacy.{key}"]
    Study.parse(values({"noise_multiplier": 1.0, "clipping": "adaptive", key: value}))
    default = {key: _ADAPTIVE[key]}
    Study.parse(json.loads(json.dumps(values({"noise_multiplier": 1.0} | default))))


def test_defaults_are_those_of_the_section() -> None:
    """The table of adaptive settings has the defaults that the section has."""
    fields = CentralPrivacy.model_fields
    assert {key: fields[key].default for key in _ADAPTIVE} == _ADAPTIVE


@pytest.mark.parametrize("count", [0.5, 1.0])
def test_the_count_needs_more_than_half_the_noise(count: float) -> None:
    """Below that the count alone would cost more than all may (Andrew et al. 2021, theorem 1)."""
    central = {"noise_multiplier": 2.0, "clipping": "adaptive", "count_noise": count}
    assert "above 1" in faults_of(values(central))["central_privacy.count_noise"]
    Study.parse(values(central | {"count_noise": 1.001}))


def test_all_faults_are_told_at_once() -> None:
    """One refusal lists every impossible combination, each on one line with its remedy."""
    central = {"noise_multiplier": 2.0, "target_quantile": 0.9, "count_noise": 0.5, "delta": 2}
    study = values(central, strategy="krum", weighting="patients", quorum=3)
    found = faults_of(study)
    assert set(found) == {
        "central_privacy.delta", "central_privacy.target_quantile", "central_privacy.count_noise",
        "federation.strategy", "federation.weighting",
    }  # fmt: skip
    assert all(re.fullmatch(r".+; .+\.", said) for said in found.values())


def test_it_is_part_of_the_digest() -> None:
    """A study with it is another one than without, each value counts, and the wire keeps all."""
    base = {"noise_multiplier": 1.0, "clipping": "adaptive"}
    other = {
        "noise_multiplier": 2.0, "clip_norm": 2.0, "target_quantile": 0.4,
        "clip_learning_rate": 0.1, "count_noise": 3.0, "delta": 1e-6,
    }  # fmt: skip
    studies = [values(), values({"noise_multiplier": 1.0}), values(base)]
    studies += [values(base | {key: value}) for key, value in other.items()]
    parsed = [Study.parse(study) for study in studies]
    assert len({study.digest() for study in parsed}) == len(studies)
    for study in parsed:
        assert Study.parse(json.loads(study.wire())) == study.model_copy()
        assert Study.parse(json.loads(study.wire())).digest() == study.digest()
    assert "central_privacy" not in parsed[0].wire()
