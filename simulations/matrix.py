"""Every model on each site's own test patients, each of whom counts once.

Intervals are those of ``client/bootstrap.py``, from the very draws that the site's own report
uses. Beside them stand the figures of all sites' patients together, and how far the sites lie
apart. A site whose test patients all have one class is named and has no figure, as most metrics
would be undefined there and the others flattering.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from client.bootstrap import Estimate, intervals
from client.dataset import Images
from client.local_figures import patient_cases
from client.weighted_metrics import NAMES, Cases
from common.seeds import stream
from common.spread import spread
from common.study import Study, Task

ALONE, ALONE_AT_HOME = "alone", "alone_at_home"
"""A model that one site trained by itself; each such model at its own site alone."""
PERSONAL, PERSONAL_AT_HOME = "personal", "personal_at_home"
"""What all share with the arrays that one site kept to itself; each at its own site alone."""
GLOBAL, ENSEMBLE, POOLED = "global", "ensemble", "pooled"


class Row(NamedTuple):
    """One model, or one for each site."""

    model: str
    site: str | None
    """Whose it is; None of what is no single site's."""
    cases: Mapping[str, Cases]
    """What it says of test patients, by their site."""


def of_task(
    study: Study, name: str, test: Mapping[str, Images], rows: Sequence[Row], sites: Sequence[str]
) -> dict[str, Any]:
    """Return the matrix of one task, ready for JSON.

    Args:
        study: The study.
        name: The task.
        test: Test images by site, of the sites that have the task.
        rows: The models.
        sites: Names of all sites of the study.
    """
    task = study.tasks[name]
    truth = {s: _truth(images, task) for s, images in test.items()}
    left_out = {s: "it has no images of this task" for s in sites if s not in test}
    left_out |= {s: why for s, of in truth.items() if (why := _why_not(of, task))}
    return {
        "sites": {s: _counted(of, task) for s, of in truth.items() if s not in left_out},
        "left_out": dict(sorted(left_out.items())),
        "rows": [_row(study, name, row, truth.keys(), left_out) for row in rows],
    }


def _row(
    study: Study, name: str, row: Row, sites: Collection[str], left_out: Collection[str]
) -> dict[str, Any]:
    """Return one model's figures at each site that can be judged, and over the sites."""
    per_site = {
        s: intervals(of, seed=stream(study.seed, s, "bootstrap", name))
        for s, of in row.cases.items()
        if s not in left_out
    }
    whole = set(row.cases) == set(sites)
    everybody = together(list(row.cases.values()))
    pooled = intervals(everybody, seed=stream(study.seed, "matrix", name))
    return {
        "model": row.model,
        "site": row.site,
        "per_site": {s: plain(found) for s, found in per_site.items()},
        # Of some sites' patients it would stand beside figures of all.
        "pooled": plain(pooled) if whole else None,
        "spread": {
            metric: spread({s: found[metric].value for s, found in per_site.items()}, metric)
            for metric in NAMES
        },
    }


def together(parts: Sequence[Cases]) -> Cases:
    """Lay the cases of sites together; no patient is of two sites."""
    counts = [int(part.owners.max()) + 1 if len(part.owners) else 0 for part in parts]
    first = np.cumsum([0, *counts[:-1]])
    return Cases(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.owners + start for part, start in zip(parts, first, strict=True)]),
        parts[0].positive,
    )


def plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return estimates as JSON has them."""
    return {name: asdict(estimate) for name, estimate in found.items()}


def _truth(images: Images, task: Task) -> Cases:
    return patient_cases(np.zeros((len(images), len(task.classes))), images, task)


def _why_not(truth: Cases, task: Task) -> str:
    """Say why a site has no figures; empty where it has."""
    present = np.unique(truth.labels)
    if not len(present):
        return "it has no test patients"
    if len(present) == 1:
        n = len(np.unique(truth.owners))
        return f"all of its {n} test patients have the class {task.classes[present[0]]}"
    return ""


def _counted(truth: Cases, task: Task) -> dict[str, Any]:
    by_class = np.bincount(truth.labels, minlength=len(task.classes)).tolist()
    return {
        "patients": len(np.unique(truth.owners)),
        "by_class": dict(zip(task.classes, by_class, strict=True)),
    }
