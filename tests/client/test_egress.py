"""Laws of the one door out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from client.config import Limits
from client.egress import REFUSALS, Own, refusal, release
from client.patients import by_patient, cases_of
from client.suppression import behind_of, suppress
from common import errors, metrics, metrics_wire
from common.arrays import Array
from common.chained_log import Head
from common.errors import EgressError, RarefedError
from common.held_out import OF_PATIENTS
from common.messages import Kind, Order, Reply, order_from_record, order_to_record, reply_to_record
from common.statements import Counted, Declaration, Splits, Training
from common.study import Study
from common.update_norm import update_norm
from common.versions import software_version
from simulations.benches.egress_fuzz import fuzz
from simulations.benches.egress_mutations import MUTATIONS

PRIVATE = "/data/Jane Doe/scan.png"
LIMITS = Limits()
COUNTS = Counted(patients=20, images=40)
DECLARATION = Declaration(
    software=software_version(),
    base="",
    tasks={"ct": Splits(train=COUNTS, validation=COUNTS, test=COUNTS)},
    unreadable={"ct": 0},
    patients=20,
)
TRAINED = Training(steps=3, loss=0.5, seconds=1.0, evaluation_seconds=0.1)
NOT_TRAINED = Training(steps=0, loss=0.0, seconds=0.0, evaluation_seconds=0.1)
LABELS = np.arange(40) // 2 % 2
PATIENTS = [f"{patient}" for patient in range(20) for _ in range(2)]
BEHIND = behind_of(LABELS.tolist(), PATIENTS, 2)
OWN = Own("site-a", DECLARATION, {("ct", "validation"): BEHIND, ("ct", "test"): BEHIND})
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
    logits = np.random.default_rng(1).normal(size=(40, 2))
    seen = metrics.update(metrics.zero(2, 1), logits, LABELS, 1)
    return metrics_wire.to_arrays(metrics.with_patients(seen, 20))


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
        weights=dict.fromkeys(groups, 20.0),
        metrics={("ct", "validation"): state(), ("ct", "test"): state()},
    )


def let_out(reply: Reply, order: Order, limits: Limits = LIMITS, own: Own = OWN) -> Reply:
    return release(reply, order, limits, own)


def fault_of(reply: Reply, order: Order, limits: Limits = LIMITS, own: Own = OWN) -> str:
    """Return why a reply is held back."""
    with pytest.raises(EgressError) as held:
        release(reply, order, limits, own)
    return held.value.message


def declared(order: Order, **changes: Any) -> tuple[Reply, Order]:
    """Return the answer to a check, the declaration changed as told, and the check."""
    check = order._replace(kind="check", round=0, groups={})
    declaration = DECLARATION.model_copy(update=changes)
    return Reply("site-a", order.study.digest(), 0, declaration=declaration), check


def test_a_good_reply_passes_unchanged(order: Order) -> None:
    """What was asked for leaves as it is, whether the order came over the wire or not."""
    reply = good(order)
    assert let_out(reply, order) is reply
    assert let_out(reply, order_from_record(order_to_record(order))) is reply
    assert let_out(reply._replace(metrics={}), order).metrics == {}  # all of them suppressed


def test_other_orders_are_answered_without_arrays(order: Order) -> None:
    """A check brings a declaration, an evaluation metrics, and neither a change."""
    answer, check = declared(order)
    look = order._replace(kind="evaluate")
    measured = good(order)._replace(groups={}, weights={}, training=NOT_TRAINED)
    assert let_out(answer, check) is answer
    assert let_out(measured, look) is measured


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
    hidden = np.ma.masked_array(shared["a"], mask=True)
    yield "masked array", good | {"shared": shared | {"a": hidden}}
    text: Any = "Jane Doe"
    yield "no array", good | {"shared": shared | {"b": text}}
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
    assert fault_of(good(order, groups=ARRAYS[what]), order)


@pytest.mark.parametrize("kind", ["check", "evaluate"])
def test_arrays_that_nobody_asked_for_are_held_back(kind: Kind, order: Order) -> None:
    """Only an order to train is answered with a change."""
    asked = order._replace(kind=kind)
    reply = good(order)._replace(metrics={}, training=None)
    assert "groups" in fault_of(reply, asked)
    assert "weights" in fault_of(reply._replace(groups={}), asked)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"shared": 20.0},
        {"shared": 20.0, "head:ct": 20.0, "71": 2.0},
        *({"shared": 20.0, "head:ct": float(w)} for w in ("nan", "inf", "-1", "0", "21", "19.99")),
        {"shared": 20.0, "head:ct": "20"},
        {"shared": 20.0, "head:ct": None},
    ],
)
def test_weights_are_those_that_were_declared(weights: dict[str, Any], order: Order) -> None:
    """A weight too many, too few, no number or other than declared holds the reply back."""
    assert "weight" in fault_of(good(order)._replace(weights=weights), order)


@pytest.mark.parametrize("key", [("ct", "train"), ("mr", "test"), ("ct", PRIVATE), ("", "")])
def test_unknown_metrics_are_held_back(key: tuple[str, str], order: Order) -> None:
    """Metrics of a task outside the study, or of another split than the held-out ones, stay."""
    assert "not asked for" in fault_of(good(order)._replace(metrics={key: state()}), order)


def smuggled_states() -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield metric states that differ in one thing from what a site may report."""
    good = state()
    yield "extra array", good | {"pixels": np.zeros((8, 8))}
    yield "missing array", {name: good[name] for name in good if name != "sums"}
    yield "other dtype", good | {"confusion": good["confusion"].astype(np.float64)}
    yield "other shape", good | {"confusion": np.zeros((3, 3), np.int64)}
    yield "NaN", good | {"sums": np.array([np.nan, 0.0])}
    yield "numbers that do not add up", good | {"counts": np.array([20, 41])}
    yield "masked array", good | {"sums": np.ma.masked_array(good["sums"], mask=True)}


