"""Laws of the coordinator's door: one wrong thing, and a reply is not used."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

from common.arrays import Array
from common.attention import ATTENTION, FIGURES, to_arrays
from common.chained_log import Head
from common.errors import ReplyError
from common.messages import (
    Order,
    Reply,
    order_from_record,
    order_to_record,
    reply_from_record,
    reply_to_record,
)
from common.statements import Counted, Declaration, Splits
from common.study import Study
from common.update_norm import update_norm
from server.exact_sum import largest_change
from server.ingress import admit, attention_of, head_fault
from server.roster import Member

CURRENT: dict[str, dict[str, Array]] = {
    "shared": {
        "w": np.array([[1.0, -2.0], [0.5, 0.25]], np.float32),
        "scalar": np.array(0.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
    },
    "head:ct": {"heads.ct.bias": np.zeros(2, np.float32)},
}
HELD_OUT = Counted(patients=2, images=4)
TASK = Splits(train=Counted(patients=10, images=30), validation=HELD_OUT, test=HELD_OUT)
DECLARED = Declaration(software="1", base="", tasks={"ct": TASK}, unreadable={}, patients=10)
MEMBER = Member(1, "hospital-1", DECLARED, "")
Make = Callable[..., Any]
Spoil = Callable[[Reply], Reply]


@pytest.fixture
def order(make_study: Callable[..., Study]) -> Order:
    return Order("train", make_study(), 2, CURRENT, "ab" * 32, None)


@pytest.fixture
def reply(order: Order, make_state: Make) -> Reply:
    """An honest reply of one site."""
    return Reply(
        site="hospital-1",
        digest=order.study.digest(),
        round=2,
        groups={
            group: {name: np.asarray(value * np.float32(0.01)) for name, value in arrays.items()}
            for group, arrays in CURRENT.items()
        },
        weights={"shared": 10.0, "head:ct": 10.0},
        metrics={("ct", split): make_state(2, 1) for split in ("validation", "test")},
    )


def refusal(reply: Reply, order: Order, member: Member = MEMBER) -> str:
    """Return why a reply is refused, the same as plain arrays and as they come over the wire."""
    with pytest.raises(ReplyError) as plain:
        admit(reply, order, member)
    with pytest.raises(ReplyError) as wired:
        admit(reply_from_record(reply_to_record(reply)), order, member)
    assert wired.value.message == plain.value.message
    return plain.value.message


def test_a_good_reply_passes(order: Order, reply: Reply) -> None:
    """An honest reply passes as plain arrays and over the wire; its states come back."""
    wired_order = order_from_record(order_to_record(order))
    for told, sent in (
        (order, reply),
        (wired_order, reply_from_record(reply_to_record(reply))),
    ):
        states = admit(sent, told, MEMBER)
        assert set(states) == {("ct", "validation"), ("ct", "test")}
        assert {(state.n_patients, state.n_images) for state in states.values()} == {(2, 4)}


def test_an_evaluation_needs_no_arrays(order: Order, reply: Reply) -> None:
    """The last exchange asks for metrics alone."""
    told = order._replace(kind="evaluate", round=2)
    assert admit(reply._replace(groups={}, weights={}), told, MEMBER)
    assert "not on the images" in refusal(
        reply._replace(groups={}, weights={}),
        told,
        Member(1, "hospital-1", DECLARED.model_copy(update={"tasks": {"ct": other_counts()}}), ""),
    )


def other_counts() -> Splits:
    return TASK.model_copy(update={"test": Counted(patients=2, images=6)})


def with_array(name: str, value: Array, group: str = "shared") -> Spoil:
    def spoil(reply: Reply) -> Reply:
        changed = {**reply.groups[group], name: value}
        return reply._replace(groups={**reply.groups, group: changed})

    return spoil


def without_array(reply: Reply) -> Reply:
    rest = {name: value for name, value in reply.groups["shared"].items() if name != "w"}
    return reply._replace(groups={**reply.groups, "shared": rest})


def with_weight(value: float, group: str = "shared") -> Spoil:
    return lambda reply: reply._replace(weights={**reply.weights, group: value})


def with_state(name: str, value: Array) -> Spoil:
    def spoil(reply: Reply) -> Reply:
        state = {**reply.metrics["ct", "test"], name: value}
        return reply._replace(metrics={**reply.metrics, ("ct", "test"): state})

    return spoil


def w(value: float) -> Array:
    return np.array([[value, 0.0], [0.0, 0.0]], np.float32)


LIMIT = largest_change(CURRENT["shared"]["w"])
GOOD = np.zeros((2, 2), np.float32)

SPOILED: dict[str, tuple[Spoil, str]] = {
    "name": (lambda r: r._replace(site="hospital-2"), "under another site's name"),
    "digest": (lambda r: r._replace(digest="0" * 64), "for another study"),
    "round": (lambda r: r._replace(round=1), "for round 1, not 2"),
    "refusal": (lambda r: r._replace(refusal="diverged"), "hospital-1 refused: diverged"),
    "no groups": (lambda r: r._replace(groups={}), "it has the groups []"),
    "group missing": (
        lambda r: r._replace(groups={"shared": r.groups["shared"]}),
        "it has the groups ['shared'], not",
    ),
    "group extra": (
        lambda r: r._replace(groups={**r.groups, "base": {"x": GOOD}}),
        "it has the groups ['base', 'head:ct', 'shared'], not",
    ),
    "array missing": (without_array, "shared: names missing or unknown: w"),
    "array extra": (with_array("x", GOOD), "shared: names missing or unknown: x"),
    "shape": (with_array("w", np.zeros(4, np.float32)), "w is float32(4,), not float32(2, 2)"),
    "scalar": (with_array("w", np.array(0, np.float32)), "w is float32(), not float32(2, 2)"),
    "float64": (with_array("w", GOOD.astype(np.float64)), "w is float64(2, 2), not float32"),
    "float16": (with_array("w", GOOD.astype(np.float16)), "w is float16(2, 2), not float32"),
    "int64": (with_array("w", GOOD.astype(np.int64)), "w is int64(2, 2), not float32"),
    "integers": (with_array("w", GOOD.astype(np.int32)), "w is int32(2, 2), not float32"),
    "NaN": (with_array("w", w(np.nan)), "shared: w has values that are not finite"),
    "infinity": (with_array("w", w(-np.inf)), "shared: w has values that are not finite"),
    "NaN scalar": (with_array("scalar", np.array(np.nan, np.float32)), "scalar has values"),
    "too large": (with_array("w", w(LIMIT * 1.01)), f"w changed by more than {LIMIT:g}"),
    "too large below zero": (with_array("w", w(-LIMIT * 1.01)), "w changed by more than"),
    "weight 0": (with_weight(0.0), "shared: the weight 0.0 is not above 0"),
    "weight negative": (with_weight(-1.0), "shared: the weight -1.0 is not above 0"),
    "weight NaN": (with_weight(float("nan")), "shared: the weight nan is not above 0"),
    "weight infinite": (with_weight(float("inf")), "shared: the weight inf is not above 0"),
    "weight above": (with_weight(10.5), "the weight 10.5 is not above 0 and at most 10.0"),
    "weight of a head above": (with_weight(11.0, "head:ct"), "head:ct: the weight 11.0"),
    "weight missing": (lambda r: r._replace(weights={"shared": 1.0}), "its weights are not those"),
    "weight extra": (with_weight(1.0, "base"), "its weights are not those of the groups"),
    "metrics of another task": (
        lambda r: r._replace(metrics={**r.metrics, ("mr", "test"): r.metrics["ct", "test"]}),
        "its metrics are not those",
    ),
    "metrics of the training split": (
        lambda r: r._replace(metrics={**r.metrics, ("ct", "train"): r.metrics["ct", "test"]}),
        "its metrics are not those",
    ),
    "metrics in other types": (
        with_state("sums", np.zeros(2, np.float32)),
        "metrics of ct on test: The metrics in the reply are refused",
    ),
    "metrics of fewer patients": (
        with_state("counts", np.array([1, 4])),
        "metrics of ct on test: not on the images that were declared",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_one_fault_is_enough(name: str, order: Order, reply: Reply) -> None:
    """A reply that is right but for one thing is refused, and the thing is named."""
    spoil, expected = SPOILED[name]
    assert expected in refusal(spoil(reply), order)


def test_metrics_of_other_images_are_refused(order: Order, reply: Reply, make_state: Make) -> None:
    """A state that is sound in itself must be of the patients and images declared."""
    for counts in (Counted(patients=2, images=6), Counted(patients=3, images=4)):
        other = make_state(2, 1, counts)
        spoiled = reply._replace(metrics={**reply.metrics, ("ct", "validation"): other})
        assert "metrics of ct on validation: not on the images" in refusal(spoiled, order)


@pytest.mark.parametrize("kept", [(), ("test",), ("validation",)])
def test_a_site_may_suppress_metrics(kept: tuple[str, ...], order: Order, reply: Reply) -> None:
    """Where too few patients stand behind a split its state may be missing, and the rest counts."""
    metrics = {("ct", split): reply.metrics["ct", split] for split in kept}
    sent = reply._replace(metrics=metrics)
    assert set(admit(sent, order, MEMBER)) == set(metrics)
    assert set(admit(reply_from_record(reply_to_record(sent)), order, MEMBER)) == set(metrics)


def asking(order: Order) -> Order:
    """Return the study's last order, of a study that asks for attention."""
    values = order.study.model_dump(mode="json")
    study = Study.parse({**values, "evaluation": {"attention": "hirescam"}})
    return order._replace(kind="evaluate", study=study)


