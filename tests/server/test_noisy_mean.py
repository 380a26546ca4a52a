"""Laws of the noisy mean, and of the strategies that step along it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from common.arrays import Array, Arrays, digest
from common.federation import MEAN_STRATEGIES, Federation
from common.packed_arrays import PackedArrays
from common.privacy import CentralPrivacy
from common.update_norm import update_norm
from server.central_privacy import SiteNoise
from server.noisy_mean import with_noise
from server.strategies import Combiner, make_combiner

SITES = ("a", "b", "c", "d", "e")
SHAPES: Mapping[str, tuple[int, ...]] = {
    "z.weight": (4, 3, 2, 2), "a.bias": (4,), "scalar": (), "none": (0,),
}  # fmt: skip
NO_NOISE = 1e-9
OPTIONS = {"eta": 0.01}
MANY = 200_000

every_strategy = pytest.mark.parametrize("name", MEAN_STRATEGIES)


def arrays(seed: int, scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.normal(scale=scale, size=shape), np.float32)
        for name, shape in SHAPES.items()
    }


def changes(seed: int, scale: float = 0.01) -> dict[str, dict[str, Array]]:
    return {site: arrays(100 * seed + number, scale) for number, site in enumerate(SITES)}


def federation(name: str) -> Federation:
    options = OPTIONS if name in ("fedadam", "fedyogi", "fedadagrad") else {}
    return Federation(strategy=name, options=options, weighting="equal")


def noisy(name: str = "fedavg", **central: Any) -> tuple[SiteNoise, Combiner]:
    noise = SiteNoise(CentralPrivacy(**{"noise_multiplier": NO_NOISE} | central))
    return noise, with_noise(make_combiner("shared", federation(name)), noise)


def play(
    noise: SiteNoise | None,
    combiner: Combiner,
    current: Arrays,
    sent: Mapping[str, Arrays],
    number: int = 1,
    asked: int = len(SITES),
) -> dict[str, Array]:
    """Play one round of the only group as ``server/rounds.py`` does."""
    combiner.begin(number, current, float(asked))
    for site, change in sent.items():
        factor = 1.0 if noise is None else noise.factor_for({"shared": change})
        combiner.accept(site, change, factor)
    return combiner.finish()


@every_strategy
def test_without_noise_it_is_the_strategy_on_the_mean(name: str) -> None:
    """With next to no noise and a wide bound, three rounds are those of the plain strategy."""
    noise, combiner = noisy(name, clip_norm=10.0)
    plain = make_combiner("shared", federation(name))
    expected: dict[str, Array] = arrays(0)
    found = expected
    for number in (1, 2, 3):
        sent = changes(number)
        expected = play(None, plain, expected, sent, number)
        found = play(noise, combiner, found, sent, number)
        assert list(found) == list(SHAPES)
        for key, value in found.items():
            assert isinstance(value, np.ndarray)
            assert value.shape == SHAPES[key]
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-6)


@every_strategy
def test_it_is_the_strategy_on_shortened_changes(name: str) -> None:
    """A narrow bound gives what the plain strategy makes of changes that were shortened to it."""
    noise, combiner = noisy(name, clip_norm=0.02)
    sent = changes(1)
    lengths = {site: update_norm({"shared": change}) for site, change in sent.items()}
    assert all(length > 0.02 for length in lengths.values())
    shortened = {
        site: {key: np.asarray(value * (0.02 / lengths[site])) for key, value in change.items()}
        for site, change in sent.items()
    }
    plain = make_combiner("shared", federation(name))
    expected = play(None, plain, arrays(0), shortened)
    found = play(noise, combiner, arrays(0), sent)
    for key in SHAPES:
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("replies", [5, 2, 1])
def test_fewer_replies_mean_more_noise(replies: int) -> None:
    """The mean is over those that came, and so is its noise, however many were asked."""
    noise, combiner = noisy(noise_multiplier=2.0, clip_norm=0.5)
    zero = {"w": np.zeros(MANY, np.float32)}
    found = play(noise, combiner, zero, dict.fromkeys(SITES[:replies], zero))["w"]
    assert found.std() == pytest.approx(2.0 * 0.5 / replies, rel=0.01)  # six standard errors


def test_every_group_has_the_noise_of_all_together() -> None:
    """A head that two of five sites have gets noise for two, with the bound of the whole change."""
    noise = SiteNoise(CentralPrivacy(noise_multiplier=1.0, clip_norm=3.0))
    groups = ("shared", "head:t")
    combiners = {g: with_noise(make_combiner(g, federation("fedavg")), noise) for g in groups}
    zero = {"w": np.zeros(MANY, np.float32)}
    for combiner in combiners.values():
        combiner.begin(1, zero, 5.0)
    for number, site in enumerate(SITES):
        sent = dict.fromkeys(groups if number < 2 else groups[:1], zero)
        factor = noise.factor_for(sent)
        for group, change in sent.items():
            combiners[group].accept(site, change, factor)
    assert combiners["shared"].finish()["w"].std() == pytest.approx(3.0 / 5, rel=0.01)
    assert combiners["head:t"].finish()["w"].std() == pytest.approx(3.0 / 2, rel=0.01)


@pytest.mark.parametrize("length", [0.4, 1.0, 7.0, 200.0])
def test_no_site_moves_the_mean_further_than_its_share_of_the_bound(length: float) -> None:
    """With a change of whatever length, and with none, the means are C / n apart at most."""
    rng = np.random.default_rng(3)
    others = {site: {"w": rng.normal(size=100).astype(np.float32)} for site in SITES[1:]}
    means = []
    for own in (length, 0.0):
        noise, combiner = noisy(clip_norm=1.0)
        sent = {"a": {"w": np.full(100, own / 10, np.float32)}, **others}
        means.append(play(noise, combiner, {"w": np.zeros(100, np.float32)}, sent)["w"])
    apart = float(np.linalg.norm(means[0].astype(np.float64) - means[1]))
    assert apart == pytest.approx(min(length, 1.0) / len(SITES), rel=1e-5)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_the_noise_is_in_the_mean_and_not_in_the_step(name: str) -> None:
    """An optimizer's step keeps its size under any noise; it is the direction that is noisy."""
    noise, combiner = noisy(name, noise_multiplier=1000.0)
    zero = {"w": np.zeros(1000, np.float32)}
    step = play(noise, combiner, zero, dict.fromkeys(SITES, zero))["w"]
    assert 0.1 * OPTIONS["eta"] < np.abs(step).max() < 10 * OPTIONS["eta"]
    assert len(np.unique(np.sign(step))) == 2


