"""Good replies of a site, each at the door with what the door knows of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from client.attention_suppression import Looked
from client.config import Limits
from client.egress import Own
from client.patients import by_patient, cases_of
from client.suppression import Behind, Key, behind_of, stated
from common import metrics, metrics_wire
from common.arrays import Arrays
from common.attention import ATTENTION, FIGURES, to_arrays
from common.held_out import HELD_OUT, OF_PATIENTS, members_of
from common.messages import Order, Reply
from common.statements import Counted, Declaration, Splits, Training
from common.study import Study
from common.versions import software_version

CLASSES = {"ct": 2, "mr": 3}
WORDS = ("Jane Doe, *1971-03-04, ward 7", "../../data/scan.png", "x" * 100_000, "\0", "ct\n0")


class Case(NamedTuple):
    """A reply at the door, and all that the door knows."""

    reply: Reply
    order: Order
    limits: Limits
    own: Own
    bypass: bool = False
    """Whether the reply comes to the door without having been through suppression."""


Measured = dict[Key, tuple[Arrays, Behind]]
"""Metric states, and who stands behind each."""
Mutation = Callable[[np.random.Generator, Case], Case]


def good_cases() -> list[Case]:
    """Return good replies to every kind of order, with and without privacy and rounding."""
    exact = Limits(attention="report")
    strict = exact.model_copy(
        update={"patients": "rounded", "histogram_patients": 3, "minimum_patients": 6}
    )
    return [
        good_case(kind, limits, private=private)
        for kind in ("check", "train", "evaluate")
        for limits in (exact, strict)
        for private in (False, True)
    ]


def good_case(kind: Any, limits: Limits, *, private: bool) -> Case:
    """Return a good reply of a site with two tasks."""
    study = study_of(private=private)
    rng = np.random.default_rng(3)
    asked = {
        "shared": {"w": floats(rng, (40, 30)), "scale": np.array(1.5, np.float32)},
        "head:ct": {"h": floats(rng, (2, 9))},
        "head:mr": {"h": floats(rng, (3, 9))},
    }
    order = Order(kind, study, 2, asked, "ab" * 32, None)
    measured: Measured = {}
    for task in CLASSES:
        for split in HELD_OUT:
            measured |= measured_of(rng, task, split)
    of_members = members_measured(rng, measured, study)
    measured |= of_members
    behind = {key: found[1] for key, found in measured.items()}
    own = Own("site-a", _declaration(limits), behind, dict(looked_of()))
    reply = Reply("site-a", study.digest(), 2)
    if kind == "check":
        return Case(reply._replace(declaration=own.declaration), order, limits, own)
    steps, loss = (stated(3, limits), None if private else 0.5) if kind == "train" else (0, None)
    trained = Training(steps=steps, loss=loss, seconds=1.0, evaluation_seconds=0.25)
    gone = {} if kind == "evaluate" else of_members
    metrics = {key: found[0] for key, found in measured.items() if key not in gone}
    reply = reply._replace(training=trained, metrics=metrics)
    if kind == "evaluate":
        reply = with_attention(rng, reply, own)
    if kind == "train":
        groups = {g: {n: floats(rng, a.shape) for n, a in p.items()} for g, p in asked.items()}
        weights = {group: own.declaration.weight(group, "patients") for group in groups}
        reply = reply._replace(groups=groups, weights=weights)
    return Case(reply, order, limits, own)


def study_of(*, private: bool) -> Study:
    """Return a study of both tasks."""
    values: dict[str, Any] = {
        "name": "study",
        "rounds": 3,
        "backbone": {"name": "test_resnet", "weights": "none"},
        "tasks": {
            "ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"},
            "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
        },
        "evaluation": {"attention": "hirescam"},
        "ensemble": [{}, {}],
        "federation": {"votes": "validation"},
    }
    return Study.parse(values | ({"privacy": {"epsilon": 8.0}} if private else {}))


def _declaration(limits: Limits) -> Declaration:
    counted = Counted(patients=stated(24, limits), images=stated(48, limits))
    return Declaration(
        software=software_version(),
        base="ab" * 32,
        tasks={task: Splits(train=counted, validation=counted, test=counted) for task in CLASSES},
        unreadable=dict.fromkeys(CLASSES, stated(7, limits)),
        patients=stated(48, limits),
    )


def measured_of(
    rng: np.random.Generator, task: str, split: str, rare: int | None = None
) -> Measured:
    """Return the states of 24 patients with two images each, and who stands behind them.

    With ``rare``, so many patients have the first class.
    """
    n_classes, positive = CLASSES[task], 1 if task == "ct" else None
    patient = np.repeat(np.arange(24), 2)
    labels = patient % n_classes
    if rare is not None:
        labels = np.where(patient < rare, 0, 1 + patient % (n_classes - 1))
    logits = rng.normal(size=(48, n_classes)) + 2 * np.eye(n_classes)[labels]
    names = [f"{task}-{p}" for p in patient]
    behind = behind_of(labels.tolist(), names, n_classes)
    said, truth = by_patient(logits, labels, names, "mean", positive)
    return {
        (task, split): (state_of(logits, labels, positive), behind),
        (task, OF_PATIENTS[split]): (state_of(said, truth, positive), cases_of(behind, positive)),
    }


def members_measured(rng: np.random.Generator, measured: Measured, study: Study) -> Measured:
    """Return a state of each member of an ensemble by itself, on the same patients."""
    found: Measured = {}
    for task, n_classes in CLASSES.items():
        _, behind = measured[task, OF_PATIENTS["validation"]]
        labels = np.repeat(np.arange(n_classes), [len(group) for group in behind.classes])
        positive = study.tasks[task].positive_index
        for name in members_of(study):
            logits = rng.normal(size=(len(labels), n_classes))
            found[task, name] = (state_of(logits, labels, positive, untold=True), behind)
    return found


def looked_of() -> Looked:
    """Return who stands behind the sums of attention: all 24 patients, or every other one."""
    every = {task: [f"{task}-{p}" for p in range(24)] for task in CLASSES}
    return {
        task: tuple(
            frozenset(names[1::2] if figure in {"text", "pointing", "energy"} else names)
            for figure in FIGURES
        )
        for task, names in every.items()
    }


def with_attention(rng: np.random.Generator, reply: Reply, own: Own) -> Reply:
    """Return a reply with sums of attention of those who stand behind them, sound and exact."""
    tables = {
        (task, ATTENTION): attention_table(rng, [len(patients) for patients in behind])
        for task, behind in own.looked.items()
    }
    return reply._replace(metrics={**reply.metrics, **tables})


def attention_table(rng: np.random.Generator, patients: Sequence[int]) -> Arrays:
    """Return sums of attention over so many patients, by figure."""
    counts = np.array(patients, np.float64)[:, np.newaxis]
    return to_arrays(np.hstack([counts, counts * rng.uniform(0, 1, (len(patients), 2))]))


def state_of(
    logits: Any, labels: Any, positive: int | None, patients: int = 24, *, untold: bool = False
) -> Arrays:
    """Return the metric state of so many patients' images or cases, as arrays."""
    blank = metrics.zero(logits.shape[1], positive)
    state = metrics.update(blank, logits, labels, positive)
    state = metrics.with_joint(state, logits, labels)
    state = metrics.untold(state) if untold else state
    return metrics_wire.to_arrays(metrics.with_patients(state, patients))


def floats(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Return random numbers of a shape, float32."""
    return np.asarray(rng.normal(size=shape), np.float32)


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """Return one of the choices as it is; NumPy would make an array of them."""
    found = list(choices)
    return found[int(rng.integers(len(found)))]


def word(rng: np.random.Generator) -> str:
    """Return a text that must not leave."""
    return str(pick(rng, WORDS))


def pixels(rng: np.random.Generator) -> Any:
    """Return an image-sized array of some type."""
    return rng.integers(0, 255, (64, 64)).astype(pick(rng, ("u1", "f4", "i8", "f2")))


def with_changes(case: Case, **changes: Any) -> Case:
    """Return the case with other parts of the reply."""
    return case._replace(reply=case.reply._replace(**changes))
