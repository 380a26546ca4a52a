"""The gradients of one layer's parameters, patient by patient.

The gradient of a weight is a product of what came into the layer and of the loss's gradient at
what went out; ``x`` and ``g`` are these two, image after image, the images of a patient next to
each other. Weights are those of ``torch.nn.Linear`` and ``torch.nn.Conv2d``.

Shapes: n patients, B images, T positions of a patient in all its images, D inputs and P outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from timm.layers import LayerNorm, LayerNorm2d
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

LAYER_NORMS = (nn.LayerNorm, LayerNorm, LayerNorm2d)
"""Exact types: a subclass may do something else with its weight."""


class Product(NamedTuple):
    """A weight's gradient that has not been multiplied out."""

    layer: nn.Linear | nn.Conv2d
    x: Tensor
    g: Tensor


def is_product(layer: nn.Module) -> bool:
    """Say whether the layer is one of those whose weight's gradient is such a product."""
    if type(layer) is nn.Conv2d:  # a subclass may do something else with its weight
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def is_shorter(layer: nn.Linear | nn.Conv2d, positions: int) -> bool:
    """Say whether the norm costs less from the factors than from the product.

    The factors take two matrices of T x T, the product one of P x D (Bu et al. 2022,
    arXiv:2205.10683, section 3.3).
    """
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return not grouped and 2 * positions**2 < layer.weight.numel()


def weight_rows(product: Product, n: int) -> Tensor:
    """Return each patient's gradient of the weight, shape (n, *weight.shape)."""
    layer, x, g = product
    if isinstance(layer, nn.Linear):
        x_nTD, g_nTP = _factors(product, n)
        return g_nTP.mT @ x_nTD
    parts = zip(x.chunk(n), g.chunk(n), strict=True)
    # One call for each patient beats both Opacus' unfolding and a grouped convolution over all.
    return torch.stack([weight_sum(Product(layer, x_k, g_k)) for x_k, g_k in parts])


def bias_rows(product: Product, n: int) -> Tensor:
    """Return each patient's gradient of the bias, shape (n, P)."""
    channels = 1 if isinstance(product.layer, nn.Conv2d) else -1
    g = product.g.movedim(channels, -1)
    return g.reshape(n, -1, g.shape[-1]).sum(1)


def weight_sum(product: Product) -> Tensor:
    """Return the gradient of the weight, summed over all images."""
    layer, x, g = product
    if isinstance(layer, nn.Linear):
        return g.flatten(0, -2).mT @ x.flatten(0, -2)
    return conv2d_weight(  # type: ignore[no-any-return] # it has no annotations
        x, layer.weight.shape, g, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def squared_norms(products: Sequence[Product], n: int) -> Tensor:
    """Return the square of each patient's gradient of one weight, over all its uses, shape (n,).

    ||sum_t g_t x_t'||^2 = sum_st (x_s . x_t) (g_s . g_t) (Goodfellow 2015, arXiv:1510.01799).
    """
    factors = [_factors(product, n) for product in products]
    x_nTD = torch.cat([x for x, _ in factors], 1)
    g_nTP = torch.cat([g for _, g in factors], 1)
    return ((x_nTD @ x_nTD.mT) * (g_nTP @ g_nTP.mT)).sum((1, 2)).clamp_min(0)


def weighted(product: Product, weights_n: Tensor) -> Product:
    """Multiply what each patient gives to the product."""
    layer, x, g = product
    weights_B = weights_n.repeat_interleave(len(g) // len(weights_n))
    return Product(layer, x, g * weights_B.view(-1, *[1] * (g.ndim - 1)))


def other_rows(
    layer: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    g: Tensor,
    n: int,
    *,
    more: Sequence[Any] = (),
    named: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Return each patient's gradients of the parameters of any layer.

    Layer norm has a rule of its own; any other layer is run once more.

    Args:
        layer: A layer, or a whole part of a network, from one tensor to one tensor.
        parameters: Those that are wanted, by name.
        x: Its input.
        g: Gradient at its output.
        n: Number of patients.
        more: Further arguments of the layer, the same for all images.
        named: Further arguments by name, the same for all images.
    """
    if type(layer) in LAYER_NORMS:
        return _norm_rows(cast("nn.LayerNorm", layer), x, g, n)

    def product(values: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, values, (x, *more), dict(named or {}))
        return (output * g).sum()

    values = {name: value.detach() for name, value in parameters.items()}
    rows = vmap(grad(product), in_dims=(None, 0, 0))
    found: dict[str, Tensor] = rows(values, x.unflatten(0, (n, -1)), g.unflatten(0, (n, -1)))
    return found


def _norm_rows(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> dict[str, Tensor]:
    if isinstance(layer, LayerNorm2d):
        x, g = x.movedim(1, -1), g.movedim(1, -1)
    shape = layer.normalized_shape
    slopes = {"weight": F.layer_norm(x, shape, eps=layer.eps) * g, "bias": g}
    return {name: slope.reshape(n, -1, *shape).sum(1) for name, slope in slopes.items()}


def _factors(product: Product, n: int) -> tuple[Tensor, Tensor]:
    """Return input (n, T, D) and output gradient (n, T, P), whose product is the gradient."""
    layer, x, g = product
    if isinstance(layer, nn.Conv2d):
        x = _patches(layer, x).mT
        g = g.flatten(2).mT
    return x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1])


def _patches(layer: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """Return what the kernel sees at each position, shape (B, D, T)."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0):
        return x_BCHW.flatten(2)
    assert not isinstance(layer.padding, str)  # noqa: S101 - is_product has seen to it
    return F.unfold(x_BCHW, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
