"""A site by itself: what its own patients alone would have made of the study's first network."""

from collections.abc import Callable, Mapping

import torch

from client.dataset import Images, batches
from client.features import frozen_features
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
        model: As the first round found it, on ``device``.
        images: The training images of each of the site's tasks.
        study: How to train.
        site: The site's name, which its random numbers depend on.
        device: Where the arithmetic runs.
        progress: Called with the number of rounds that are done.

    Raises:
        DivergedError: The training has no finite end.
    """
    features = frozen_features(model, device, study.backbone.image_size)
    sizes = {name: len(own) for name, own in images.items()}
    for number in range(1, study.rounds + 1):
        seed = stream(study.seed, site, number)
        order = batches(
            sizes,
            batch_size=study.training.batch_size,
            epochs=study.training.local_epochs,
            seed=stream(seed, "batches"),
        )
        with torch.random.fork_rng():
            torch.manual_seed(stream(seed, "dropout"))
            train(
                model,
                images,
                order,
                study,
                device=device,
                features=features,
                generator=torch.Generator().manual_seed(stream(seed, "augmentation")),
            )
        if progress is not None:
            progress(number)
    return model.eval()
