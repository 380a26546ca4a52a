"""Batch normalisation with the statistics of the images at hand, while they are evaluated.

Running means and variances are those of the training images, of all hospitals where they are
averaged. Where another scanner made the images, those of the images themselves, whose labels nobody
asks for, fit better (Nado et al. 2020, arXiv:2006.10963; Schneider et al. 2020, arXiv:2006.16971).
What is said of an image then depends on the images beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from client.dataset import Images
from client.features import BATCH, channel_statistics
from client.preprocess import normalise
from common.models import FederatedModel

FEWEST = 2
"""Patients below which the stored statistics stay: images of one say nothing of the others."""


@contextmanager
def statistics_of(model: FederatedModel, images: Images, *, device: torch.device) -> Iterator[None]:
    """Give living batch norm the statistics of some images, in one pass, and back its own after.

    Each layer's are the plain means over batches of nearly equal size, of what the layers before
    it give with the batch's own; nothing else is in training mode, so no chance is in it.

    Args:
        model: The network on ``device``.
        images: Whose statistics; of fewer than ``FEWEST`` patients nothing is changed.
        device: Where the arithmetic runs.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if images.n_patients < FEWEST or not layers:
        yield
        return
    own = [(layer.momentum, [b.clone() for b in layer.buffers()]) for layer in layers]
    try:
        _estimate(model, layers, images, device)
        yield
    finally:
        for layer, (momentum, buffers) in zip(layers, own, strict=True):
            layer.momentum = momentum
            for buffer, value in zip(layer.buffers(), buffers, strict=True):
                buffer.copy_(value)


def _estimate(
    model: FederatedModel, layers: list[_BatchNorm], images: Images, device: torch.device
) -> None:
    mean, std = channel_statistics(model, device)
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    with torch.no_grad():
        for some in torch.arange(len(images)).tensor_split(-(-len(images) // BATCH)):
            model.features(normalise(images.pixels[some].to(device), mean, std))
    model.eval()