STATES = dict(smuggled_states())


@pytest.mark.parametrize("what", list(STATES))
def test_metrics_are_states_to_the_last_array(what: str, order: Order) -> None:
    """Under the name of a metric nothing leaves but a state that agrees with itself."""
    assert "ct, test" in fault_of(
        good(order)._replace(metrics={("ct", "test"): STATES[what]}), order
    )


def test_figures_leave_only_where_they_belong(order: Order) -> None:
    """A declaration answers a check alone, and figures of a training never do."""
    answer, check = declared(order)
    look = order._replace(kind="evaluate")
    measured = good(order)._replace(groups={}, weights={})
    for reply, asked in (
        (good(order)._replace(declaration=DECLARATION), order),
        (answer._replace(training=TRAINED), check),
        (answer._replace(metrics={("ct", "test"): state()}), check),
        (measured, look),
    ):
        assert "asked for" in fault_of(reply, asked)


@pytest.mark.parametrize("code", ["jane_doe", "x", "errors"])
def test_an_unknown_reason_is_held_back(code: str, order: Order) -> None:
    """A reason leaves only if it is the code of an error of the tree, and alone."""
    reply = Reply("site-a", order.study.digest(), 2, refusal=code)
    assert "no known code" in fault_of(reply, order)
    known = reply._replace(refusal="image")
    assert let_out(known, order) is known
    assert "more than a reason" in fault_of(good(order)._replace(refusal="image"), order)


def test_the_head_of_the_audit_log_is_not_the_replys_to_tell(order: Order) -> None:
    """The log itself says it, behind the door: whatever a reply brings along is held back."""
    head = Head(0, "0" * 64)
    assert "the log alone" in fault_of(good(order)._replace(audit=head), order)
    code = Reply("site-a", order.study.digest(), 2, refusal="image", audit=head)
    assert "more than a reason" in fault_of(code, order)


@pytest.mark.parametrize("field", ["site", "digest", "round"])
def test_a_reply_says_whose_and_what_it_is(field: str, order: Order) -> None:
    """Site, study and round are those that are known here, to the letter."""
    odd: Any
    for odd in (PRIVATE, "site-b", "a" * 64, "", 3, True, None):
        assert fault_of(good(order)._replace(**{field: odd}), order)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"software": PRIVATE}, "software"),
        ({"software": "x" * 1000}, "not of its form"),
        ({"base": PRIVATE}, "not of its form"),
        ({"patients": 21}, "not that of this site"),
        ({"patients": "Jane Doe"}, "not of its form"),
        ({"tasks": {}}, "not that of this site"),
        ({"tasks": {**DECLARATION.tasks, "mr": DECLARATION.tasks["ct"]}}, "none of the study"),
        ({"tasks": {**DECLARATION.tasks, "Jane Doe": DECLARATION.tasks["ct"]}}, "not of its form"),
        ({"unreadable": {"jane": 1}}, "other tasks"),
        ({"each_image": ("jane",)}, "not known"),
        ({"each_image": ("Jane Doe",)}, "not of its form"),
        ({"each_image": ("ct",)}, "not that of this site"),
        ({"unreadable": {"ct": -1}}, "not of its form"),
    ],
)
def test_a_declaration_is_this_sites_own(change: dict[str, Any], why: str, order: Order) -> None:
    """Its texts are of known forms, its tasks the study's, its numbers those of the data."""
    answer, check = declared(order, **change)
    assert why in fault_of(answer, check)


