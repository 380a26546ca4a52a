"""What the network does on held-out images. Shapes: N images, B batch, K classes."""

import numpy as np
import torch
from numpy.typing import NDArray

from client.dataset import Images
from client.preprocess import normalise
from client.train import channel_statistics
from common import metrics
from common.errors import DivergedError
from common.metrics import MetricState
from common.models import FederatedModel
from common.study import Task

BATCH = 64
"""Images that go through the network at once; a matter of speed alone."""


def logits_of(
    model: FederatedModel, images: Images, task: str, *, device: torch.device
) -> NDArray[np.float32]:
    """Return the logits of every image, shape (N, K), the network in evaluation mode.

    Raises:
        DivergedError: A logit is not finite.
    """
    model.eval()
    mean, std = channel_statistics(model, device)
    with torch.inference_mode():
        parts = [
            model(normalise(x_BCHW.to(device), mean, std), task).float().cpu()
            for x_BCHW in images.pixels.split(BATCH)
            if len(x_BCHW)
        ]
    if not parts:
        classes = model.get_parameter(f"heads.{task}.bias").numel()
        return np.zeros((0, classes), np.float32)
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise DivergedError(f"The model that came gives no finite numbers for {task}.")
    return logits


def evaluate(
    model: FederatedModel, images: Images, name: str, task: Task, *, device: torch.device
) -> MetricState:
    """Return the sums and histograms from which the coordinator computes every metric."""
    logits = logits_of(model, images, name, device=device)
    return state_of(logits, images, task)


def state_of(logits: NDArray[np.floating], images: Images, task: Task) -> MetricState:
    """Return the metric state of logits, shape (N, K), against the images' labels."""
    state = metrics.zero(len(task.classes), task.positive_index)
    state = metrics.update(state, logits, images.labels.numpy(), task.positive_index)
    return metrics.with_patients(state, images.n_patients)