def with_sums(reply: Reply, order: Order, table: Any, task: str = "ct") -> Reply:
    metrics = {**reply.metrics, (task, ATTENTION): to_arrays(table)}
    return reply._replace(groups={}, weights={}, digest=order.study.digest(), metrics=metrics)


def sums(patients: float, share: float = 0.5) -> Any:
    return np.array([[patients, share * patients, 0.2 * patients]] * len(FIGURES))


def test_sums_of_attention_pass_where_they_were_asked_for(order: Order, reply: Reply) -> None:
    """They come back by task; a site may leave them out; they are none of the metric states."""
    last = asking(order)
    sent = with_sums(reply, last, sums(2))
    for came in (sent, reply_from_record(reply_to_record(sent))):
        assert set(admit(came, last, MEMBER)) == {("ct", "validation"), ("ct", "test")}
        (table,) = attention_of(came).values()
        assert np.array_equal(table, sums(2))
    without = sent._replace(metrics=reply.metrics)
    admit(without, last, MEMBER)
    assert attention_of(without) == {}


def test_sums_of_attention_are_looked_at(order: Order, reply: Reply) -> None:
    """Unasked, of other tasks, of too many patients, impossible or alone they are refused."""
    last = asking(order)
    train = reply._replace(metrics={**reply.metrics, ("ct", ATTENTION): to_arrays(sums(2))})
    assert "attention that was not asked for" in refusal(train, order)
    plain = order._replace(kind="evaluate")
    assert "not asked for" in refusal(with_sums(reply, plain, sums(2)), plain)
    assert "not asked for" in refusal(with_sums(reply, last, sums(2), "mr"), last)
    assert "more patients than were declared" in refusal(with_sums(reply, last, sums(3)), last)
    for table in (sums(2, 1.1), sums(1.5), sums(2, np.nan), sums(2).astype(np.float32)):
        assert "attention of ct: " in refusal(with_sums(reply, last, table), last)
    alone = with_sums(reply._replace(metrics={}), last, sums(2))
    assert "without the metrics of its images" in refusal(alone, last)