def test_numbers_are_rounded_where_the_site_says_so(order: Order) -> None:
    """With rounded numbers each one declared is a multiple of five, and the weights follow."""
    limits = Limits(patients="rounded")
    exact = DECLARATION.model_copy(update={"patients": 21})
    rounded = DECLARATION.model_copy(update={"unreadable": {"ct": 5}})
    answer, check = declared(order, patients=21)
    assert let_out(answer, check, LIMITS, OWN._replace(declaration=exact)) is answer
    assert "not rounded" in fault_of(answer, check, limits, OWN._replace(declaration=exact))
    answer, check = declared(order, unreadable={"ct": 5})
    assert let_out(answer, check, limits, OWN._replace(declaration=rounded)) is answer
    assert "steps" in fault_of(good(order), order, limits)
    trained = TRAINED.model_copy(update={"steps": 5})
    assert let_out(good(order)._replace(training=trained), order, limits)


def test_states_may_be_of_numbers_that_were_declared_rounded(order: Order) -> None:
    """A state is exact; the declared numbers may be those of its patients and images, rounded."""
    for patients, images, agrees in ((20, 40, True), (20, 45, False), (25, 40, False)):
        counted = Counted(patients=patients, images=images)
        tasks = {"ct": Splits(train=COUNTS, validation=counted, test=counted)}
        own = OWN._replace(declaration=DECLARATION.model_copy(update={"tasks": tasks}))
        if agrees:
            assert let_out(good(order), order, LIMITS, own)
        else:
            assert "not of this site's patients" in fault_of(good(order), order, LIMITS, own)


@pytest.mark.parametrize(
    "change",
    [{"steps": -1}, {"steps": "Jane"}, {"loss": np.nan}, {"loss": np.inf}, {"seconds": -1.0}],
)
def test_figures_of_a_training_are_of_their_form(change: dict[str, Any], order: Order) -> None:
    """Numbers that are none, and words in their place, stay here."""
    reply = good(order)._replace(training=TRAINED.model_copy(update=change))
    assert "not of their form" in fault_of(reply, order)


def test_no_loss_leaves_a_study_with_privacy(
    make_study: Callable[..., Study], order: Order
) -> None:
    """The mean loss of a training carries no noise, so with privacy it stays here."""
    private = order._replace(study=make_study(privacy={"epsilon": 8.0}))
    reply = good(private)
    assert "the training loss" in fault_of(reply, private)
    quiet = reply._replace(training=TRAINED.model_copy(update={"loss": None}))
    assert let_out(quiet, private) is quiet
    look = private._replace(kind="evaluate")
    measured = quiet._replace(groups={}, weights={}, training=NOT_TRAINED)
    assert let_out(measured, look) is measured


def test_a_reply_is_no_larger_than_the_hospital_allows(order: Order) -> None:
    """Arrays of all groups and states count together, to the byte."""
    large = {"shared": {"w": np.zeros(249_980, np.float32)}}
    asked = order._replace(groups=large)
    reply = good(asked, groups=large)._replace(metrics={}, weights={"shared": 20.0})
    assert let_out(reply, asked, Limits(max_reply_mb=1))
    more = {"shared": {"w": np.zeros(250_000, np.float32)}}
    reply = reply._replace(groups=more)
    asked = asked._replace(groups=more)
    assert "max_reply_mb" in fault_of(reply, asked, Limits(max_reply_mb=1))
    assert let_out(reply, asked, Limits(max_reply_mb=2))


def test_figures_of_few_patients_do_not_pass_by_another_way(order: Order) -> None:
    """What suppression would take out of a reply is held back if it is still in it."""
    labels = [0] * 36 + [1] * 4
    behind = behind_of(labels, PATIENTS, 2)
    seen = metrics.update(metrics.zero(2, 1), np.zeros((40, 2)), np.array(labels), 1)
    few = {("ct", "test"): metrics_wire.to_arrays(metrics.with_patients(seen, 20))}
    own, reply = OWN._replace(behind={("ct", "test"): behind}), good(order)._replace(metrics=few)
    assert "too few patients" in fault_of(reply, order, LIMITS, own)
    assert let_out(suppress(reply, order, LIMITS, own.behind), order, LIMITS, own).metrics == {}
    assert let_out(reply, order, Limits(minimum_patients=2), own) is reply
    bins = Limits(histogram_patients=3)
    assert "a bin of a histogram" in fault_of(good(order), order, bins)
    merged = suppress(good(order), order, bins, OWN.behind)
    assert len(let_out(merged, order, bins).metrics) == 2


