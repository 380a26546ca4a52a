"""What classical ways look at: features of images that are computed once.

Shapes: N images, D features.
"""

import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from client.dataset import Images
from client.handcrafted import handcrafted_features
from client.out_of_distribution import pooled_features
from common.classical_names import Way
from common.errors import OutputError
from common.models import FederatedModel

FeaturesOf = Callable[[Images], NDArray[np.float32]]
"""From images to their features, shape (N, D)."""


def edges_and_textures(images: Images) -> NDArray[np.float32]:
    """Return features that nothing has learned; see ``client.handcrafted``."""
    return handcrafted_features(images.pixels)


def backbone_features(model: FederatedModel, device: torch.device) -> FeaturesOf:
    """Return what computes a backbone's pooled features.

    Args:
        model: The network on ``device``, in evaluation mode.
        device: Where the arithmetic runs.
    """

    def of(images: Images) -> NDArray[np.float32]:
        if not len(images):
            return np.zeros((0, 0), np.float32)
        return pooled_features(model, images, device=device)

    return of


def check_installed() -> None:
    """Refuse to compute edges and textures without the package that does.

    Raises:
        OutputError: It is not installed.
    """
    if find_spec("skimage") is None:
        raise OutputError(
            "Edges and textures cannot be computed without scikit-image, of rarefed[classical].",
            remedy="Install the extra into rarefed's own Python: "
            f"{shlex.quote(sys.executable)} -m pip install 'rarefed[classical]'. Or leave out "
            f"{Way.HANDCRAFTED_SVM} and {Way.HANDCRAFTED_FOREST}: the other ways do not need it.",
        )
