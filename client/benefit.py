"""Models beside one another on a site's test patients, and what lies between each two of them.

Everything here stays at the site. Shapes: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.bootstrap import Estimate, differences, intervals
from client.config import SiteConfig
from client.dataset import Images, TaskData
from client.evaluate import logits_of
from client.local_figures import patient_cases
from client.weighted_metrics import Cases
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study

TUNED = "fine-tuned"
"""Name of the network that a site trained further by itself; see ``client/personal.py``."""
_PAIRS = (
    ("global", "alone"), ("personal", "alone"), ("personal", "global"),
    (TUNED, "alone"), (TUNED, "personal"), (TUNED, "global"),
)  # fmt: skip


@dataclass(frozen=True)
class Benefit:
    """Models beside one another on the same test patients, each of whom counts once."""

    metrics: Mapping[str, Mapping[str, Estimate]]
    """By model: ``alone``, ``global``, ``personal``, ``fine-tuned``, or the name of a ``Way``."""
    differences: Mapping[str, Mapping[str, Estimate]]
    """The first model minus the second, by their names, such as ``global - alone``; paired."""


def compare(
    config: SiteConfig,
    study: Study,
    networks: Mapping[str, FederatedModel],
    name: str,
    data: TaskData,
    device: torch.device,
    classical: Mapping[str, NDArray[np.floating]] | None = None,
) -> Benefit:
    """Compare models in pairs on a task's test patients, on draws that all of them share.

    Networks are compared with one another, and each of them with each classical way.

    Args:
        config: The hospital.
        study: The study.
        networks: On ``device``, by the names of ``Benefit.metrics``.
        name: The task.
        data: Its images.
        device: Where the arithmetic runs.
        classical: What classical ways say of the test images, by name: logits, shape (N, K) each.

    Raises:
        DivergedError: A network gives no finite numbers.
    """
    test, task = data.splits["test"], study.tasks[name]
    seed = stream(study.seed, config.name, "bootstrap", name)  # as for the other figures
    asked = {
        which: patients_of(study, model, test, name, device=device)
        for which, model in networks.items()
    }
    ways = {which: patient_cases(said, test, task) for which, said in (classical or {}).items()}
    cases = asked | ways
    pairs = [pair for pair in _PAIRS if set(pair) <= networks.keys()]
    pairs += [(network, way) for way in ways for network in networks]
    return Benefit(
        {which: intervals(own, seed=seed) for which, own in cases.items()},
        {f"{a} - {b}": differences(cases[a], cases[b], seed=seed) for a, b in pairs},
    )


def patients_of(
    study: Study, model: FederatedModel, images: Images, name: str, *, device: torch.device
) -> Cases:
    """Return what a network says of each patient of a split, as the study has it measured.

    Args:
        study: The study.
        model: The network on ``device``.
        images: The split's.
        name: The task.
        device: Where the arithmetic runs.

    Raises:
        DivergedError: The network gives no finite numbers.
    """
    logits = logits_of(model, images, name, device=device, adapted=study.evaluation.adapted)
    return patient_cases(logits, images, study.tasks[name])