def test_a_state_is_of_the_patients_that_are_here(order: Order) -> None:
    """A sound state that counts other patients or classes than the site's is held back."""
    few = behind_of(LABELS[:38].tolist(), PATIENTS[:38], 2)
    own = OWN._replace(behind=dict.fromkeys(OWN.behind, few))
    assert "not of this site's patients" in fault_of(good(order), order, LIMITS, own)


def of_patients(images: Any = None) -> tuple[dict[str, Array], Any]:
    """Return the state of the 20 patients whose images are in ``state()``, and who is behind it."""
    logits = np.random.default_rng(1).normal(size=(40, 2)) if images is None else images
    said, truth = by_patient(logits, LABELS, PATIENTS, "mean", 1)
    seen = metrics.update(metrics.zero(2, 1), said, truth, 1)
    return metrics_wire.to_arrays(metrics.with_patients(seen, 20)), cases_of(BEHIND, 1)


def test_a_state_of_patients_leaves_where_it_belongs(order: Order) -> None:
    """Beside that of its images, of these patients, and where patients have several images."""
    key = ("ct", OF_PATIENTS["test"])
    arrays, behind = of_patients()
    own = OWN._replace(behind={**OWN.behind, key: behind})
    reply = good(order)._replace(metrics={("ct", "test"): state(), key: arrays})
    assert let_out(reply, order, LIMITS, own) is reply
    assert "not asked for" in fault_of(reply, order)
    alone = reply._replace(metrics={key: arrays})
    assert "the state of its images" in fault_of(alone, order, LIMITS, own)
    odd = reply._replace(metrics={("ct", "test"): state(), key: state()})
    assert "not of this site's patients" in fault_of(odd, order, LIMITS, own)
    for name in ("train_patients", "patients", "test_patients_patients"):
        odd = reply._replace(metrics={**reply.metrics, ("ct", name): arrays})
        assert "not asked for" in fault_of(odd, order, LIMITS, own)
    counted = Counted(patients=20, images=40)
    for declared_as, passes in ((counted, True), (Counted(patients=25, images=40), False)):
        splits = Splits(train=COUNTS, validation=COUNTS, test=declared_as)
        declaration = DECLARATION.model_copy(update={"tasks": {"ct": splits}})
        if passes:
            assert let_out(reply, order, LIMITS, own._replace(declaration=declaration))
        else:
            message = fault_of(reply, order, LIMITS, own._replace(declaration=declaration))
            assert "ct, test_patients: not of this site's patients" in message


def test_every_fault_is_listed(order: Order) -> None:
    """Faults of arrays, weights, metrics and names come in one message, which quotes no value."""
    groups = ARRAYS["extra array"] | {"head:ct": {"h": np.zeros(6, np.float32)}}
    reply = good(order, groups=groups)._replace(
        site="jane_doe",
        weights={"shared": 1.0, "head:ct": 7.25},
        metrics={("ct", "train"): state(), ("ct", "test"): STATES["NaN"]},
    )
    message = fault_of(reply, order)
    for named in ("site's name", "shared: other", "head:ct: h", "task or split", "sums", "weight"):
        assert named in message
    assert "jane_doe" not in message
    assert "7.25" not in message


def test_no_malformed_reply_passes() -> None:
    """Of 300 good replies with one thing wrong, each in turn, nothing of it leaves."""
    passed, outcomes = fuzz(300, seed=1)
    assert passed == []
    assert sum(outcomes.values()) == 300 > len(MUTATIONS)


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


def test_a_change_leaves_no_longer_than_the_study_allows(make_study: Callable[..., Study]) -> None:
    """What training has not shortened to the bound is held back, whatever each array looks like."""
    norm = update_norm(arrays())
    for bound, passes in ((norm, True), (0.99 * norm, False)):
        study = make_study(federation={"update_norm": bound})
        order = Order("train", study, 2, arrays(), "0" * 64, None)
        if passes:
            assert let_out(good(order), order)
        else:
            assert "longer than the study allows" in fault_of(good(order), order)