def test_declared_numbers_may_be_rounded(order: Order, reply: Reply, make_state: Make) -> None:
    """An exact state agrees with numbers that were declared as the nearest fives, and no others."""
    held_out = Counted(patients=10, images=20)
    splits = TASK.model_copy(update={"validation": held_out, "test": held_out})
    member = Member(1, "hospital-1", DECLARED.model_copy(update={"tasks": {"ct": splits}}), "")
    for patients, images, agrees in (
        (10, 20, True), (8, 22, True), (12, 18, True), (7, 20, False), (13, 20, False),
        (10, 17, False), (10, 23, False),
    ):  # fmt: skip
        state = make_state(2, 1, Counted(patients=patients, images=images))
        sent = reply._replace(metrics={("ct", split): state for split in ("validation", "test")})
        if agrees:
            assert admit(sent, order, member)
        else:
            assert "not on the images that were declared" in refusal(sent, order, member)


def with_patients(reply: Reply, make_state: Make, *counts: tuple[str, int, int]) -> Reply:
    """Return the reply with states of so many patients and cases."""
    states = {
        ("ct", name): make_state(2, 1, Counted(patients=patients, images=cases))
        for name, patients, cases in counts
    }
    return reply._replace(metrics={**reply.metrics, **states})


def test_states_of_patients_come_beside_those_of_their_images(
    order: Order, reply: Reply, make_state: Make
) -> None:
    """They pass, plain and over the wire, if they count the patients of the images once."""
    sent = with_patients(reply, make_state, ("test_patients", 2, 2))
    for came in (sent, reply_from_record(reply_to_record(sent))):
        states = admit(came, order, MEMBER)
        assert set(states) == {("ct", "validation"), ("ct", "test"), ("ct", "test_patients")}
        assert states["ct", "test_patients"].n_images == 2
    rounded = {"validation": Counted(patients=5, images=5), "test": Counted(patients=5, images=5)}
    splits = TASK.model_copy(update=rounded)
    member = Member(1, "hospital-1", DECLARED.model_copy(update={"tasks": {"ct": splits}}), "")
    assert len(admit(sent, order, member)) == 3


