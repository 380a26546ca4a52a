"""What a network has that tells the sites apart by their features, while it trains.

Shapes: B batch, D features, S sites.
"""

from torch import nn

HIDDEN = 64
"""Numbers between its two layers."""


def make_discriminator(features: int, sites: int) -> nn.Sequential:
    """Return what gives the logits of an image's site, (B, S), of its pooled features, (B, D).

    Each image's features are standardised first: a network cannot hide its sites by making all
    features small, and one layer's rate fits backbones of any scale.

    Args:
        features: D, how many the backbone gives.
        sites: S, most sites that are told apart.
    """
    return nn.Sequential(
        nn.LayerNorm(features, elementwise_affine=False),
        nn.Linear(features, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, sites),
    )
