"""What can be wrong with the figures in a reply; the rest is in ``egress_mutations.py``."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from client.patients import by_patient, cases_of
from client.suppression import behind_of, suppress
from common.held_out import HELD_OUT, MEMBERS, OF_PATIENTS
from common.metrics import MAY_BE_UNTOLD
from simulations.benches.egress_cases import (
    CLASSES,
    Case,
    Mutation,
    measured_of,
    pick,
    pixels,
    state_of,
    with_changes,
    word,
)


def unknown_metrics(rng: np.random.Generator, case: Case) -> Case:
    """Give a sound state under a name that no state has here."""
    odd = ("train", "train_patients", "test_patients_patients", "patients", "test.0", word(rng))
    key = pick(rng, (("ct", pick(rng, odd)), ("pet", "test"), (word(rng), "test_patients")))
    arrays, _ = measured_of(rng, "ct", "test")["ct", "test"]
    return with_changes(case, metrics={**case.reply.metrics, key: arrays})


def _in_state(
    rng: np.random.Generator, case: Case, change: Callable[[dict[str, Any]], Any]
) -> Case:
    fresh = {key: arrays for key, (arrays, _) in measured_of(rng, "ct", "test").items()}
    states: Mapping[Any, Any] = case.reply.metrics or fresh
    key = pick(rng, states)
    arrays = dict(states[key])
    change(arrays)
    return with_changes(case, metrics={**states, key: arrays})


def extra_in_state(rng: np.random.Generator, case: Case) -> Case:
    """Put an image among the arrays of a state."""
    name = pick(rng, ("pixels", "labels", word(rng)))
    return _in_state(rng, case, lambda arrays: arrays.update({name: pixels(rng)}))


def bad_state(rng: np.random.Generator, case: Case) -> Case:
    """Spoil one array of a state: its type, its shape, or a number."""

    def spoil(arrays: dict[str, Any]) -> None:
        name = pick(rng, arrays)
        value = arrays[name].copy()
        # Sums may be any that so many images can have; below zero they cannot.
        value.flat[int(rng.integers(value.size))] = -3 if name == "sums" else 10**6
        masked = np.ma.masked_array(arrays[name], mask=True)
        odd = (value, value.astype("c16"), value[np.newaxis], pixels(rng), word(rng), masked)
        arrays[name] = pick(rng, odd)

    return _in_state(rng, case, spoil)


def counts_of_one(rng: np.random.Generator, case: Case) -> Case:
    """Give the state of a single patient in place of all, sound in itself."""
    split = str(pick(rng, HELD_OUT))
    key = ("ct", str(pick(rng, (split, OF_PATIENTS[split]))))
    one = state_of(rng.normal(size=(1, 2)), np.array([1]), 1, patients=1)
    return with_changes(case, metrics={**case.reply.metrics, key: one})


def odd_patients(rng: np.random.Generator, case: Case) -> Case:
    """Give a state of patients that are not those of the images, or where there is none."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    split = str(pick(rng, HELD_OUT))
    of_images, of_patients = ("ct", split), ("ct", OF_PATIENTS[split])
    states = dict(case.reply.metrics)
    match int(rng.integers(3)):
        case 0:  # each image as if it were a patient's one case
            states[of_patients] = states[of_images]
        case 1:  # a site that has one image of each patient
            behind = {key: who for key, who in case.own.behind.items() if key != of_patients}
            case = case._replace(own=case.own._replace(behind=behind))
        case _:  # the images of a patient as patients of their own
            labels = np.arange(48) // 2 % 2
            names = [f"image-{number}" for number in range(48)]
            said, truth = by_patient(rng.normal(size=(48, 2)), labels, names, "max", 1)
            states[of_patients] = state_of(said, truth, 1, patients=48)
    return with_changes(case, metrics=states)


