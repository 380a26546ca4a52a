"""Random changes of training images, each image by itself, anew each time that it is seen.

Shapes: B batch, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from common.imaging import Varied

CONTROL_POINTS = 5
"""Points in each direction whose random displacements make an elastic deformation."""


def augmented(x_BCHW: Tensor, by: Varied, generator: torch.Generator | None = None) -> Tensor:
    """Vary a batch of images.

    Rotation, zoom, flip and elastic deformation are one resampling, which blurs once; beyond an
    edge its pixels go on, for what surrounds a body is not black in every preparation. Contrast,
    brightness and noise follow.

    Args:
        x_BCHW: Values in [0, 1], on any device.
        by: How much may change.
        generator: Whence all randomness comes, on the CPU, so that a seed means the same
            everywhere; torch's global one by default.

    Returns:
        Values in [0, 1] as float32, of the same shape.
    """
    x_BCHW = x_BCHW.to(torch.float32)
    # A fixed number of draws: what one change is allowed does not shift the others' randomness.
    spread_5B = 2 * torch.rand(5, len(x_BCHW), generator=generator) - 1
    if by.rotation or by.zoom or by.flip or by.elastic:
        x_BCHW = _moved(x_BCHW, by, spread_5B[:3], generator)
    factors_2B11 = spread_5B[3:].to(x_BCHW.device)[..., None, None, None]
    if by.contrast:
        mean_B111 = x_BCHW.mean(dim=(1, 2, 3), keepdim=True)
        x_BCHW = mean_B111 + (1 + by.contrast * factors_2B11[0]) * (x_BCHW - mean_B111)
        x_BCHW = x_BCHW.clamp(0, 1)
    if by.brightness:
        x_BCHW = (x_BCHW * (1 + by.brightness * factors_2B11[1])).clamp(0, 1)
    if by.noise:
        noise_BCHW = torch.randn(x_BCHW.shape, generator=generator).to(x_BCHW.device)
        x_BCHW = (x_BCHW + by.noise * noise_BCHW).clamp(0, 1)
    return x_BCHW


def _moved(
    x_BCHW: Tensor, by: Varied, spread_3B: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Resample a batch through a random affine map of each image, and a deformation on top."""
    angle_B = math.radians(by.rotation) * spread_3B[0]
    zoom_B = 1 + by.zoom * spread_3B[1]
    flip_B = torch.where(spread_3B[2] < 0, -1.0, 1.0) if by.flip else torch.ones_like(zoom_B)
    height, width = x_BCHW.shape[-2:]
    # From a place in the result to one in the image, both in [-1, 1]; a turn is one of pixels.
    along_B, across_B = torch.cos(angle_B) / zoom_B, torch.sin(angle_B) / zoom_B
    zero_B = torch.zeros_like(along_B)
    theta_B23 = torch.stack(
        [
            torch.stack([flip_B * along_B, flip_B * across_B * height / width, zero_B], dim=1),
            torch.stack([-across_B * width / height, along_B, zero_B], dim=1),
        ],
        dim=1,
    )
    grid_BHW2 = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    if by.elastic:
        grid_BHW2 = grid_BHW2 + _deformation(x_BCHW.shape, by.elastic / 1000, generator)
    return F.grid_sample(
        x_BCHW, grid_BHW2.to(x_BCHW.device), padding_mode="border", align_corners=False
    )


def _deformation(shape: torch.Size, size: float, generator: torch.Generator | None) -> Tensor:
    """Return smooth random displacements in units of half the image's side, shape (B, H, W, 2).

    As in U-Net's training (Ronneberger et al. 2015): normal displacements of a few control points,
    and bicubic interpolation between them.

    Args:
        shape: Of the images, (B, C, H, W).
        size: Standard deviation at the control points, as a share of the image's side.
        generator: Whence the randomness comes.
    """
    points = (shape[0], 2, CONTROL_POINTS, CONTROL_POINTS)
    coarse = 2 * size * torch.randn(points, generator=generator)
    fine = F.interpolate(coarse, size=list(shape[-2:]), mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1)
