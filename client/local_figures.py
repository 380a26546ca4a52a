"""All that a site can say of one model on its own held-out patients; it stays at the site.

Figures are of test patients; thresholds and temperature are chosen on validation patients before.
Whatever cannot be said is None with the reason, or a note.

Shapes: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.bootstrap import LEAST_PATIENTS, Estimate, intervals
from client.dataset import Images, TaskData
from client.evaluate import state_of
from client.patients import by_patient, have_several, owners_of_cases, state_of_patients
from client.subgroups import Subgroup, subgroups, values_of_patients
from client.weighted_metrics import Cases, metrics_of
from common import curves, operating
from common.metrics import MetricState
from common.ranking import log_odds, ranked_classes
from common.study import Task
from common.temperature import best_temperature

Logits = Mapping[str, NDArray[np.floating]]
"""By split, (N, K) each."""


@dataclass(frozen=True)
class OfClass:
    """What is known of one ranked class against all others."""

    metrics: Mapping[str, Estimate]
    """AUROC and average precision of this class, where the task has several."""
    operating_points: Mapping[str, Any] | None
    """By rule, as ``common.operating.at_edge``; None where validation defines none."""
    roc: Mapping[str, Any] | None
    precision_recall: Mapping[str, Any] | None
    decision: Mapping[str, Any] | None


@dataclass(frozen=True)
class Temperature:
    """What dividing the logits by one number does; it changes no prediction."""

    value: float
    """Fitted on this site's validation patients."""
    loss: tuple[float, float]
    """On test patients, before and after."""
    calibration_error: tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """Figures in which each image, or each patient, counts once."""

    patients: int
    cases: int
    """Images, or patients; of a patient with images of several classes, one for each."""
    by_class: tuple[int, ...]
    """Cases of each class."""
    metrics: Mapping[str, Estimate]
    confusion: list[list[int]]
    """Rows are the true classes, columns the predicted ones."""
    classes: Mapping[str, OfClass]
    """By the name of each ranked class."""
    reliability: Mapping[str, Any]
    temperature: Temperature | None


@dataclass(frozen=True)
class Case:
    """What the model says of one test image; for the hospital's eyes."""

    patient: str
    """Keyed hash."""
    file: str
    part: str
    label: str
    said: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TaskFigures:
    """One model on one task's held-out patients."""

    classes: tuple[str, ...]
    positive: str | None
    of_images: Figures
    of_patients: Figures | None
    """None where every patient has one image."""
    subgroups: Mapping[str, list[Subgroup]]
    notes: tuple[str, ...]
    """What must be known to read the figures."""
    cases: list[Case]


def figures_of_task(
    logits: Logits, data: TaskData, task: Task, *, minimum: int, each_image: bool, seed: int
) -> TaskFigures:
    """Return all figures of one model on one task.

    Args:
        logits: Of the splits ``validation`` and ``test``.
        data: The site's images.
        task: The task.
        minimum: The site's ``minimum_patients``.
        each_image: Whether patients are unknown, so that each image counts as one.
        seed: From ``common.seeds.stream``; the same patients are drawn for every figure.
    """
    test, held = data.splits["test"], ("validation", "test")
    on_images = {s: image_cases(logits[s], data.splits[s], task) for s in held}
    on_patients = {s: patient_cases(logits[s], data.splits[s], task) for s in held}
    states = {s: state_of(logits[s], data.splits[s], task) for s in held}
    of_patients = None
    if have_several(test):
        joined = {s: state_of_patients(logits[s], data.splits[s], task) for s in held}
        of_patients = _figures(on_patients, joined, task, seed)
    groups = (
        subgroups(
            on_patients["test"],
            values_of_patients(test),
            minimum=minimum,
            seed=seed,
        )
        if len(test.origins) == len(test)
        else {}
    )
    return TaskFigures(
        classes=tuple(task.classes),
        positive=task.positive,
        of_images=_figures(on_images, states, task, seed),
        of_patients=of_patients,
        subgroups=groups,
        notes=_notes(data, task, minimum, each_image=each_image),
        cases=_cases(logits["test"], test, task),
    )


def image_cases(logits: NDArray[np.floating], images: Images, task: Task) -> Cases:
    """Return what a model says of each image."""
    owners = np.unique(np.array(images.patients, str), return_inverse=True)[1]
    labels = images.labels.numpy().astype(np.int64)
    return Cases(logits.astype(np.float64), labels, owners, task.positive_index)