@every_strategy
def test_without_a_reply_nothing_is_released(name: str) -> None:
    """A group that no site answered keeps every bit of its arrays, the first round and later."""
    noise, combiner = noisy(name, noise_multiplier=1.0)
    current: dict[str, Array] = arrays(0)
    assert digest(play(noise, combiner, current, {})) == digest(current)
    current = play(noise, combiner, current, changes(1), 2)
    assert digest(play(noise, combiner, current, {}, 3)) == digest(current)


@every_strategy
def test_a_strategy_goes_on_from_its_state(name: str) -> None:
    """Another one that was given the state after two rounds makes the third alike."""
    noise, combiner = noisy(name, clip_norm=10.0)
    current: dict[str, Array] = arrays(0)
    for number in (1, 2):
        current = play(noise, combiner, current, changes(number), number)
    other_noise, other = noisy(name, clip_norm=10.0)
    other.restore(combiner.state(), tuple(SHAPES))
    one = play(noise, combiner, current, changes(3), 3)
    two = play(other_noise, other, current, changes(3), 3)
    for key in SHAPES:
        np.testing.assert_allclose(one[key], two[key], rtol=0, atol=1e-6)


def test_large_weights_and_small_bounds_cost_no_precision() -> None:
    """The sum is as fine as the bound, however large the weights are and however many sites."""
    noise, combiner = noisy(clip_norm=0.1)
    current = {"w": np.full(1000, 1e-3, np.float32), "large": np.array([1e6], np.float32)}
    sent = {f"s{n}": {"w": np.full(1000, 1e-4 * (n + 1), np.float32),
                      "large": np.zeros(1, np.float32)} for n in range(20)}  # fmt: skip
    found = play(noise, combiner, current, sent, asked=20)
    mean = np.mean([1e-4 * (n + 1) for n in range(20)])
    np.testing.assert_allclose(found["w"] - current["w"], mean, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_changes_may_come_from_the_wire_in_pieces(dtype: str) -> None:
    """An array of several packs, in either precision, is folded in as if it were whole."""
    rng = np.random.default_rng(0)
    size = 3_000_000
    sent = {site: {"w": rng.normal(size=size).astype(dtype)} for site in ("a", "b")}
    wired = {site: PackedArrays.of(change) for site, change in sent.items()}
    noise, combiner = noisy(clip_norm=1.0)
    current = PackedArrays.of({"w": np.zeros(size, np.float32)})
    found = play(noise, combiner, current, wired, asked=2)["w"]
    expected = np.zeros(size)
    for change in sent.values():
        whole = change["w"].astype(np.float64)
        expected += whole / math.sqrt(np.square(whole).sum()) / 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_a_study_without_noise_keeps_its_combiner() -> None:
    """Nothing is wrapped where there is nothing to hide."""
    plain = make_combiner("shared", federation("fedavg"))
    assert with_noise(plain, None) is plain
