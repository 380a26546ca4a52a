"""What can be wrong with a reply: each takes a good one and breaks one thing in it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.messages import Reply
from common.statements import Training
from simulations.benches import egress_attention, egress_figures
from simulations.benches.egress_cases import (
    Case,
    Mutation,
    floats,
    pick,
    pixels,
    study_of,
    with_changes,
    word,
)

ODD_TYPES = ("i1", "u1", "i4", "i8", "u2", "?", "f2", "f8", "c8", "U9", "S9", "O", ">f4", "M8[s]")


def _in_group(
    rng: np.random.Generator, case: Case, change: Callable[[dict[str, Any]], Any]
) -> Case:
    """Change the arrays of a group; where none was asked for, there now is one."""
    groups = dict(case.reply.groups) or {"shared": {"w": floats(rng, (40, 30))}}
    group = pick(rng, groups)
    arrays = dict(groups[group])
    change(arrays)
    return with_changes(case, groups={**groups, group: arrays})


def _extra_group(rng: np.random.Generator, case: Case) -> Case:
    name = pick(rng, ("base", "local", "head:pet", "reply", word(rng)))
    return with_changes(case, groups={**case.reply.groups, name: {"x": pixels(rng)}})


def _extra_array(rng: np.random.Generator, case: Case) -> Case:
    name = pick(rng, ("pixels", "W", word(rng)))
    return _in_group(rng, case, lambda arrays: arrays.update({name: pixels(rng)}))


def _renamed_array(rng: np.random.Generator, case: Case) -> Case:
    return _in_group(rng, case, lambda arrays: arrays.update({word(rng): arrays.popitem()[1]}))


def _missing_array(rng: np.random.Generator, case: Case) -> Case:
    return _in_group(rng, case, lambda arrays: arrays.popitem())


def _image_in_place(rng: np.random.Generator, case: Case) -> Case:
    return _in_group(rng, case, lambda arrays: arrays.update({pick(rng, arrays): pixels(rng)}))


def _no_number(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name = pick(rng, arrays)
        value = arrays[name].copy()
        value.flat[int(rng.integers(value.size))] = pick(rng, (np.nan, np.inf, -np.inf))
        arrays[name] = value

    return _in_group(rng, case, spoil)


def _other_type(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name, kind = pick(rng, arrays), pick(rng, ODD_TYPES)
        made = np.full(arrays[name].shape, "Jane Doe") if kind[0] in "US" else arrays[name]
        arrays[name] = made.astype("i8").astype(kind) if kind[0] == "M" else made.astype(kind)

    return _in_group(rng, case, spoil)


def _other_shape(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name = pick(rng, arrays)
        value = arrays[name]
        longer = np.concatenate([value.reshape(-1), np.zeros(1, np.float32)])
        arrays[name] = pick(rng, (value[np.newaxis], longer, np.stack([value, value])))

    return _in_group(rng, case, spoil)


def _no_array(rng: np.random.Generator, case: Case) -> Case:
    def spoil(arrays: dict[str, Any]) -> None:
        name = pick(rng, arrays)
        value = arrays[name]
        masked = np.ma.masked_array(value, mask=np.ones(value.shape, bool))
        odd = (None, word(rng), b"PNG", value.tolist(), {"a": value}, masked, object())
        arrays[name] = pick(rng, odd)

    return _in_group(rng, case, spoil)


def _odd_part(rng: np.random.Generator, case: Case) -> Case:
    name = pick(rng, ("groups", "weights", "metrics", "training", "declaration", "round"))
    odd = ([word(rng)], word(rng), {word(rng): pixels(rng)}, {("a", "b"): 1}, 2.0, object())
    return with_changes(case, **{name: pick(rng, odd)})


def _odd_words(rng: np.random.Generator, case: Case) -> Case:
    return with_changes(case, **{pick(rng, ("site", "digest", "refusal")): word(rng)})


def _other_order(rng: np.random.Generator, case: Case) -> Case:
    number = int(pick(rng, (0, 1, 3, -1, 10**12)))
    return with_changes(
        case, **pick(rng, ({"round": number}, {"digest": "cd" * 32}, {"site": "site-b"}))
    )


def _refusal_with_more(rng: np.random.Generator, case: Case) -> Case:
    return with_changes(case, refusal=pick(rng, ("data", "image", "budget", "error")))


def _refusal_in_words(rng: np.random.Generator, case: Case) -> Case:
    words = pick(rng, ("jane_doe", "a" * 40, "no such file", "Budget", word(rng)))
    bare = Reply(case.reply.site, case.reply.digest, case.reply.round, refusal=words)
    return case._replace(reply=bare)


def _bad_weight(rng: np.random.Generator, case: Case) -> Case:
    weights: dict[str, Any] = dict(case.reply.weights) or {"shared": 24.0}
    odd = (np.inf, -np.inf, np.nan, -1.0, 0.0, 1e300, 49.0, 1e-300, 23.9999, 24, True, "24", None)
    weights[pick(rng, weights)] = pick(rng, odd)
    return with_changes(case, weights=weights)


def _other_weights(rng: np.random.Generator, case: Case) -> Case:
    weights = {**case.reply.weights, pick(rng, ("71", "base", word(rng))): 1.0}
    return with_changes(case, weights=weights)


def _training_of(case: Case) -> Training:
    return case.reply.training or Training(steps=3, loss=None, seconds=1, evaluation_seconds=0)


def _bad_training(rng: np.random.Generator, case: Case) -> Case:
    """Put what is none into a figure of the training; types are bypassed as a bug might."""
    name = pick(rng, ("steps", "loss", "seconds", "evaluation_seconds"))
    odd = (np.nan, np.inf, -1.0, -3, word(rng), [1, 2], {"a": 1})
    return with_changes(case, training=_training_of(case).model_copy(update={name: pick(rng, odd)}))


def _unasked_training(rng: np.random.Generator, case: Case) -> Case:
    """Give a loss where privacy forbids it, or figures of a training that was not asked for."""
    loss = float(rng.uniform(0.1, 1))
    if case.order.kind == "train" and case.order.study.privacy is None:
        study = study_of(private=True)
        case = case._replace(order=case.order._replace(study=study))
        case = with_changes(case, digest=study.digest())
    return with_changes(
        case, training=_training_of(case).model_copy(update={"steps": 5, "loss": loss})
    )


def _bad_declaration(rng: np.random.Generator, case: Case) -> Case:
    """Spoil a text or a number of the declaration, or give it where nobody asked."""
    declared = case.own.declaration
    odd: tuple[dict[str, Any], ...] = (
        {"software": word(rng)},
        {"base": word(rng)},
        {"base": "cd" * 32},
        {"patients": int(rng.integers(1, 10**6)) * 5 + 3},
        {"patients": word(rng)},
        {"tasks": {**declared.tasks, word(rng): declared.tasks["ct"]}},
        {"tasks": {**declared.tasks, "pet": declared.tasks["ct"]}},
        {"tasks": {"ct": word(rng)}},
        {"unreadable": {word(rng): 1}},
        {"unreadable": {"ct": 7, "mr": -1}},
    )
    return with_changes(case, declaration=declared.model_copy(update=pick(rng, odd)))


def _unrounded(rng: np.random.Generator, case: Case) -> Case:
    """Let a site that states rounded numbers declare one as it is."""
    limits = case.limits.model_copy(update={"patients": "rounded"})
    patients = int(rng.integers(0, 100)) * 5 + int(rng.integers(1, 5))
    declared = case.own.declaration.model_copy(update={"patients": patients})
    order = case.order._replace(kind="check")
    reply = Reply("site-a", case.reply.digest, 2, declaration=declared)
    return Case(reply, order, limits, case.own._replace(declaration=declared))


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
        _unasked_training, _bad_declaration, _unrounded, _oversized, *egress_figures.MUTATIONS,
        *egress_attention.MUTATIONS,
    )
}  # fmt: skip
