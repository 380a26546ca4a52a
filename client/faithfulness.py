"""Is a map true to the network? What the score does when what the map shows is taken away.

None of these figures says whether the network is right. Shapes: B batch, C channels, S image size.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.metrics.road import ROADCombined
from scipy.stats import rankdata
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from client.cam_layers import Layer, evaluating
from client.explain import LogOdds, Maps, Method, TaskNetwork, enlarged, explain
from common.models import FederatedModel
from common.seeds import stream

STEPS = 16
"""Points of a curve, beside its first."""
PERCENTILES = (20, 40, 60, 80)
"""Shares of the pixels that ROAD takes away."""
_BLUR = 0.05  # standard deviation of what insertion begins with, as a share of the image's side


class Faithfulness(NamedTuple):
    """How the class's probability follows a map, of one image."""

    insertion: float
    """Area under the probability while pixels come back into a blurred image, the map's highest
    first, in [0, 1]; higher is better (Petsiuk et al. 2018)."""
    deletion: float
    """Area under it while pixels of the image turn grey in that order; lower is better."""
    road: float
    """What the probability loses when the map's highest pixels are imputed from their neighbours,
    over what it loses with its lowest: half the difference, in [-1, 1] (Rong et al. 2022)."""


class _Probability:
    """A class's probability, as a target of the package.

    Args:
        label: Index of the class.
    """

    def __init__(self, label: int) -> None:
        self.label = label

    def __call__(self, logits_K: Tensor) -> Tensor:
        return torch.sigmoid(LogOdds(self.label)(logits_K))


def faithfulness(
    model: FederatedModel, x_BCSS: Tensor, task: str, labels: NDArray[np.int64], maps: Maps
) -> list[Faithfulness]:
    """Return how the network's probabilities follow the maps of a batch.

    Args:
        model: The network.
        x_BCSS: Normalised images on the network's device.
        task: Whose head is asked.
        labels: Index of the class that was explained of each image, shape (B,).
        maps: In [0, 1], at any size, shape (B, h, w).
    """
    network = TaskNetwork(model, task)
    size = x_BCSS.shape[-1]
    large = np.stack([enlarged(one, size, size) for one in maps])
    with evaluating(model), torch.inference_mode():
        blurred = F.gaussian_blur(x_BCSS, [_odd(4 * _BLUR * size)] * 2, [_BLUR * size] * 2)
        # 0 is the mean colour of what the network was trained on.
        curves = [
            [curve(network, start, end, label, one) for start, end in (pair, (x, 0 * x))]
            for x, pair, label, one in zip(
                x_BCSS, zip(blurred, x_BCSS, strict=True), labels.tolist(), large, strict=True
            )
        ]
    road = _road(network, x_BCSS, labels, large)
    return [
        Faithfulness(_area(inserted), _area(deleted), float(lost))
        for (inserted, deleted), lost in zip(curves, road, strict=True)
    ]


def curve(
    network: nn.Module, start_CSS: Tensor, end_CSS: Tensor, label: int, map_SS: Maps
) -> NDArray[np.float64]:
    """Return the probability while an image turns into another, the map's highest pixels first.

    Args:
        network: From images to logits.
        start_CSS: The image at the beginning.
        end_CSS: The image at the end.
        label: Index of the class.
        map_SS: Which pixels are exchanged first.

    Returns:
        ``STEPS`` + 1 probabilities.
    """
    # Equal values are common where a map is 0: a stable order keeps the curve the same each time.
    order = np.argsort(-map_SS.ravel(), kind="stable")
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size)
    place_SS = torch.from_numpy(place.reshape(map_SS.shape)).to(start_CSS.device)
    shares = torch.linspace(0, order.size, STEPS + 1, device=start_CSS.device)
    changed_NSS = place_SS[None] < shares[:, None, None]
    images = torch.where(changed_NSS[:, None], end_CSS[None], start_CSS[None])
    found: NDArray[np.float64] = (
        network(images.contiguous(memory_format=torch.channels_last))
        .softmax(dim=1)[:, label]
        .double()
        .cpu()
        .numpy()
    )
    return found


def randomised(model: FederatedModel, seed: int) -> FederatedModel:
    """Return a copy of a network whose weights are exchanged at random within each array.

    What is left of what was learnt is how large the numbers of each array are. Statistics of batch
    normalisation stay.

    Args:
        model: The network.
        seed: Of the study.
    """
    other = deepcopy(model)
    generator = torch.Generator().manual_seed(stream(seed, "randomised network"))
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return other


def likeness(
    model: FederatedModel,
    other: FederatedModel,
    x_BCSS: Tensor,
    task: str,
    labels: NDArray[np.int64],
    layer: Layer,
    method: Method,
) -> list[float | None]:
    """Return how alike the maps of two networks of one form are, image by image.

    The sanity check of Adebayo et al. (2018): a method whose maps of a randomised network look
    like those of the trained one shows the image and not what was learnt.

    Returns:
        Spearman's rank correlation of the cells, in [-1, 1]; None where a map is the same
        everywhere.
    """
    same = layer._replace(module=other.backbone.get_submodule(layer.name))
    maps = [
        explain(each, x_BCSS, task, labels, at, method).maps
        for each, at in ((model, layer), (other, same))
    ]
    return [_correlation(one, another) for one, another in zip(*maps, strict=True)]


def _correlation(one: Maps, other: Maps) -> float | None:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(rankdata(one.ravel()), rankdata(other.ravel()))[0, 1])


def _road(
    network: nn.Module, x_BCSS: Tensor, labels: NDArray[np.int64], maps: Maps
) -> Sequence[float]:
    targets = [_Probability(int(label)) for label in labels]
    # The imputer adds a little noise from torch's global generator.
    with evaluating(network), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream("road"))
        road = ROADCombined(percentiles=list(PERCENTILES))
        found: Sequence[float] = road(x_BCSS, maps, targets, network)
    return found


def _area(probabilities: NDArray[np.float64]) -> float:
    return float(np.trapezoid(probabilities, dx=1 / STEPS))


def _odd(pixels: float) -> int:
    return 2 * int(pixels / 2) + 1