def patient_cases(logits: NDArray[np.floating], images: Images, task: Task) -> Cases:
    """Return what a model says of each patient; see ``client.patients.by_patient``."""
    labels, positive = images.labels.numpy(), task.positive_index
    if not len(images):
        return image_cases(logits, images, task)
    said, truth = by_patient(logits, labels, images.patients, task.per_patient, positive)
    names = owners_of_cases(labels, images.patients, positive)
    owners = np.searchsorted(np.unique(np.array(images.patients, str)), np.array(names, str))
    return Cases(said, truth.astype(np.int64), owners, positive)


def _figures(
    cases: Mapping[str, Cases], states: Mapping[str, MetricState], task: Task, seed: int
) -> Figures:
    test, state = cases["test"], states["test"]
    ranked = ranked_classes(len(task.classes), task.positive_index)
    return Figures(
        patients=len(np.unique(test.owners)),
        cases=len(test.labels),
        by_class=tuple(np.bincount(test.labels, minlength=len(task.classes)).tolist()),
        metrics=intervals(test, seed=seed),
        confusion=state.confusion.tolist(),
        classes={
            task.classes[k]: _of_class(test, states, place, k, seed)
            for place, k in enumerate(ranked)
        },
        reliability=curves.reliability(state),
        temperature=_temperature(test, states["validation"]),
    )


def _of_class(
    test: Cases, states: Mapping[str, MetricState], place: int, k: int, seed: int
) -> OfClass:
    """Return what is known of class ``k``, whose histogram stands at ``place`` in the states."""
    state = states["test"]
    own: dict[str, Estimate] = {}
    if test.positive is None and len(test.labels):
        odds = log_odds(test.logits, k)
        rest = Cases(
            np.stack([np.zeros_like(odds), odds], axis=1),
            (test.labels == k).astype(np.int64),
            test.owners,
            1,
        )
        found = intervals(rest, seed=seed)
        own = {name: found[name] for name in ("auroc", "average_precision")}
    chosen = operating.choose(states["validation"], place)
    return OfClass(
        metrics=own,
        operating_points=None
        if chosen is None
        else {rule: operating.at_edge(state, place, edge) for rule, edge in chosen.items()},
        roc=curves.roc(state, place),
        precision_recall=curves.precision_recall(state, place),
        decision=curves.decision(state, place),
    )


def _temperature(test: Cases, validation: MetricState) -> Temperature | None:
    value = best_temperature(validation.scaled_loss)
    if value is None or not len(test.labels):
        return None
    once = np.ones((1, len(test.labels)))
    before = metrics_of(test, once)
    after = metrics_of(test._replace(logits=test.logits / value), once)
    loss, error = (
        (float(before[name][0]), float(after[name][0])) for name in ("loss", "calibration_error")
    )
    return Temperature(value, loss, error)


def _notes(data: TaskData, task: Task, minimum: int, *, each_image: bool) -> tuple[str, ...]:
    """Say what must be known to read the figures."""
    notes = []
    if each_image:
        notes.append(
            "Patients are not known: each image counts as one, and intervals are too narrow where "
            "images belong to the same patient."
        )
    for split in ("validation", "test"):
        images = data.splits[split]
        if not len(images):
            notes.append(f"There are no {split} patients.")
            continue
        present = set(images.labels.tolist())
        absent = [name for k, name in enumerate(task.classes) if k not in present]
        if absent:
            notes.append(f"No {split} patient has the class {', '.join(absent)}.")
        if images.n_patients < minimum:
            notes.append(
                f"There are fewer {split} patients than the site's minimum of {minimum}: the "
                "figures say little, and none of them would leave the site."
            )
    if set(data.splits["validation"].labels.tolist()) != set(range(len(task.classes))):
        notes.append("Thresholds of classes that validation lacks are not chosen.")
    test = data.splits["test"]
    if 0 < test.n_patients < 4 * LEAST_PATIENTS:
        notes.append("With so few test patients intervals are rough.")
    return tuple(notes)


def _cases(logits: NDArray[np.floating], images: Images, task: Task) -> list[Case]:
    wide = logits.astype(np.float64)
    shares = np.exp(wide - np.logaddexp.reduce(wide, axis=1, keepdims=True))
    said = logits.argmax(axis=1)
    return [
        Case(
            patient=origin.row.patient,
            file=str(origin.row.path),
            part=origin.part,
            label=task.classes[int(label)],
            said=task.classes[int(k)],
            probabilities=tuple(share.tolist()),
        )
        for origin, label, k, share in zip(
            images.origins, images.labels.tolist(), said, shares, strict=bool(images.origins)
        )
    ]