@pytest.mark.parametrize(
    ("name", "patients", "cases", "why"),
    [
        ("test_patients", 1, 1, "not of the patients of their images"),
        ("test_patients", 3, 3, "not of the patients of their images"),
        ("test_patients", 2, 3, "not of the patients of their images"),
        ("test_patients", 2, 9, "not of the patients of their images"),
        ("train_patients", 2, 2, "not those of the site's tasks"),
        ("test_patients_patients", 2, 2, "not those of the site's tasks"),
    ],
)
def test_other_states_of_patients_are_refused(
    name: str, patients: int, cases: int, why: str, order: Order, reply: Reply, make_state: Make
) -> None:
    """Of more or fewer patients, of several cases each with a positive class, of no split."""
    assert why in refusal(with_patients(reply, make_state, (name, patients, cases)), order)


def test_a_state_of_patients_needs_that_of_its_images(
    order: Order, reply: Reply, make_state: Make
) -> None:
    """Alone it is refused; beside a broken one the fault of that one is told, and no other."""
    sent = with_patients(reply, make_state, ("test_patients", 2, 2))
    alone = {key: state for key, state in sent.metrics.items() if key != ("ct", "test")}
    text = refusal(sent._replace(metrics=alone), order)
    assert "metrics of ct on test_patients: without those of their images" in text
    assert "has 1 faults" in refusal(with_state("counts", np.array([2.0, 4.0]))(sent), order)


@pytest.mark.parametrize(
    ("patients", "cases", "passes"), [(2, 2, True), (2, 3, True), (2, 4, True), (1, 2, False)]
)
def test_a_patient_may_be_a_case_of_each_label(
    patients: int,
    cases: int,
    passes: bool,  # noqa: FBT001 - a parameter of the test
    order: Order,
    reply: Reply,
    make_state: Make,
) -> None:
    """In a task without a positive class there may be more cases than patients, never than images.

    The numbers declared bound them through the state of images, which is held to these.
    """
    tasks = {"mr": TASK}
    member = Member(1, "hospital-1", DECLARED.model_copy(update={"tasks": tasks}), "")
    told = order._replace(kind="evaluate")
    states = {
        ("mr", "test"): make_state(3, None, Counted(patients=2, images=4)),
        ("mr", "test_patients"): make_state(3, None, Counted(patients=patients, images=cases)),
    }
    sent = reply._replace(groups={}, weights={}, metrics=states)
    if passes:
        assert len(admit(sent, told, member)) == 2
    else:
        assert "not of the patients" in refusal(sent, told, member)


