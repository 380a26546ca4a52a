"""From images to patients: one prediction for each, and who stands behind their figures.

Shapes: N images, P patients, Q cases, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from client.dataset import Images, TaskData
from client.suppression import Behind, Key, behind_of
from common import metrics
from common.held_out import HELD_OUT, OF_PATIENTS, members_of
from common.metrics import MetricState
from common.metrics_faults import LOGIT_MAX
from common.ranking import Floats, Ints
from common.study import Study, Task

How = Literal["mean", "max"]
"""How the predictions of a patient's images become one: a study's ``per_patient``."""


def by_patient(
    logits: NDArray[Any],
    labels: NDArray[Any],
    patients: Sequence[str],
    how: How,
    positive: int | None,
) -> tuple[Floats, Ints]:
    """Return what is said of each patient, and what is true.

    ``mean``: the mean of the probabilities of the patient's images. ``max``: with a positive
    class, what is said of the image where that class is likeliest; without one, the greatest
    probability that an image gives each class, divided by their sum.

    With a positive class a patient is positive if an image is. Without one, a patient whose images
    have several labels makes a case of each, with the same prediction.

    Args:
        logits: (N, K), finite in float32.
        labels: (N,), integers: the images' classes, in [0, K).
        patients: Whose each image is, N of them.
        how: The study's.
        positive: Index of the positive class of a task of two; None for a multi-class task.

    Returns:
        Logits (Q, K), finite in float32, and labels (Q,). Q is P, or more where images of one
        patient differ and no class is positive.
    """
    owner = np.unique(np.array(patients, str), return_inverse=True)[1]
    order = np.argsort(owner, kind="stable")
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))  # of each patient's images
    joined = _joined(logits[order].astype(np.float64), first, how, positive)
    if positive is not None:
        found = np.logical_or.reduceat(labels[order] == positive, first)
        return joined, np.where(found, positive, 1 - positive)
    cases = np.unique(np.stack([owner, labels.astype(np.int64)]), axis=1)
    return joined[cases[0]], cases[1]


def owners_of_cases(
    labels: NDArray[Any], patients: Sequence[str], positive: int | None
) -> tuple[str, ...]:
    """Return whose each case of ``by_patient`` is, Q of them, in its order.

    Args:
        labels: (N,), integers: the images' classes.
        patients: Whose each image is, N of them.
        positive: Index of the positive class of a task of two; None for a multi-class task.
    """
    names, owner = np.unique(np.array(patients, str), return_inverse=True)
    if positive is not None:
        return tuple(names.tolist())
    cases = np.unique(np.stack([owner, labels.astype(np.int64)]), axis=1)
    return tuple(names[cases[0]].tolist())


def _joined(logits: Floats, first: Ints, how: How, positive: int | None) -> Floats:
    """Return the logits of the patients, (P, K); the images of each stand together.

    Logarithms of probabilities throughout: a probability itself can vanish, or become one.
    """
    if how == "max" and positive is not None:
        odds = logits[:, positive] - logits[:, 1 - positive]
        owner = np.repeat(np.arange(len(first)), np.diff(first, append=len(logits)))
        last = np.append(first[1:], len(logits)) - 1
        joined: Floats = logits[np.lexsort((odds, owner))[last]]
        return joined
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    reduce = np.maximum if how == "max" else np.logaddexp
    joined = reduce.reduceat(log_p, first, axis=0)
    joined -= np.logaddexp.reduce(joined, axis=1, keepdims=True)
    return np.maximum(joined, -LOGIT_MAX)


def have_several(images: Images) -> bool:
    """Say whether a patient has more than one image, so that patients are another count."""
    return images.n_patients < len(images)


def state_of_patients(logits: NDArray[Any], images: Images, task: Task) -> MetricState:
    """Return the metric state in which each patient counts once, from logits of shape (N, K)."""
    positive = task.positive_index
    said, truth = by_patient(
        logits, images.labels.numpy(), images.patients, task.per_patient, positive
    )
    state = metrics.update(metrics.zero(len(task.classes), positive), said, truth, positive)
    state = metrics.with_joint(state, said, truth)
    return metrics.with_patients(state, images.n_patients)


def cases_of(images: Behind, positive: int | None) -> Behind:
    """Return who stands behind the state of patients, class by class.

    Args:
        images: Who stands behind the state of their images.
        positive: Index of the positive class, or None for a multi-class task.
    """
    found = [dict.fromkeys(group, 1) for group in images.classes]
    if positive is not None:
        ill = found[positive]
        found = [g if g is ill else {p: 1 for p in g if p not in ill} for g in found]
    return Behind(tuple(found))


def who_stands_behind(study: Study, tasks: Mapping[str, TaskData]) -> dict[Key, Behind]:
    """Return who stands behind each metric state that the site measures."""
    found: dict[Key, Behind] = {}
    for name, data in tasks.items():
        task = study.tasks[name]
        for split in HELD_OUT:
            images = data.splits[split]
            behind = behind_of(images.labels.tolist(), images.patients, len(task.classes))
            found[name, split] = behind
            if have_several(images):
                found[name, OF_PATIENTS[split]] = cases_of(behind, task.positive_index)
        of_images = found[name, "validation"]
        each = found.get((name, OF_PATIENTS["validation"]), of_images)
        found |= {(name, member): each for member in members_of(study)}
    return found
