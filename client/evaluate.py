"""What the network does on held-out images.

Shapes: N images, B batch, K classes, M members of an ensemble.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.adapted_statistics import statistics_of
from client.dataset import Images
from client.features import FrozenFeatures, batches_of, channel_statistics
from client.patients import have_several, state_of_patients
from client.preprocess import normalise
from common import metrics
from common.errors import DivergedError
from common.metrics import MetricState
from common.models import FederatedModel
from common.study import Task


class Measured(NamedTuple):
    """One split's sums and histograms, from which the coordinator computes every metric."""

    of_images: MetricState
    of_patients: MetricState | None
    """Each patient counts once; None where every patient has one image."""

    @property
    def each_patient_once(self) -> MetricState:
        """That of patients where some have several images, else of images."""
        return self.of_images if self.of_patients is None else self.of_patients


def logits_of(
    model: FederatedModel,
    images: Images,
    task: str,
    *,
    device: torch.device,
    features: FrozenFeatures | None = None,
    adapted: bool = False,
) -> NDArray[np.float32]:
    """Return the logits of every image, shape (N, K), the network in evaluation mode.

    Args:
        model: The network on ``device``.
        images: What it looks at.
        task: Whose head is asked.
        device: Where the arithmetic runs.
        features: Where those of the images are kept; None where the whole network is run.
        adapted: Whether batch normalisation has the statistics of these very images; all of it
            is run then.

    Raises:
        DivergedError: A logit is not finite.
    """
    logits_1NK = _logits(model, images, task, device, features, adapted=adapted, apart=False)
    return logits_1NK.squeeze(0)


def logits_apart(
    model: FederatedModel,
    images: Images,
    task: str,
    *,
    device: torch.device,
    features: FrozenFeatures | None = None,
    adapted: bool = False,
) -> NDArray[np.float32]:
    """Return what each member of an ensemble says by itself, shape (M, N, K); see ``logits_of``."""
    return _logits(model, images, task, device, features, adapted=adapted, apart=True)


def _logits(
    model: FederatedModel,
    images: Images,
    task: str,
    device: torch.device,
    features: FrozenFeatures | None,
    *,
    adapted: bool,
    apart: bool,
) -> NDArray[np.float32]:
    """Return the logits of each member, shape (M, N, K), or of the whole network, (1, N, K)."""
    if adapted:
        with statistics_of(model, images, device=device):
            return _logits(model, images, task, device, None, adapted=False, apart=apart)
    network = model if features is None else features.network
    network.eval()
    mean, std = channel_statistics(model, device)

    def inputs(indices_B: Tensor) -> Tensor:
        if features is not None:
            return features.of(images, indices_B)
        return normalise(images.pixels[indices_B].to(device), mean, std)

    def said(x: Tensor) -> Tensor:
        found = network.classify_apart(network.features(x), task) if apart else network(x, task)
        return cast("Tensor", found).float().cpu().view(-1, len(x), found.shape[1])

    with torch.inference_mode():
        parts = [said(inputs(some)) for some in batches_of(images)]
    if not parts:
        classes = cast("int", model.heads[task].out_features)
        return np.zeros((model.members if apart else 1, 0, classes), np.float32)
    logits: NDArray[np.float32] = torch.cat(parts, dim=1).numpy()
    if not np.isfinite(logits).all():
        raise DivergedError(f"The model that came gives no finite numbers for {task}.")
    return logits


def evaluate(
    model: FederatedModel,
    images: Images,
    name: str,
    task: Task,
    *,
    device: torch.device,
    features: FrozenFeatures | None = None,
    adapted: bool = False,
) -> Measured:
    """Return what the network's logits on a split's images are measured as; see ``logits_of``."""
    logits = logits_of(model, images, name, device=device, features=features, adapted=adapted)
    return measured(logits, images, task)


def evaluate_apart(
    model: FederatedModel,
    images: Images,
    name: str,
    task: Task,
    *,
    device: torch.device,
    features: FrozenFeatures | None = None,
    adapted: bool = False,
) -> list[Measured]:
    """Return the same of each member of an ensemble by itself; see ``logits_apart``."""
    said_MNK = logits_apart(model, images, name, device=device, features=features, adapted=adapted)
    return [measured(said_NK, images, task) for said_NK in said_MNK]


def measured(logits: NDArray[np.floating], images: Images, task: Task) -> Measured:
    """Return the metric states of logits, shape (N, K), by image and by patient."""
    several = have_several(images)
    return Measured(
        state_of(logits, images, task),
        state_of_patients(logits, images, task) if several else None,
    )


def state_of(logits: NDArray[np.floating], images: Images, task: Task) -> MetricState:
    """Return the metric state of logits, shape (N, K), against the images' labels."""
    state = metrics.zero(len(task.classes), task.positive_index)
    labels = images.labels.numpy()
    state = metrics.update(state, logits, labels, task.positive_index)
    state = metrics.with_joint(state, logits, labels)
    return metrics.with_patients(state, images.n_patients)
