"""Laws of the one door out."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from client.egress import REFUSALS, refusal, release
from common import errors, metrics
from common.arrays import Array
from common.errors import EgressError, RarefedError
from common.messages import (
    Counted,
    Declaration,
    Kind,
    Order,
    Reply,
    Splits,
    Training,
    order_from_record,
    order_to_record,
    reply_to_record,
)
from common.study import Study

PRIVATE = "/data/Jane Doe/scan.png"
COUNTS = Counted(patients=2, images=3)
DECLARATION = Declaration(
    software="1",
    base="",
    tasks={"ct": Splits(train=COUNTS, validation=COUNTS, test=COUNTS)},
    unreadable={"ct": 0},
    patients=2,
)
TRAINED = Training(steps=3, loss=0.5, seconds=1.0, evaluation_seconds=0.1)
Groups = dict[str, dict[str, Array]]


def arrays() -> Groups:
    rng = np.random.default_rng(0)
    return {
        "shared": {
            "a": rng.normal(size=(3, 4)).astype(np.float32),
            "b": np.array(1.5, np.float32),
        },
        "head:ct": {"h": rng.normal(size=5).astype(np.float32)},
    }


def state() -> dict[str, Array]:
    logits = np.random.default_rng(1).normal(size=(6, 2))
    seen = metrics.update(metrics.zero(2, 1), logits, np.arange(6) % 2, 1)
    return metrics.to_arrays(metrics.with_patients(seen, 4))


@pytest.fixture
def order(make_study: Callable[..., Study]) -> Order:
    return Order("train", make_study(), 2, arrays(), "0" * 64, None)


def good(order: Order, *, groups: Groups | None = None) -> Reply:
    """Return a reply to a training order that is what was asked for, but for what is given."""
    groups = arrays() if groups is None else groups
    return Reply(
        site="site-a",
        digest=order.study.digest(),
        round=order.round,
        training=TRAINED,
        groups=groups,
        weights=dict.fromkeys(groups, 2.0),
        metrics={("ct", "validation"): state(), ("ct", "test"): state()},
    )


def test_a_good_reply_passes_unchanged(order: Order) -> None:
    """What was asked for leaves as it is, whether the order came over the wire or not."""
    reply = good(order)
    assert release(reply, order) is reply
    assert release(reply, order_from_record(order_to_record(order))) is reply


def test_other_orders_are_answered_without_arrays(order: Order) -> None:
    """A check brings a declaration, an evaluation metrics, and neither a change."""
    check, look = order._replace(kind="check", groups={}), order._replace(kind="evaluate")
    declared = Reply("site-a", order.study.digest(), 0, declaration=DECLARATION)
    measured = good(order)._replace(groups={}, weights={})
    assert release(declared, check) is declared
    assert release(measured, look) is measured


def smuggled_arrays() -> Iterator[tuple[str, Groups]]:
    """Yield groups that differ in one thing from what was asked for."""
    good = arrays()
    shared = good["shared"]
    pixels = np.zeros((8, 8), np.float32)
    yield "extra array", good | {"shared": shared | {"pixels": pixels}}
    yield "array under another name", good | {"shared": {"a": shared["a"], "c": shared["b"]}}
    yield "missing array", good | {"shared": {"a": shared["a"]}}
    yield "extra group", good | {"head:mr": {"h": pixels}}
    yield "group under another name", {"shared": shared, "head:mr": good["head:ct"]}
    yield "missing group", {"shared": shared}
    yield "no group", {}
    for dtype in (np.float64, np.float16, np.int64, np.uint8, np.bool_):
        wrong = shared["a"].astype(dtype)
        yield f"{dtype.__name__} array", good | {"shared": shared | {"a": wrong}}
    yield "text array", good | {"shared": shared | {"a": np.full((3, 4), "Jane Doe")}}
    yield "turned array", good | {"shared": shared | {"a": shared["a"].T}}
    yield "longer array", good | {"head:ct": {"h": np.zeros(6, np.float32)}}
    yield "scalar with a dimension", good | {"shared": shared | {"b": np.zeros(1, np.float32)}}
    for value in (np.nan, np.inf, -np.inf):
        broken = shared["a"].copy()
        broken[1, 2] = value
        yield f"{value}", good | {"shared": shared | {"a": broken}}


ARRAYS = dict(smuggled_arrays())


@pytest.mark.parametrize("what", list(ARRAYS))
def test_other_arrays_are_held_back(what: str, order: Order) -> None:
    """Nothing leaves but float32 arrays of the names and shapes that came, all finite."""
    with pytest.raises(EgressError):
        release(good(order, groups=ARRAYS[what]), order)


@pytest.mark.parametrize("kind", ["check", "evaluate"])
def test_arrays_that_nobody_asked_for_are_held_back(kind: Kind, order: Order) -> None:
    """Only an order to train is answered with a change."""
    asked = order._replace(kind=kind)
    reply = good(order)._replace(metrics={}, training=None)
    with pytest.raises(EgressError):
        release(reply, asked)
    with pytest.raises(EgressError):
        release(reply._replace(groups={}), asked)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"shared": 2.0},
        {"shared": 2.0, "head:ct": 2.0, "71": 2.0},
        {"shared": 2.0, "head:ct": float("nan")},
    ],
)
def test_weights_are_one_finite_number_a_group(weights: dict[str, float], order: Order) -> None:
    """A weight too many, too few or without a value holds the reply back."""
    with pytest.raises(EgressError):
        release(good(order)._replace(weights=weights), order)


@pytest.mark.parametrize("key", [("ct", "train"), ("mr", "test"), ("ct", PRIVATE), ("", "")])
def test_unknown_metrics_are_held_back(key: tuple[str, str], order: Order) -> None:
    """Metrics of a task outside the study, or of another split than the held-out ones, stay."""
    with pytest.raises(EgressError):
        release(good(order)._replace(metrics={key: state()}), order)


def smuggled_states() -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield metric states that differ in one thing from what a site may report."""
    good = state()
    yield "extra array", good | {"pixels": np.zeros((8, 8))}
    yield "missing array", {name: good[name] for name in good if name != "sums"}
    yield "other dtype", good | {"confusion": good["confusion"].astype(np.float64)}
    yield "other shape", good | {"confusion": np.zeros((3, 3), np.int64)}
    yield "NaN", good | {"sums": np.array([np.nan, 0.0])}
    yield "numbers that do not add up", good | {"counts": np.array([4, 7])}


