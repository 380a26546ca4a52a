"""One contract for every strategy, and the formula of each."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from common.arrays import Array, Arrays, digest
from common.federation import STRATEGY_OPTIONS, Federation
from common.layout import SHARED, STATISTICS
from common.packed_arrays import PackedArrays
from server import strategies
from server.exact_sum import largest_change
from server.strategies import FoldingAverage, make_combiner

SITES = ("a", "b", "c", "d", "e")
WEIGHTS = {"a": 10.0, "b": 3.0, "c": 7.0, "d": 1.0, "e": 29.0}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "z.weight": (4, 3, 2, 2), "a.bias": (4,), "scalar": (), "none": (0,),
}  # fmt: skip
OPTIMIZERS = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")

every_strategy = pytest.mark.parametrize("name", STRATEGY_OPTIONS)
every_group = pytest.mark.parametrize("group", [SHARED, STATISTICS, "head:ct"])


def federation(name: str, **options: float) -> Federation:
    return Federation(strategy=name, options=options, quorum=3)


def arrays(seed: int, scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.normal(scale=scale, size=shape), np.float32)
        for name, shape in SHAPES.items()
    }


def changes(seed: int = 1) -> dict[str, dict[str, Array]]:
    return {site: arrays(100 * seed + number, 0.01) for number, site in enumerate(SITES)}


def mean_of(sent: Mapping[str, Arrays]) -> dict[str, Array]:
    weights = [WEIGHTS[site] for site in sent]
    return {
        name: np.average([sent[s][name].astype(np.float64) for s in sent], axis=0, weights=weights)
        for name in SHAPES
    }


def play(
    combiner: strategies.Combiner, current: Arrays, sent: Mapping[str, Arrays], number: int = 1
) -> dict[str, Array]:
    """Play one round; the sites answer in the order of ``sent``."""
    combiner.begin(number, current, sum(WEIGHTS.values()))
    for site, change in sent.items():
        combiner.accept(site, change, WEIGHTS[site])
    return combiner.finish()


@every_group
@every_strategy
def test_the_contract(name: str, group: str) -> None:
    """Names, their order, shapes and float32 are kept over rounds; inputs are not written to."""
    combiner = make_combiner(group, federation(name))
    current: dict[str, Array] = arrays(0)
    for number in (1, 2, 3):
        sent = changes(number)
        before = digest(current), [digest(change) for change in sent.values()]
        found = play(combiner, current, sent, number)
        assert (digest(current), [digest(change) for change in sent.values()]) == before
        assert list(found) == list(SHAPES)
        for key, value in found.items():
            assert (key, value.shape) == (key, SHAPES[key])
            assert value.dtype == np.float32
            assert np.isfinite(value).all()
        assert digest(found) != digest(current)
        current = found


@every_group
@every_strategy
def test_the_order_of_arrival_changes_no_bit(name: str, group: str) -> None:
    """Over three rounds any order of the sites gives the same arrays, bit for bit."""
    rng = np.random.default_rng(5)
    results = set()
    for _ in range(4):
        combiner = make_combiner(group, federation(name))
        current: dict[str, Array] = arrays(0)
        for number in (1, 2, 3):
            sent = changes(number)
            order = rng.permutation(SITES)
            current = play(combiner, current, {site: sent[site] for site in order}, number)
        results.add(digest(current))
    assert len(results) == 1


def test_not_even_the_sum_of_the_weights_depends_on_the_order() -> None:
    """A result on the border between two floats falls to one side, whoever answers first."""
    weights, capacity = {"a": 1.0, "b": 2.0, "c": 3.0}, 6.0
    shares = {site: weight / capacity for site, weight in weights.items()}
    assert len({(x + y) + z for x, y, z in itertools.permutations(shares.values())}) == 2
    # Between 1 and the next float32; "b" adds what "c" is too coarse for.
    border, step = 1 + 2.0**-24, largest_change(np.zeros(1)) * 2.0**-46
    coarse = np.float32(border / shares["c"])
    rest = border - np.rint(float(coarse) * shares["c"] / step) * step
    sent = {"a": np.float32(0), "b": np.float32(rest / shares["b"]), "c": coarse}
    results = set()
    for order in itertools.permutations(sent):
        average = make_combiner(SHARED, federation("fedavg"))
        average.begin(1, {"w": np.zeros(1, np.float32)}, capacity)
        for site in order:
            average.accept(site, {"w": np.array([sent[site]])}, weights[site])
        results.add(average.finish()["w"].tobytes())
    assert len(results) == 1


@every_group
@every_strategy
def test_without_a_reply_nothing_changes(name: str, group: str) -> None:
    """A round without replies leaves the arrays as they were, the first round and any later."""
    combiner = make_combiner(group, federation(name))
    current: dict[str, Array] = arrays(0)
    assert digest(play(combiner, current, {})) == digest(current)
    current = play(combiner, current, changes(), 2)
    assert digest(play(combiner, current, {}, 3)) == digest(current)
    assert digest(play(combiner, current, changes(), 4)) != digest(current)


@every_group
@every_strategy
def test_arrays_may_come_from_the_wire(name: str, group: str) -> None:
    """Changes as they lie in a record give the same bits as plain arrays."""
    sent = changes()
    wired = {site: PackedArrays.of(change) for site, change in sent.items()}
    plain = play(make_combiner(group, federation(name)), arrays(0), sent)
    found = play(make_combiner(group, federation(name)), PackedArrays.of(arrays(0)), wired)
    assert digest(found) == digest(plain)


@pytest.mark.parametrize("name", [n for n in STRATEGY_OPTIONS if n not in OPTIMIZERS])
def test_unanimous_sites_have_their_way(name: str) -> None:
    """When all sites send one change, the result is old plus that change."""
    change = arrays(7, 0.01)
    found = play(make_combiner(SHARED, federation(name)), arrays(0), dict.fromkeys(SITES, change))
    for key, old in arrays(0).items():
        np.testing.assert_allclose(found[key], old + change[key], rtol=1e-6, atol=1e-8)


@every_strategy
def test_one_site_alone_has_its_way_with_the_average(name: str) -> None:
    """A single reply can be combined by every strategy, a head's only site for one."""
    sent = {"c": changes()["c"]}
    found = play(make_combiner("head:ct", federation(name)), arrays(0), sent)
    if name not in OPTIMIZERS:
        for key, old in arrays(0).items():
            np.testing.assert_allclose(found[key], old + sent["c"][key], rtol=1e-6, atol=1e-8)


