"""Rows of a lab that train no network: features that are computed once, and a classifier of them.

Shapes: N images, D features, K classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.classical import fit_and_ask
from client.dataset import Images
from client.handcrafted import handcrafted_features
from client.out_of_distribution import pooled_features
from client.site import Site
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study
from simulations import yardsticks
from simulations.lab import Classical
from simulations.lab_predictions import ONE_MODEL

BySplit = dict[str, NDArray[np.float64]]
FeaturesOf = Callable[[Images], NDArray[np.float32]]


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
    of = _features_of(start.to(sites[0].device).eval(), row, sites[0].device)
    for task, images in training.items():
        tell(f"{row.features} features of {task}")
        known_ND, labels_N = of(images), images.labels.numpy()
        asked = {split: of(parts[task]) for split, parts in held_out.items()}
        whose = {ONE_MODEL: slice(None)} if row.pooled else places[task]
        for site, own in whose.items():
            said = {
                split: fit_and_ask(
                    known_ND[own],
                    labels_N[own],
                    features_ND,
                    row.classifier,
                    classes=len(study.tasks[task].classes),
                    balanced=study.training.class_weights == "balanced",
                    seed=stream(study.seed, "classical", site, task),
                )
                for split, features_ND in asked.items()
            }
            yield task, site, said


def _features_of(model: FederatedModel, row: Classical, device: torch.device) -> FeaturesOf:
    def of(images: Images) -> NDArray[np.float32]:
        if not len(images):
            return np.zeros((0, 0), np.float32)
        if row.features == "handcrafted":
            return handcrafted_features(images.pixels)
        return pooled_features(model, images, device=device)

    return of
