"""Laws of the gradients of one layer, patient by patient."""

from typing import Any

import pytest
import torch
from timm.layers import LayerNorm, LayerNorm2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from client.layer_gradients import (
    Product,
    bias_rows,
    is_product,
    is_shorter,
    other_rows,
    squared_norms,
    weight_rows,
    weight_sum,
    weighted,
)

IMAGE, VECTOR, TOKENS = (6, 4, 9, 8), (6, 5), (6, 7, 5)
PRODUCTS: dict[str, tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]] = {
    "3x3": (nn.Conv2d(4, 8, 3, padding=1), IMAGE),
    "1x1": (nn.Conv2d(4, 8, 1), IMAGE),
    "1x1 stride": (nn.Conv2d(4, 8, 1, stride=2), IMAGE),
    "strided": (nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)), IMAGE),
    "linear": (nn.Linear(5, 3), VECTOR),
    "tokens": (nn.Linear(5, 3), TOKENS),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE),
}
UNGROUPED = [name for name in PRODUCTS if name != "depthwise"]


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # it has no annotations
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and look at the tensors that come out."""
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return found


def case(
    layer: nn.Module, shape: tuple[int, ...], *, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Return an input and a gradient at the layer's output."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    y = layer(x).detach()
    return x, torch.randn(y.shape, generator=generator).as_strided(y.shape, y.stride())


def by_autograd(layer: nn.Module, x: Tensor, g: Tensor, n: int) -> dict[str, Tensor]:
    """Return each patient's gradients by a loop."""
    names = [name for name, _ in layer.named_parameters()]
    rows = []
    for x_k, g_k in zip(x.chunk(n), g.chunk(n), strict=True):
        rows.append(torch.autograd.grad((layer(x_k) * g_k).sum(), list(layer.parameters())))
    return {name: torch.stack(found) for name, *found in zip(names, *rows, strict=True)}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("name", PRODUCTS)
def test_rows_are_a_loops(name: str, n: int, *, channels_last: bool) -> None:
    """Each patient's gradient is autograd's of its images alone, channels-last or not."""
    layer, shape = PRODUCTS[name]
    x, g = case(layer, shape, channels_last=channels_last)
    expected, product = by_autograd(layer, x, g, n), Product(layer, x, g)
    assert is_product(layer)
    torch.testing.assert_close(weight_rows(product, n), expected["weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias_rows(product, n), expected["bias"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("name", UNGROUPED)
def test_norms_come_from_the_factors(name: str, n: int) -> None:
    """The norm without the product is the product's, also of a layer that is used twice."""
    layer, shape = PRODUCTS[name]
    x, g = case(layer, shape, channels_last=True)
    once = Product(layer, x, g)
    twice = Product(layer, x.flip(0) + 1, g.flip(0))
    rows = weight_rows(once, n)
    torch.testing.assert_close(squared_norms([once], n), rows.flatten(1).square().sum(1))
    rows = rows + weight_rows(twice, n)
    torch.testing.assert_close(squared_norms([once, twice], n), rows.flatten(1).square().sum(1))


@pytest.mark.parametrize("name", PRODUCTS)
def test_weighted_sums_are_those_of_the_rows(name: str) -> None:
    """The sum with a weight for each patient is that of its gradients, computed at once."""
    layer, shape = PRODUCTS[name]
    product = Product(layer, *case(layer, shape, channels_last=True))
    weights_n = torch.tensor([0.5, 0.0, 2.0])
    expected = torch.tensordot(weights_n, weight_rows(product, 3), dims=1)
    found = weight_sum(weighted(product, weights_n))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.GroupNorm(2, 4), IMAGE),
        (nn.LayerNorm(5), TOKENS),
        (nn.LayerNorm((7, 5), bias=False), TOKENS),
        (LayerNorm(5), VECTOR),
        (LayerNorm2d(4), IMAGE),
        (nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect"), IMAGE),
        (nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)), IMAGE),
    ],
)
def test_any_layer_has_rows(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Norms, layers without a rule of their own and whole parts of a network have rows as well."""
    x, g = case(layer, shape)
    found = other_rows(layer, dict(layer.named_parameters()), x, g, 3)
    assert not is_product(layer)
    for name, expected in by_autograd(layer, x, g, 3).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def test_channels_that_do_not_meet_are_not_multiplied() -> None:
    """Depthwise layers cost what their weights do, not what all pairs of their channels would."""
    layer = nn.Conv2d(128, 128, 3, padding=1, groups=128)
    x, g = case(layer, (4, 128, 4, 4), channels_last=True)
    with Largest() as largest:
        rows = weight_rows(Product(layer, x, g), 4)
    assert rows.shape == (4, 128, 1, 3, 3)
    assert 0 < largest.numbers <= x.numel()  # unfolded it would be 9 times that, all pairs 72


def test_the_shorter_way_is_chosen() -> None:
    """Few positions and a large weight go by the factors; many positions, or groups, do not."""
    assert is_shorter(nn.Conv2d(512, 512, 3), 9)
    assert not is_shorter(nn.Conv2d(64, 64, 3), 576)
    assert not is_shorter(nn.Conv2d(512, 512, 3, groups=512), 9)