STATES = dict(smuggled_states())


@pytest.mark.parametrize("what", list(STATES))
def test_metrics_are_states_to_the_last_array(what: str, order: Order) -> None:
    """Under the name of a metric nothing leaves but a state that agrees with itself."""
    with pytest.raises(EgressError):
        release(good(order)._replace(metrics={("ct", "test"): STATES[what]}), order)


def test_figures_leave_only_where_they_belong(order: Order) -> None:
    """A declaration answers a check alone, and figures of a training never do."""
    check = order._replace(kind="check", groups={})
    declared = Reply("site-a", order.study.digest(), 0, declaration=DECLARATION)
    for reply, asked in (
        (good(order)._replace(declaration=DECLARATION), order),
        (declared._replace(training=TRAINED), check),
        (declared._replace(metrics={("ct", "test"): state()}), check),
    ):
        with pytest.raises(EgressError):
            release(reply, asked)


@pytest.mark.parametrize("code", ["jane_doe", "x", "errors"])
def test_an_unknown_reason_is_held_back(code: str, order: Order) -> None:
    """A reason leaves only if it is the code of an error of the tree."""
    check = order._replace(kind="check", groups={})
    reply = Reply("site-a", order.study.digest(), 0, refusal=code)
    with pytest.raises(EgressError):
        release(reply, check)
    assert release(reply._replace(refusal="image"), check).refusal == "image"


def test_every_fault_is_listed(order: Order) -> None:
    """Faults of arrays, metrics and reasons come in one message, which quotes no value."""
    groups = ARRAYS["extra array"] | {"head:ct": {"h": np.zeros(6, np.float32)}}
    reply = good(order, groups=groups)._replace(
        refusal="jane_doe", metrics={("ct", "train"): state(), ("ct", "test"): STATES["NaN"]}
    )
    with pytest.raises(EgressError) as held:
        release(reply, order)
    for named in ("reason", "shared", "head:ct", "task or split", "sums"):
        assert named in held.value.message
    assert "jane_doe" not in held.value.message


CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RarefedError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_refusal_says_its_code_and_nothing_else(kind: type[RarefedError]) -> None:
    """Whatever the error tells the hospital, the reply carries the code of its class alone."""
    error = kind(f"cannot read {PRIVATE}", remedy=f"remove {PRIVATE}")
    reply = refusal("site-a", "0" * 64, 3, error)
    assert reply == Reply(site="site-a", digest="0" * 64, round=3, refusal=kind.code)
    assert kind.code in REFUSALS
    header = str(reply_to_record(reply).config_records["reply"]["header"])
    assert "Jane" not in header
    assert kind.code in header
