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

from client.filters import denoised, equalised
from client.fundus import ben_graham, cropped, mirrored, retina_of
from common.imaging import Preparation, prepared


def prepare(
    image: NDArray[np.float32],
    size: int,
    preparation: Preparation | None = None,
    modality: str = "other",
    laterality: str = "",
) -> Tensor:
    """Bring an image into the study's form, once, before it is kept.

    Args:
        image: Values in [0, 1], shape (H, W) or (H, W, 3), red first.
        size: Height and width of the result, in pixels.
        preparation: What the task asks for; None is the resize alone.
        modality: The task's, which says what the preparation leaves out.
        laterality: L where the image is known to be of a left eye.

    Returns:
        Values in [0, 1] as float16, shape (1, S, S) or (3, S, S). Half precision keeps 11 bits
        of an image at half the memory.
    """
    steps = prepared(preparation, modality)
    image = _enhanced(image, steps, laterality)
    x_HWC = image[..., None] if image.ndim == 2 else image  # noqa: PLR2004 - grey
    x_CHW = torch.from_numpy(np.ascontiguousarray(x_HWC)).permute(2, 0, 1)
    x_CHW = _padded(x_CHW, size) if steps.aspect == "pad" else _resized(x_CHW, size, size)
    return x_CHW.clamp_(0, 1).to(torch.float16)


def _enhanced(
    image: NDArray[np.float32], steps: Preparation, laterality: str
) -> NDArray[np.float32]:
    """Return an image after all steps but the last, the resize."""
    # The disc is looked for before the contrast of what surrounds it is raised.
    disc = retina_of(image) if steps.crop == "retina" or steps.ben_graham else None
    if steps.crop == "retina" and disc is not None:
        image, disc = cropped(image, disc)
    if steps.mirror and laterality == "L":
        image, disc = mirrored(image, disc)
    if steps.ben_graham:  # while what is black is black
        image = ben_graham(image, disc)
    if steps.local_contrast:
        image = equalised(image, "clahe")
    if steps.denoise != "none":
        image = denoised(image, steps.denoise)
    if steps.equalise != "none":  # after the noise is out, which it would enlarge
        image = equalised(image, steps.equalise)
    return image


def _resized(x_CHW: Tensor, height: int, width: int) -> Tensor:
    size = [height, width]
    return cast("Tensor", F.resize_image(x_CHW, size, InterpolationMode.BILINEAR, antialias=True))


def _padded(x_CHW: Tensor, size: int) -> Tensor:
    """Resize in proportion, and lay what is missing of the square in black on both sides."""
    height, width = x_CHW.shape[-2:]
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    right, bottom = size - inner_width - left, size - inner_height - top
    resized = _resized(x_CHW, inner_height, inner_width)
    return cast("Tensor", F.pad(resized, [left, top, right, bottom]))


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
