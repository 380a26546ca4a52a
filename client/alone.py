"""A site by itself: what its own patients alone would have made of the study's first network."""

from collections.abc import Callable, Mapping

import torch

from client.anchor import initial_of, near_of
from client.dataset import Images, round_of_batches
from client.phases import PhaseFeatures, in_phase
from client.train import train
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study


def train_alone(
    model: FederatedModel,
    images: Mapping[str, Images],
    study: Study,
    *,
    site: str,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> FederatedModel:
    """Train the study's first network, in place, on this site's training patients and no others.

    As many rounds, and in each as many steps over the same batches, as in a study that the site
    never missed a round of; like there, each round begins with a new optimizer. It trains without
    differential privacy: the network stays in memory, and only its figures are kept at the site.

    Args:
        model: As the first round found it, on ``device``. If the study's objective holds the
            backbone near the initial one, that is the one it comes with.
        images: The training images of each of the site's tasks.
        study: How to train.
        site: The site's name, which its random numbers depend on.
        device: Where the arithmetic runs.
        progress: Called with the number of rounds that are done.

    Raises:
        DivergedError: The training has no finite end.
    """
    features, initial = PhaseFeatures(model, study, site, device), initial_of(model, study)
    for number in range(1, study.rounds + 1):
        seed = stream(study.seed, site, number)
        with in_phase(model, study, number), torch.random.fork_rng():
            torch.manual_seed(stream(seed, "dropout"))
            kept = features.in_round(number)
            train(
                model,
                images,
                round_of_batches(images, study.training, seed),
                study,
                number=number,
                device=device,
                near=near_of(model, study, initial, kept),
                features=kept,
                generator=torch.Generator().manual_seed(stream(seed, "augmentation")),
            )
        if progress is not None:
            progress(number)
    return model.eval()
