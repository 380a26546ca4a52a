"""A site by itself: what its own patients alone would have made of the study's first network."""

from collections.abc import Callable, Mapping

import torch

from client.dataset import Images
from client.own_rounds import Patients, train_rounds
from common.models import FederatedModel
from common.study import Study


def train_alone(
    model: FederatedModel,
    images: Mapping[str, Images],
    study: Study,
    *,
    site: str,
    device: torch.device,
    validation: Mapping[str, Images] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FederatedModel:
    """Train the study's first network, in place, on this site's patients and no others.

    It is what a study with this site alone would be that the site never missed a round of: in each
    round as many steps over the same batches, with a new optimizer, and after as many rounds, with
    that round's network, as the study's rules say of the site's own validation patients. It trains
    without differential privacy: the network stays in memory, and only its figures are kept at the
    site.

    Args:
        model: As the first round found it, on ``device``. If the study's objective holds the
            backbone near the initial one, that is the one it comes with.
        images: The training images of each of the site's tasks.
        study: How to train, and when to end.
        site: The site's name, which its random numbers depend on.
        device: Where the arithmetic runs.
        validation: The validation images of these tasks; without them no round has a score, so
            that nothing hangs on one.
        progress: Called with the number of rounds that are done.

    Raises:
        DivergedError: The training has no finite end.
    """
    patients = Patients(site, images, validation=() if validation is None else (validation,))
    train_rounds(model, patients, study, device=device, progress=progress)
    return model.eval()
