"""All models at all sites: the federation's, each site's own and the yardsticks.

Shapes: N images, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.dataset import Images
from client.final_model import final_model
from client.local_figures import patient_cases
from client.site import Site
from common.errors import FederationError
from common.study import Study, Task
from common.weights import layout_of
from server.stored_model import load_model
from simulations import benefit, matrix
from simulations.asking import ask_at_sites, part
from simulations.matrix import Row
from simulations.yardsticks import Asked, Logits

NO_PERSONAL = "it keeps no model of the study's last exchange"


class Federated(NamedTuple):
    """What the federation's models say of the test images of all sites laid together."""

    shared: Mapping[str, Logits]
    """What all sites share, by task, (N, K) each; empty where each site keeps its own heads."""
    personal: Mapping[str, Mapping[str, Logits]]
    """With the arrays that never left a site, by task, then site; empty where none are local."""
    missing: Mapping[str, str]
    """Why a site has no personal model, where the study would give it one."""


class Across(NamedTuple):
    """What ``summary.json`` says of models across sites, by task."""

    matrix: dict[str, Any]
    benefit: dict[str, Any]


def ask(
    study: Study,
    sites: Sequence[Site],
    test: Mapping[str, Images],
    places: Mapping[str, Mapping[str, slice]],
    file: Path,
) -> Federated:
    """Ask the models of a played study about the test images of all sites.

    Args:
        study: The study.
        sites: Its sites, in whose state their final networks lie.
        test: By task.
        places: By task, then site: which of the images are the site's.
        file: The coordinator's model.
    """
    device = sites[0].device
    model = load_model(study, file).to(device).to(memory_format=torch.channels_last)
    shared = {
        task: ask_at_sites(study, model, test[task], task, places[task], device=device)
        for task in (study.tasks if study.federation.personal == "none" else ())
    }
    personal: dict[str, dict[str, Logits]] = {task: {} for task in study.tasks}
    missing = {}
    for site in sites if layout_of(model, study).local else ():
        try:
            final = final_model(site.config, study, device=site.device)
        except FederationError:
            missing[site.config.name] = NO_PERSONAL
            continue
        for task in final.tasks:
            personal[task][site.config.name] = ask_at_sites(
                study, final.model, test[task], task, places[task], device=site.device
            )
    return Federated(shared, personal, missing)


def compare(study: Study, sites: Sequence[str], asked: Asked, federated: Federated) -> Across:
    """Return the matrix of models and sites, and what each site gained, by task.

    Args:
        study: The study.
        sites: Names of all sites.
        asked: What the yardsticks say.
        federated: What the federation's models say.
    """
    found = Across({}, {})
    for name, task in study.tasks.items():
        test = {site: part(asked.test[name], at) for site, at in asked.places[name].items()}
        rows = _rows(task, test, _said(name, asked, federated))
        table = matrix.of_task(study, name, test, rows, sites)
        table["no_personal"] = {s: why for s, why in federated.missing.items() if s in test}
        found.matrix[name] = table
        found.benefit[name] = benefit.of_task(study, name, table, rows)
    return found


def _said(
    task: str, asked: Asked, federated: Federated
) -> Iterator[tuple[str, str | None, dict[str, NDArray[np.floating]]]]:
    """Yield every model of a task, whose it is, and its logits at each site that has the task."""
    places = asked.places[task]
    for model, home, by_site in (
        (matrix.ALONE, matrix.ALONE_AT_HOME, asked.alone[task]),
        (matrix.PERSONAL, matrix.PERSONAL_AT_HOME, federated.personal[task]),
    ):
        for site, logits in by_site.items():
            yield model, site, {s: logits[at] for s, at in places.items()}
        if by_site:
            yield home, None, {s: of[places[s]] for s, of in by_site.items()}
    for model, said in (
        (matrix.ENSEMBLE, asked.ensemble[task]),
        (matrix.GLOBAL, federated.shared.get(task)),
        (matrix.POOLED, asked.pooled[task]),
    ):
        if said is not None:
            yield model, None, {s: said[at] for s, at in places.items()}


def _rows(
    task: Task,
    test: Mapping[str, Images],
    said: Iterable[tuple[str, str | None, dict[str, NDArray[np.floating]]]],
) -> list[Row]:
    return [
        Row(model, site, {s: patient_cases(logits, test[s], task) for s, logits in of.items()})
        for model, site, of in said
    ]
