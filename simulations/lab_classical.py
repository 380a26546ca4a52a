"""Rows of a lab that train no network: features that are computed once, and a classifier of them.

Shapes: N images, D features, K classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.classical_features import backbone_features, edges_and_textures
from client.classical_ways import fit_task
from client.dataset import Images
from client.site import Site
from common.models import FederatedModel
from common.study import Study
from simulations import yardsticks
from simulations.lab import Classical
from simulations.lab_predictions import ONE_MODEL

BySplit = dict[str, NDArray[np.float64]]


def each_classical(
    study: Study,
    sites: Sequence[Site],
    start: FederatedModel,
    row: Classical,
    held_out: Mapping[str, Mapping[str, Images]],
    tell: Callable[[str], None],
) -> Iterator[tuple[str, str, BySplit]]:
    """Yield each task, the site whose classifier it is, and what that says of held-out images.

    A site's classifier is fitted on its own training images; a row that is pooled has a single one
    of each task, fitted on those of all sites.

    Args:
        study: Tasks, class weights and seed.
        sites: Its sites, their data warm.
        start: The network as a study begins.
        row: What is computed of an image, and what decides.
        held_out: The images that are asked about, by split, then task.
        tell: Called with a word on what is being done.

    Yields:
        Task, site, and logarithms of probabilities by split, shape (N, K) each.
    """
    training, places = yardsticks.held_out(study, sites, "train")
    device = sites[0].device
    frozen = backbone_features(start.to(device).eval(), device)
    of = edges_and_textures if row.features == "handcrafted" else frozen
    for task, images in training.items():
        tell(f"{row.features} features of {task}")
        known_ND, labels_N = of(images), images.labels.numpy()
        asked = {split: of(parts[task]) for split, parts in held_out.items()}
        whose = {ONE_MODEL: slice(None)} if row.pooled else places[task]
        for site, own in whose.items():
            said = {
                split: fit_task(
                    study,
                    task,
                    known_ND[own],
                    labels_N[own],
                    features_ND,
                    row.classifier,
                    whose=site,
                )
                for split, features_ND in asked.items()
            }
            yield task, site, said
