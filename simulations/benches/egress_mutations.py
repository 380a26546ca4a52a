"""What can be wrong with a reply: each takes a good one and breaks one thing in it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from client.egress import HELD_OUT
from client.suppression import behind_of
from common import metrics
from common.messages import (
    Reply,
    Training,
)
from simulations.benches.egress_cases import CLASSES, Case, Mutation, floats, measured_of, study_of

WORDS = ("Jane Doe, *1971-03-04, ward 7", "../../data/scan.png", "x" * 100_000, "\0", "ct\n0")
ODD_TYPES = ("i1", "u1", "i4", "i8", "u2", "?", "f2", "f8", "c8", "U9", "S9", "O", ">f4", "M8[s]")


def _pick(rng: np.random.Generator, choices: Any) -> Any:
    """Return one of the choices as it is; NumPy would make an array of them."""
    found = list(choices)
    return found[int(rng.integers(len(found)))]


def _word(rng: np.random.Generator) -> str:
    return str(_pick(rng, WORDS))


def _pixels(rng: np.random.Generator) -> Any:
    """Return an image-sized array of some type."""
    return rng.integers(0, 255, (64, 64)).astype(_pick(rng, ("u1", "f4", "i8", "f2")))


def _with(case: Case, **changes: Any) -> Case:
    return case._replace(reply=case.reply._replace(**changes))


def _in_group(
    rng: np.random.Generator, case: Case, change: Callable[[dict[str, Any]], Any]
) -> Case:
    """Change the arrays of a group; where none was asked for, there now is one."""
    groups = dict(case.reply.groups) or {"shared": {"w": floats(rng, (40, 30))}}
    group = _pick(rng, groups)
    arrays = dict(groups[group])
    change(arrays)
    return _with(case, groups={**groups, group: arrays})


def _extra_group(rng: np.random.Generator, case: Case) -> Case:
    name = _pick(rng, ("base", "local", "head:pet", "reply", _word(rng)))
    return _with(case, groups={**case.reply.groups, name: {"x": _pixels(rng)}})


def _extra_array(rng: np.random.Generator, case: Case) -> Case:
    name = _pick(rng, ("pixels", "W", _word(rng)))
    return _in_group(rng, case, lambda arrays: arrays.update({name: _pixels(rng)}))


def _renamed_array(rng: np.random.Generator, case: Case) -> Case:
    return _in_group(rng, case, lambda arrays: arrays.update({_word(rng): arrays.popitem()[1]}))


def _missing_array(rng: np.random.Generator, case: Case) -> Case:
    return _in_group(rng, case, lambda arrays: arrays.popitem())


def _image_in_place(rng: np.random.Generator, case: Case) -> Case:
    return _in_group(rng, case, lambda arrays: arrays.update({_pick(rng, arrays): _pixels(rng)}))


def _no_number(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name = _pick(rng, arrays)
        value = arrays[name].copy()
        value.flat[int(rng.integers(value.size))] = _pick(rng, (np.nan, np.inf, -np.inf))
        arrays[name] = value

    return _in_group(rng, case, spoil)


def _other_type(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name, kind = _pick(rng, arrays), _pick(rng, ODD_TYPES)
        made = np.full(arrays[name].shape, "Jane Doe") if kind[0] in "US" else arrays[name]
        arrays[name] = made.astype("i8").astype(kind) if kind[0] == "M" else made.astype(kind)

    return _in_group(rng, case, spoil)


def _other_shape(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name = _pick(rng, arrays)
        value = arrays[name]
        longer = np.concatenate([value.reshape(-1), np.zeros(1, np.float32)])
        arrays[name] = _pick(rng, (value[np.newaxis], longer, np.stack([value, value])))

    return _in_group(rng, case, spoil)


def _no_array(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name = _pick(rng, arrays)
        value = arrays[name]
        masked = np.ma.masked_array(value, mask=np.ones(value.shape, bool))
        odd = (None, _word(rng), b"PNG", value.tolist(), {"a": value}, masked, object())
        arrays[name] = _pick(rng, odd)

    return _in_group(rng, case, spoil)


def _odd_part(rng: np.random.Generator, case: Case) -> Case:
    name = _pick(rng, ("groups", "weights", "metrics", "training", "declaration", "round"))
    odd = ([_word(rng)], _word(rng), {_word(rng): _pixels(rng)}, {("a", "b"): 1}, 2.0, object())
    return _with(case, **{name: _pick(rng, odd)})


def _odd_words(rng: np.random.Generator, case: Case) -> Case:
    return _with(case, **{_pick(rng, ("site", "digest", "refusal")): _word(rng)})


def _other_order(rng: np.random.Generator, case: Case) -> Case:
    number = int(_pick(rng, (0, 1, 3, -1, 10**12)))
    return _with(case, **_pick(rng, ({"round": number}, {"digest": "cd" * 32}, {"site": "site-b"})))


def _refusal_with_more(rng: np.random.Generator, case: Case) -> Case:
    return _with(case, refusal=_pick(rng, ("data", "image", "budget", "error")))


def _refusal_in_words(rng: np.random.Generator, case: Case) -> Case:
    words = _pick(rng, ("jane_doe", "a" * 40, "no such file", "Budget", _word(rng)))
    bare = Reply(case.reply.site, case.reply.digest, case.reply.round, refusal=words)
    return case._replace(reply=bare)


def _bad_weight(rng: np.random.Generator, case: Case) -> Case:
    weights: dict[str, Any] = dict(case.reply.weights) or {"shared": 24.0}
    odd = (np.inf, -np.inf, np.nan, -1.0, 0.0, 1e300, 49.0, 1e-300, 23.9999, 24, True, "24", None)
    weights[_pick(rng, weights)] = _pick(rng, odd)
    return _with(case, weights=weights)


def _other_weights(rng: np.random.Generator, case: Case) -> Case:
    weights = {**case.reply.weights, _pick(rng, ("71", "base", _word(rng))): 1.0}
    return _with(case, weights=weights)


def _training_of(case: Case) -> Training:
    return case.reply.training or Training(steps=3, loss=None, seconds=1, evaluation_seconds=0)


def _bad_training(rng: np.random.Generator, case: Case) -> Case:
    """Put what is none into a figure of the training; types are bypassed as a bug might."""
    name = _pick(rng, ("steps", "loss", "seconds", "evaluation_seconds"))
    odd = (np.nan, np.inf, -1.0, -3, _word(rng), [1, 2], {"a": 1})
    return _with(case, training=_training_of(case).model_copy(update={name: _pick(rng, odd)}))


def _unasked_training(rng: np.random.Generator, case: Case) -> Case:
    """Give a loss where privacy forbids it, or figures of a training that was not asked for."""
    loss = float(rng.uniform(0.1, 1))
    if case.order.kind == "train" and case.order.study.privacy is None:
        study = study_of(private=True)
        case = case._replace(order=case.order._replace(study=study))
        case = _with(case, digest=study.digest())
    return _with(case, training=_training_of(case).model_copy(update={"steps": 5, "loss": loss}))


def _bad_declaration(rng: np.random.Generator, case: Case) -> Case:
    """Spoil a text or a number of the declaration, or give it where nobody asked."""
    declared = case.own.declaration
    odd: tuple[dict[str, Any], ...] = (
        {"software": _word(rng)},
        {"base": _word(rng)},
        {"base": "cd" * 32},
        {"patients": int(rng.integers(1, 10**6)) * 5 + 3},
        {"patients": _word(rng)},
        {"tasks": {**declared.tasks, _word(rng): declared.tasks["ct"]}},
        {"tasks": {**declared.tasks, "pet": declared.tasks["ct"]}},
        {"tasks": {"ct": _word(rng)}},
        {"unreadable": {_word(rng): 1}},
        {"unreadable": {"ct": 7, "mr": -1}},
    )
    return _with(case, declaration=declared.model_copy(update=_pick(rng, odd)))


def _unrounded(rng: np.random.Generator, case: Case) -> Case:
    """Let a site that states rounded numbers declare one as it is."""
    limits = case.limits.model_copy(update={"patients": "rounded"})
    patients = int(rng.integers(0, 100)) * 5 + int(rng.integers(1, 5))
    declared = case.own.declaration.model_copy(update={"patients": patients})
    order = case.order._replace(kind="check")
    reply = Reply("site-a", case.reply.digest, 2, declaration=declared)
    return Case(reply, order, limits, case.own._replace(declaration=declared))


def _unknown_metrics(rng: np.random.Generator, case: Case) -> Case:
    key = _pick(rng, (("ct", "train"), ("pet", "test"), ("ct", _word(rng)), (_word(rng), "test")))
    arrays, _ = measured_of(rng, "ct")
    return _with(case, metrics={**case.reply.metrics, key: arrays})


def _in_state(
    rng: np.random.Generator, case: Case, change: Callable[[dict[str, Any]], Any]
) -> Case:
    states: Mapping[Any, Any] = case.reply.metrics or {("ct", "test"): measured_of(rng, "ct")[0]}
    key = _pick(rng, states)
    arrays = dict(states[key])
    change(arrays)
    return _with(case, metrics={**states, key: arrays})


def _extra_in_state(rng: np.random.Generator, case: Case) -> Case:
    name = _pick(rng, ("pixels", "labels", _word(rng)))
    return _in_state(rng, case, lambda arrays: arrays.update({name: _pixels(rng)}))


def _bad_state(rng: np.random.Generator, case: Case) -> Case:
    """Spoil one array of a state: its type, its shape, or a number."""

    def spoil(arrays: dict[str, Any]) -> None:
        name = _pick(rng, arrays)
        value = arrays[name].copy()
        # Sums may be any that so many images can have; below zero they cannot.
        value.flat[int(rng.integers(value.size))] = -3 if name == "sums" else 10**6
        masked = np.ma.masked_array(arrays[name], mask=True)
        odd = (value, value.astype("c16"), value[np.newaxis], _pixels(rng), _word(rng), masked)
        arrays[name] = _pick(rng, odd)

    return _in_state(rng, case, spoil)


def _counts_of_one(rng: np.random.Generator, case: Case) -> Case:
    """Give the state of a single patient in place of all, sound in itself."""
    key = ("ct", str(_pick(rng, HELD_OUT)))
    seen = metrics.update(metrics.zero(2, 1), rng.normal(size=(1, 2)), np.array([1]), 1)
    one = metrics.to_arrays(metrics.with_patients(seen, 1))
    return _with(case, metrics={**case.reply.metrics, key: one})


def _small_class(rng: np.random.Generator, case: Case) -> Case:
    """Let a site honestly measure a class of too few patients."""
    if case.order.kind == "check":
        return _counts_of_one(rng, case)
    task, split = str(_pick(rng, CLASSES)), str(_pick(rng, HELD_OUT))
    arrays, behind = measured_of(rng, task, rare=int(rng.integers(0, 5)))
    own = case.own._replace(behind={**case.own.behind, (task, split): behind})
    changed = _with(case, metrics={**case.reply.metrics, (task, split): arrays})
    return changed._replace(own=own, bypass=bool(rng.integers(2)))


def _small_bins(rng: np.random.Generator, case: Case) -> Case:
    """Let a state go to the door with its bins as they are, where they must be merged."""
    if case.order.kind == "check":
        return _counts_of_one(rng, case)
    limits = case.limits.model_copy(update={"histogram_patients": int(rng.integers(2, 8))})
    return case._replace(limits=limits, bypass=True)


def _difference(rng: np.random.Generator, case: Case) -> Case:
    """Let one task have the patients of another, but for one or two."""
    if case.order.kind == "check":
        return _counts_of_one(rng, case)
    split, lacking = str(_pick(rng, HELD_OUT)), int(rng.integers(1, 3))
    # The second class is the other task's positives, less one or two.
    second = list(case.own.behind["ct", split].classes[1])[lacking:]
    others = [f"other-{number}" for number in range(24 - len(second))]
    patients = [patient for patient in (*others, *second) for _ in range(2)]
    labels = np.repeat([*(2 * (n % 2) for n in range(len(others))), *[1] * len(second)], 2)
    seen = metrics.update(metrics.zero(3, None), rng.normal(size=(48, 3)), labels, None)
    arrays = metrics.to_arrays(metrics.with_patients(seen, 24))
    behind = {**case.own.behind, ("mr", split): behind_of(labels.tolist(), patients, 3)}
    changed = _with(case, metrics={**case.reply.metrics, ("mr", split): arrays})
    return changed._replace(own=case.own._replace(behind=behind))


def _oversized(rng: np.random.Generator, case: Case) -> Case:
    """Ask for more than the hospital lets go."""
    large = {"w": floats(rng, (600, 500))}
    order = case.order._replace(kind="train", groups={"shared": large})
    weight = {"shared": case.own.declaration.weight("shared", "patients")}
    reply = Reply("site-a", case.reply.digest, 2, groups={"shared": large}, weights=weight)
    return Case(reply, order, case.limits.model_copy(update={"max_reply_mb": 1}), case.own)


MUTATIONS: Mapping[str, Mutation] = {
    made.__name__.strip("_"): made
    for made in (
        _extra_group, _extra_array, _renamed_array, _missing_array, _image_in_place, _no_number,
        _other_type, _other_shape, _no_array, _odd_part, _odd_words, _other_order,
        _refusal_with_more, _refusal_in_words, _bad_weight, _other_weights, _bad_training,
        _unasked_training,
        _bad_declaration, _unrounded, _unknown_metrics, _extra_in_state, _bad_state, _counts_of_one,
        _small_class, _small_bins, _difference, _oversized,
    )
}  # fmt: skip