def few_mixed(rng: np.random.Generator, case: Case) -> Case:
    """Let one or two patients have images of two classes, which the two states tell apart."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    split, task = str(pick(rng, HELD_OUT)), str(pick(rng, CLASSES))
    positive = 1 if task == "ct" else None
    names = [f"{task}-{number // 2}" for number in range(48)]
    labels = np.arange(48) // 2 % CLASSES[task]
    labels[: 4 * int(rng.integers(1, 3)) : 4] = 1  # of patients of the first class, one image each
    logits = rng.normal(size=(48, CLASSES[task]))
    said, truth = by_patient(logits, labels, names, "mean", positive)
    behind = behind_of(labels.tolist(), names, CLASSES[task])
    key, of_patients = (task, split), (task, OF_PATIENTS[split])
    states = {key: state_of(logits, labels, positive), of_patients: state_of(said, truth, positive)}
    who = {**case.own.behind, key: behind, of_patients: cases_of(behind, positive)}
    return with_changes(case, metrics={**case.reply.metrics, **states})._replace(
        own=case.own._replace(behind=who), bypass=True
    )


def odd_members(rng: np.random.Generator, case: Case) -> Case:
    """Give a state of a member of an ensemble that nobody asked for, or that the others lack."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    states = dict(case.reply.metrics)
    first, second, third = (("ct", name) for name in MEMBERS[:3])
    of_patients = states["ct", OF_PATIENTS["validation"]]
    if case.order.kind == "train":
        states[first] = of_patients
        return with_changes(case, metrics=states)
    match int(rng.integers(4)):
        case 0:  # one of them alone
            del states[first]
        case 1:  # one more than there are
            states[third] = states[second]
        case 2:  # with all sums, or of images as if they were patients
            states[first] = of_patients if rng.integers(2) else states["ct", "validation"]
        case _:  # without the state of all together
            del states["ct", "validation"], states["ct", OF_PATIENTS["validation"]]
    return with_changes(case, metrics=states)._replace(bypass=bool(rng.integers(2)))


def small_class(rng: np.random.Generator, case: Case) -> Case:
    """Let a site honestly measure a class of too few patients."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    task, split = str(pick(rng, CLASSES)), str(pick(rng, HELD_OUT))
    found = measured_of(rng, task, split, rare=int(rng.integers(0, 5)))
    behind = {**case.own.behind, **{key: who for key, (_, who) in found.items()}}
    states = {**case.reply.metrics, **{key: arrays for key, (arrays, _) in found.items()}}
    changed = with_changes(case, metrics=states)
    own = case.own._replace(behind=behind)
    return changed._replace(own=own, bypass=bool(rng.integers(2)))


def small_bins(rng: np.random.Generator, case: Case) -> Case:
    """Let a state go to the door with its bins as they are, where they must be merged."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    limits = case.limits.model_copy(update={"histogram_patients": int(rng.integers(2, 8))})
    return case._replace(limits=limits, bypass=True)


def telling_sums(rng: np.random.Generator, case: Case) -> Case:
    """Merge the bins of a state as the hospital asks, and send the sums that would solve them."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    limits = case.limits.model_copy(update={"histogram_patients": int(rng.integers(2, 5))})
    split = str(pick(rng, HELD_OUT))
    found = measured_of(rng, "ct", split)
    behind = {**case.own.behind, **{key: each for key, (_, each) in found.items()}}
    states = {**case.reply.metrics, **{key: arrays for key, (arrays, _) in found.items()}}
    kept = suppress(case.reply._replace(metrics=states), case.order, limits, behind).metrics
    sums = {key: [name for name in found[key][0] if name in MAY_BE_UNTOLD] for key in found}
    told = {
        key: {**kept[key], **{name: found[key][0][name] for name in names}}
        for key, names in sums.items()
        if key in kept
    }
    changed = with_changes(case, metrics={**kept, **told})
    return changed._replace(own=case.own._replace(behind=behind), limits=limits, bypass=True)


def difference(rng: np.random.Generator, case: Case) -> Case:
    """Let one task have the patients of another, but for one or two."""
    if case.order.kind == "check":
        return counts_of_one(rng, case)
    split, lacking = str(pick(rng, HELD_OUT)), int(rng.integers(1, 3))
    # The second class is the other task's positives, less one or two.
    second = list(case.own.behind["ct", split].classes[1])[lacking:]
    others = [f"other-{number}" for number in range(24 - len(second))]
    patients = [patient for patient in (*others, *second) for _ in range(2)]
    labels = np.repeat([*(2 * (n % 2) for n in range(len(others))), *[1] * len(second)], 2)
    arrays = state_of(rng.normal(size=(48, 3)), labels, None)
    behind = {**case.own.behind, ("mr", split): behind_of(labels.tolist(), patients, 3)}
    changed = with_changes(case, metrics={**case.reply.metrics, ("mr", split): arrays})
    return changed._replace(own=case.own._replace(behind=behind))


MUTATIONS: tuple[Mutation, ...] = (
    unknown_metrics,
    extra_in_state,
    bad_state,
    counts_of_one,
    odd_patients,
    odd_members,
    few_mixed,
    small_class,
    small_bins,
    telling_sums,
    difference,
)