def test_every_strategy_of_the_study_is_here() -> None:
    """The tables of this file and of the study name the same strategies."""
    assert {*strategies._FLOWER, *strategies._FOLDED} == set(STRATEGY_OPTIONS)
    assert set(strategies._OPTIMIZERS) == set(OPTIMIZERS) <= set(strategies._FLOWER)
    for name in STRATEGY_OPTIONS:
        folded = isinstance(make_combiner(SHARED, federation(name)), FoldingAverage)
        assert folded == (name in strategies._FOLDED)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_fedavg_is_flowers_and_numpys(name: str) -> None:
    """The folded average equals Flower's own FedAvg and NumPy's average within 1e-6."""
    current, sent = arrays(0), changes()
    found = play(make_combiner(SHARED, federation(name)), current, sent)
    replies = []
    for site, change in sent.items():
        local = {key: FlowerArray(np.asarray(current[key] + change[key])) for key in SHAPES}
        weight = MetricRecord({"num-examples": WEIGHTS[site]})
        content = RecordDict({"arrays": ArrayRecord(local), "metrics": weight})
        replies.append(Message(content, dst_node_id=1, message_type="train"))
    flowers, _ = FedAvg().aggregate_train(1, replies)
    assert flowers is not None
    mean = mean_of(sent)
    for key, old in current.items():
        np.testing.assert_allclose(found[key], flowers[key].numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[key], old + mean[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_statistics_are_averaged_where_the_strategy_is_an_optimizer(name: str) -> None:
    """Running means and variances get FedAvg's bits, never a step along their change."""
    found = play(make_combiner(STATISTICS, federation(name)), arrays(0), changes())
    average = play(make_combiner(STATISTICS, federation("fedavg")), arrays(0), changes())
    assert digest(found) == digest(average)
    other = play(make_combiner(SHARED, federation(name)), arrays(0), changes())
    if name != "fedavgm":  # whose first step is the mean
        assert digest(other) != digest(average)


def test_fedadam_follows_its_formula() -> None:
    """Three rounds equal Reddi et al. (2021), algorithm 2, by hand in float64.

    With v starting at zero, and the step size corrected for bias as Flower does it: Kingma and
    Ba (2015), at the exponent of the next round. What is kept between rounds stays float32.
    """
    eta, beta_1, beta_2, tau = 0.01, 0.8, 0.95, 1e-3
    told = federation("fedadam", eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
    combiner = make_combiner(SHARED, told)
    assert isinstance(combiner, strategies.FlowerStrategy)
    current: dict[str, Array] = arrays(0)
    m: dict[str, Array] = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    v = dict(m)
    for number in (1, 2, 3):
        sent = changes(number)
        delta = mean_of(sent)
        old, current = current, play(combiner, current, sent, number)
        rate = eta * np.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
        for key in SHAPES:
            m[key] = beta_1 * m[key] + (1 - beta_1) * delta[key]
            v[key] = beta_2 * v[key] + (1 - beta_2) * delta[key] ** 2
            expected = old[key] + rate * m[key] / (np.sqrt(v[key]) + tau)
            np.testing.assert_allclose(current[key], expected, rtol=1e-5, atol=1e-6)
        for kept in (combiner._strategy.m_t, combiner._strategy.v_t):  # type: ignore[attr-defined]
            assert {key: value.dtype for key, value in kept.items()} == dict.fromkeys(
                SHAPES, np.dtype(np.float32)
            )


@pytest.mark.parametrize("name", ["fedyogi", "fedadagrad"])
def test_yogi_and_adagrad_follow_their_formulas(name: str) -> None:
    """Three rounds equal Reddi et al. (2021), algorithm 2, by hand, with v starting at zero."""
    eta, beta_1, beta_2, tau = 0.01, 0.8 if name == "fedyogi" else 0.0, 0.95, 1e-3
    options = {"eta": eta, "tau": tau}
    if name == "fedyogi":
        options |= {"beta_1": beta_1, "beta_2": beta_2}
    combiner = make_combiner(SHARED, federation(name, **options))
    current: dict[str, Array] = arrays(0)
    m: dict[str, Array] = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    v = dict(m)
    for number in (1, 2, 3):
        sent = changes(number)
        delta = mean_of(sent)
        old, current = current, play(combiner, current, sent, number)
        for key in SHAPES:
            square = delta[key] ** 2
            m[key] = beta_1 * m[key] + (1 - beta_1) * delta[key]
            v[key] = (
                v[key] + square
                if name == "fedadagrad"
                else v[key] - (1 - beta_2) * square * np.sign(v[key] - square)
            )
            expected = old[key] + eta * m[key] / (np.sqrt(v[key]) + tau)
            np.testing.assert_allclose(current[key], expected, rtol=1e-5, atol=1e-6)


def test_fedavgm_follows_its_formula() -> None:
    """Three rounds equal server momentum (Hsu et al. 2019) by hand: v = beta v + delta."""
    told = federation("fedavgm", server_learning_rate=0.7, server_momentum=0.9)
    combiner = make_combiner(SHARED, told)
    current: dict[str, Array] = arrays(0)
    v: dict[str, Array] = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    for number in (1, 2, 3):
        sent = changes(number)
        delta = mean_of(sent)
        old, current = current, play(combiner, current, sent, number)
        for key in SHAPES:
            v[key] = 0.9 * v[key] + delta[key]
            expected = old[key] + 0.7 * v[key]
            np.testing.assert_allclose(current[key], expected, rtol=1e-5, atol=1e-6)


def test_median_and_trimmed_mean_are_numpys() -> None:
    """They equal the median, and the mean without the lowest and highest of five, unweighted."""
    sent = changes()
    median = play(make_combiner(SHARED, federation("fedmedian")), arrays(0), sent)
    trimmed = play(make_combiner(SHARED, federation("fedtrimmedavg", beta=0.2)), arrays(0), sent)
    for key, old in arrays(0).items():
        stacked = np.stack([sent[site][key] for site in SITES]).astype(np.float64)
        np.testing.assert_allclose(median[key], old + np.median(stacked, axis=0), atol=1e-7)
        middle = np.sort(stacked, axis=0)[1:-1].mean(axis=0)
        np.testing.assert_allclose(trimmed[key], old + middle, atol=1e-7)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum"])
def test_robust_strategies_withstand_one_liar(name: str) -> None:
    """A site that sends a thousand times the opposite moves the result as little as the others."""
    sent = changes()
    honest = mean_of({site: sent[site] for site in SITES[1:]})
    sent["a"] = {key: np.asarray(-1000 * value, np.float32) for key, value in honest.items()}
    found = play(make_combiner(SHARED, federation(name)), arrays(0), sent)
    for key, old in arrays(0).items():
        assert (np.abs(found[key] - old) < 0.05).all()


def test_krum_sees_small_changes_of_large_weights() -> None:
    """A liar close by is found too: distances are those of changes, not of whole weights."""
    rng = np.random.default_rng(0)
    current = {"w": rng.normal(size=100_000).astype(np.float32)}
    common = rng.normal(scale=1e-5, size=100_000)
    for _ in range(10):
        sent = {
            site: {"w": (common + rng.normal(scale=3e-6, size=100_000)).astype(np.float32)}
            for site in SITES[1:]
        }
        liar = {"a": {"w": (-3 * common).astype(np.float32)}}
        krum = make_combiner(SHARED, federation("krum", num_malicious_nodes=1))
        step = play(krum, current, liar | sent)["w"] - current["w"]
        assert np.dot(step, common) > 0


@every_group
@every_strategy
def test_a_combiner_goes_on_from_its_state(name: str, group: str) -> None:
    """One that is made anew each round, given the last one's state, ends with the same bits."""
    told = federation(name)
    whole = make_combiner(group, told)
    current, resumed = arrays(0), arrays(0)
    state: dict[str, Array] = {}
    for number in (1, 2, 3, 4):
        sent = changes(number)
        current = play(whole, current, sent, number)
        fresh = make_combiner(group, told)
        fresh.restore(state, list(SHAPES))
        resumed = play(fresh, resumed, sent, number)
        state = {key: np.array(value) for key, value in fresh.state().items()}
        assert digest(resumed) == digest(current)
        assert digest(state) == digest(whole.state())


@every_strategy
def test_what_is_carried_is_in_the_state(name: str) -> None:
    """Momentum and moments are kept, an array each; other strategies have nothing to keep."""
    combiner = make_combiner(SHARED, federation(name))
    assert combiner.state() == {}
    play(combiner, arrays(0), changes())
    moments = {"fedavgm": ["momentum"]} | {n: ["m_t", "v_t"] for n in OPTIMIZERS[1:]}
    expected = {f"{moment}/{key}" for moment in moments.get(name, []) for key in SHAPES}
    assert set(combiner.state()) == expected
    for key, value in combiner.state().items():
        assert value.shape == SHAPES[key.split("/")[1]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_its_state_an_optimizer_would_end_elsewhere(name: str) -> None:
    """The state is what makes the difference, so that the law above is about something."""
    told = federation(name)
    whole = make_combiner(SHARED, told)
    current = play(whole, arrays(0), changes(1), 1)
    forgetful = play(make_combiner(SHARED, told), current, changes(2), 2)
    assert digest(forgetful) != digest(play(whole, current, changes(2), 2))


@every_group
@every_strategy
def test_half_precision_is_rounded_at_the_site_and_nowhere_else(name: str, group: str) -> None:
    """Changes in float16 give the bits of the same values in float32."""
    half = {s: {k: v.astype(np.float16) for k, v in c.items()} for s, c in changes().items()}
    full = {s: {k: v.astype(np.float32) for k, v in c.items()} for s, c in half.items()}
    found = play(make_combiner(group, federation(name)), arrays(0), half)
    assert digest(found) == digest(play(make_combiner(group, federation(name)), arrays(0), full))
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


def test_the_average_of_half_precision_is_within_its_rounding() -> None:
    """Each change is off by at most 2**-11 of itself, and so is their mean of magnitudes."""
    sent = changes()
    half = {s: {k: v.astype(np.float16) for k, v in c.items()} for s, c in sent.items()}
    zero = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
    found = play(make_combiner(SHARED, federation("fedavg")), zero, half)
    mean = mean_of(sent)
    sizes = mean_of({s: {k: np.abs(v) for k, v in c.items()} for s, c in sent.items()})
    for key in SHAPES:
        assert (np.abs(found[key] - mean[key]) <= sizes[key] * 2.0**-11 + 2.0**-25).all()
