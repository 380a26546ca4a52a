"""Features that nothing has learned: edges and textures, the papers' "traditional" baseline.

Shapes: N images, C channels, S image size, D features.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.stored_pixels import StoredPixels

CELLS = 8
"""Cells of the histograms of oriented gradients along each side."""
_ORIENTATIONS = 9
_TEXTURES = ((8, 1), (16, 2), (24, 3))
"""Neighbours and radius, in pixels, of each pattern."""

Floats = NDArray[np.float32]


def handcrafted_features(pixels: Tensor | StoredPixels) -> Floats:
    """Return HOG and LBP features of prepared images, shape (N, D).

    - Histograms of oriented gradients (Dalal and Triggs 2005): nine directions in ``CELLS`` cells
      along each side, normalised in blocks of 2 x 2 cells (L2-Hys). An image whose side is no
      multiple of ``CELLS`` is resized to the next one for that.
    - Histograms of uniform local binary patterns that rotation leaves as they are (Ojala,
      Pietikainen and Maenpaa 2002), of 8, 16 and 24 neighbours at 1, 2 and 3 pixels.

    Args:
        pixels: In [0, 1], shape (N, C, S, S), S of 32 or more; those in colour (C = 3) count by
            their luminance.

    Returns:
        D is the same whatever S is.
    """
    found = [_features_of(pixels[i : i + 1][0].float().numpy()) for i in range(pixels.shape[0])]
    return np.stack(found) if found else np.zeros((0, 0), np.float32)


def _features_of(image_CSS: Floats) -> Floats:
    """Return the features of one image, shape (D,)."""
    from skimage.color import rgb2gray  # noqa: PLC0415 - takes a second to import
    from skimage.feature import hog, local_binary_pattern  # noqa: PLC0415
    from skimage.transform import resize  # noqa: PLC0415

    colour = image_CSS.shape[0] > 1
    grey_SS = rgb2gray(image_CSS, channel_axis=0) if colour else image_CSS[0]
    cell = -(-len(grey_SS) // CELLS)
    parts = [
        hog(
            resize(grey_SS, (CELLS * cell,) * 2),  # one of that size stays as it is
            orientations=_ORIENTATIONS,
            pixels_per_cell=(cell, cell),
            cells_per_block=(2, 2),
            block_norm="L2-Hys",
        )
    ]
    levels_SS = np.rint(255 * grey_SS).astype(np.uint8)  # equal neighbours must be equal
    for neighbours, radius in _TEXTURES:
        codes_SS = local_binary_pattern(levels_SS, neighbours, radius, method="uniform")
        counts = np.bincount(codes_SS.astype(int).ravel(), minlength=neighbours + 2)
        parts.append(counts / levels_SS.size)
    features: Floats = np.concatenate(parts).astype(np.float32)
    return features
