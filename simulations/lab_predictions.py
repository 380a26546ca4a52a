"""What models said of the held-out images of a task, kept as a table.

This is for simulations alone: no real site lets a prediction of a patient out. All figures, curves
and tests of a lab come from these tables. Shapes: N images, K classes.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.dataset import Images
from client.patients import by_patient, owners_of_cases
from client.weighted_metrics import Cases
from common.files import replacing
from common.ranking import Floats, Ints
from common.study import Task

_BEFORE_CLASSES = ("split", "site", "patient", "label", "model")
ONE_MODEL = ""
"""Name of a model that is the only one."""


class Held(NamedTuple):
    """The held-out images of one task, and what each model says of them."""

    splits: tuple[str, ...]
    """``validation`` or ``test``, N of them."""
    sites: tuple[str, ...]
    patients: tuple[str, ...]
    """Site and keyed hash of each image's patient."""
    labels: Ints
    """(N,)."""
    said: Mapping[str, Floats]
    """Logarithms of probabilities, (N, K), by the model's name."""


def held(
    parts: Mapping[str, Images],
    places: Mapping[str, Mapping[str, slice]],
    logits: Mapping[str, Mapping[str, NDArray[np.floating]]],
) -> Held:
    """Return what models say of the splits' images, one split after the other.

    Args:
        parts: The task's images of all sites by split.
        places: By split, then site: which of them are the site's.
        logits: By model, then split: (N, K) each, N the images of the split.
    """
    splits: list[str] = []
    sites: list[str] = []
    patients: list[str] = []
    for split, images in parts.items():
        owner = {i: site for site, at in places[split].items() for i in range(at.start, at.stop)}
        found = [owner[i] for i in range(len(images))]
        splits += [split] * len(images)
        sites += found
        patients += [f"{s}/{p}" for s, p in zip(found, images.patients, strict=True)]
    labels = [images.labels.numpy().astype(np.int64) for images in parts.values()]
    said = {
        model: log_probabilities(np.concatenate([of[split] for split in parts]))
        for model, of in logits.items()
    }
    return Held(tuple(splits), tuple(sites), tuple(patients), np.concatenate(labels), said)


def log_probabilities(logits: NDArray[np.floating]) -> Floats:
    """Return (N, K): the logarithm of the probability of each class."""
    wide = logits.astype(np.float64)
    found: Floats = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    return found


def cases_of(one: Held, task: Task, split: str = "test") -> list[Cases]:
    """Return what each model says of each patient; see ``client.patients.by_patient``."""
    where = np.array([found == split for found in one.splits], bool)
    patients = tuple(p for p, there in zip(one.patients, where, strict=True) if there)
    if not patients:
        return []
    labels, positive = one.labels[where], task.positive_index
    names = np.array(owners_of_cases(labels, patients, positive), str)
    owners = np.unique(names, return_inverse=True)[1]
    found = []
    for log_p in one.said.values():
        said, truth = by_patient(log_p[where], labels, patients, task.per_patient, positive)
        found.append(Cases(said, truth.astype(np.int64), owners, positive))
    return found


def write(path: Path, one: Held, classes: Sequence[str]) -> None:
    """Write the table: a line for each image and model, numbers to their last bit."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*_BEFORE_CLASSES, *classes))
        for model, log_p in one.said.items():
            labels = [classes[k] for k in one.labels.tolist()]
            columns = zip(one.splits, one.sites, one.patients, labels, log_p.tolist(), strict=True)
            for split, site, patient, label, values in columns:
                table.writerow((split, site, patient, label, model, *map(repr, values)))


def read(path: Path, classes: Sequence[str]) -> Held:
    """Return the table that ``write`` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    number = {name: k for k, name in enumerate(classes)}
    models = list(dict.fromkeys(row[4] for row in rows))
    first = [row for row in rows if row[4] == models[0]] if models else []
    said = {
        model: np.array([[float(v) for v in row[5:]] for row in rows if row[4] == model])
        for model in models
    }
    return Held(
        tuple(row[0] for row in first),
        tuple(row[1] for row in first),
        tuple(row[2] for row in first),
        np.array([number[row[3]] for row in first], np.int64),
        said,
    )


def alone_at_home(one: Held) -> Held:
    """Return what each image's own site says of it, as one model."""
    rows = enumerate(one.sites)
    own = [one.said[site][row] for row, site in rows]
    return one._replace(said={ONE_MODEL: np.array(own)})


def joined(members: Sequence[Held], weights: Sequence[float]) -> Held:
    """Return the weighted mean of the probabilities of all models of the members, as one model.

    A member of several models divides its weight among them.

    Args:
        members: What they say of the same images.
        weights: Of each, not negative, not all 0.

    Raises:
        ValueError: They are not of the same images.
    """
    first = members[0]
    for other in members[1:]:
        if (other.splits, other.patients) != (first.splits, first.patients):
            raise ValueError("the members say something of other images")
    share = np.array(weights, np.float64) / np.sum(weights)
    parts = [
        np.log(of / len(one.said)) + log_p
        for one, of in zip(members, share.tolist(), strict=True)
        if of > 0
        for log_p in one.said.values()
    ]
    return first._replace(said={ONE_MODEL: np.logaddexp.reduce(np.stack(parts))})
