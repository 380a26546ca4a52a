"""From an image of any size to what the network takes.

Shapes: B batch, C channels (1 grey or 3 colour), H height, W width, S the study's image size.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


def prepare(image: NDArray[np.float32], size: int) -> Tensor:
    """Resize an image to the study's size, once, before it is kept.

    Args:
        image: Values in [0, 1], shape (H, W) or (H, W, 3).
        size: Height and width of the result, in pixels.

    Returns:
        Values in [0, 1] as float16, shape (1, S, S) or (3, S, S). Half precision keeps 11 bits
        of an image at half the memory.
    """
    x_HWC = image[..., None] if image.ndim == 2 else image  # noqa: PLR2004 - grey
    x_CHW = torch.from_numpy(np.ascontiguousarray(x_HWC)).permute(2, 0, 1)
    resized = F.resize(x_CHW, [size, size], InterpolationMode.BILINEAR, antialias=True)
    return cast("Tensor", resized.clamp_(0, 1).to(torch.float16))


def normalise(x_BCHW: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give grey images three equal channels, and all of them the backbone's mean and deviation.

    Args:
        x_BCHW: Values in [0, 1], one or three channels.
        mean: Mean of each of three channels, shape (3, 1, 1).
        std: Standard deviation of each of three channels, shape (3, 1, 1).

    Returns:
        float32, shape (B, 3, H, W), channels last in memory, which convolutions like.
    """
    x = (x_BCHW.to(torch.float32) - mean) / std  # one channel broadcasts to three
    return x.contiguous(memory_format=torch.channels_last)