@pytest.mark.parametrize("data", [b"", b"rubbish", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x03\x00((("])
@pytest.mark.parametrize("where", ["group", "metrics"])
def test_bytes_that_are_no_array_are_refused(
    data: bytes, where: str, order: Order, reply: Reply
) -> None:
    """Foreign bytes in place of a pack cost the site the round, and not the coordinator."""
    foreign = FlowerArray("uint8", (len(data),), "numpy.ndarray", data)
    record = reply_to_record(reply)
    record["shared" if where == "group" else "metrics/ct/test"] = ArrayRecord({"0": foreign})
    with pytest.raises(ReplyError, match="arrays cannot be read"):
        admit(reply_from_record(record), order, MEMBER)


def test_limits_belong_to_what_is_allowed(order: Order, reply: Reply) -> None:
    """The largest change and the declared weight themselves pass, and so does any less."""
    admit(with_array("w", w(LIMIT))(reply), order, MEMBER)
    admit(with_array("w", w(-LIMIT))(reply), order, MEMBER)
    admit(with_weight(1e-3)(reply), order, MEMBER)


@pytest.mark.parametrize(("weighting", "most"), [("patients", 10), ("images", 30), ("equal", 1)])
def test_a_weight_is_bounded_as_the_study_weighs(
    weighting: str, most: float, make_study: Callable[..., Study], order: Order, reply: Reply
) -> None:
    """What a site may weigh at most is what it declared, in the unit of the study."""
    told = order._replace(study=make_study(federation={"weighting": weighting}))
    sent = reply._replace(digest=told.study.digest())
    exact = sent._replace(weights=dict.fromkeys(sent.weights, float(most)))
    admit(exact, told, MEMBER)
    text = refusal(with_weight(most + 0.5)(exact), told)
    assert f"shared: the weight {most + 0.5} is not above 0 and at most {float(most)}" in text


def test_all_faults_are_told_at_once(order: Order, reply: Reply) -> None:
    """Name, study, round, arrays, weights and metrics: everything wrong is in one refusal."""
    chosen = ("name", "digest", "round", "NaN", "weight 0", "metrics of fewer patients")
    spoiled = with_array("heads.ct.bias", np.zeros(3, np.float32), "head:ct")(reply)
    for name in chosen:
        spoiled = SPOILED[name][0](spoiled)
    text = refusal(spoiled, order)
    assert "has 7 faults" in text
    assert "heads.ct.bias is float32(3,), not float32(2,)" in text
    for name in chosen:
        assert SPOILED[name][1] in text


@pytest.mark.parametrize("agreed", ["float32", "float16"])
@pytest.mark.parametrize("sent", ["float32", "float16", "float64", "int16"])
def test_updates_come_in_the_type_that_the_study_says(
    agreed: str, sent: str, make_study: Callable[..., Study], order: Order, reply: Reply
) -> None:
    """Half precision passes exactly where it was agreed on, and then nothing else does."""
    told = order._replace(study=make_study(federation={"update_dtype": agreed}))
    groups = {
        group: {name: value.astype(sent) for name, value in arrays.items()}
        for group, arrays in reply.groups.items()
    }
    cast = reply._replace(digest=told.study.digest(), groups=groups)
    if sent == agreed:
        assert admit(cast, told, MEMBER)
        assert admit(reply_from_record(reply_to_record(cast)), told, MEMBER)
    else:
        text = refusal(cast, told)
        assert f"shared: w is {np.dtype(sent)}(2, 2), not {agreed}(2, 2)" in text
        assert "has 4 faults" in text


@pytest.mark.parametrize(
    ("value", "why"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (60000.0, "changed by more than 8192")],
)
def test_half_precision_is_looked_at_as_closely(
    value: float, why: str, make_study: Callable[..., Study], order: Order, reply: Reply
) -> None:
    """What does not fit its range, or is too large, is refused as in single precision."""
    told = order._replace(study=make_study(federation={"update_dtype": "float16"}))
    groups = {
        group: {name: array.astype(np.float16) for name, array in arrays.items()}
        for group, arrays in reply.groups.items()
    }
    groups["shared"]["w"][0, 1] = value
    cast = reply._replace(digest=told.study.digest(), groups=groups)
    assert why in refusal(cast, told)


def test_a_change_is_no_longer_than_the_study_allows(
    make_study: Callable[..., Study], order: Order, reply: Reply
) -> None:
    """A change as long as the bound passes, over all of its arrays; one beyond it is refused."""
    norm = update_norm(reply.groups)
    for bound, passes in ((norm, True), (0.99 * norm, False)):
        told = order._replace(study=make_study(federation={"update_norm": bound}))
        sent = reply._replace(digest=told.study.digest())
        if passes:
            assert admit(sent, told, MEMBER)
        else:
            assert "longer than the study's" in refusal(sent, told)


@pytest.mark.parametrize(
    ("known", "told", "fault"),
    [
        (None, None, ""),
        (None, Head(4, "ab" * 32), ""),
        (Head(4, "ab" * 32), Head(4, "ab" * 32), ""),
        (Head(4, "ab" * 32), Head(5, "cd" * 32), ""),
        (Head(4, "ab" * 32), Head(4, "cd" * 32), "another hash"),
        (Head(4, "ab" * 32), Head(3, "cd" * 32), "went back from 4 lines to 3"),
        (Head(4, "ab" * 32), None, "no longer tells"),
    ],
)
def test_an_audit_log_only_grows(
    known: Head | None, told: Head | None, fault: str, reply: Reply, order: Order
) -> None:
    """What does not follow from the last head is told, and the reply is good all the same."""
    reply = reply._replace(audit=told)
    admit(reply, order, MEMBER)
    assert fault in head_fault(reply, known)
    assert bool(fault) == bool(head_fault(reply, known))
