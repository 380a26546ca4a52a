"""The sum of the patients' clipped gradients, without one whole gradient for each patient.

What comes into each layer and the gradient at what goes out are kept (book-keeping, Bu et al.
2023, arXiv:2210.00038). From them come the norm of each patient's gradient and, when all norms
are known, the weighted sum over the patients: one forward and one backward pass do. Opacus' own
hooks hold a gradient of all weights for each image, and are silently wrong where the input of a
convolution is channels-last.

The network is watched through hooks at the outputs of its layers, which in-place operations after
them do not disturb. Meanwhile its own parameters ask for no gradient: PyTorch's, summed over the
images, is of no use.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

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

Parameters = Mapping[str, nn.Parameter]
Note = Callable[[Tensor], None]
"""What happens with the gradient at a layer's output."""


class PatientGradients:
    """Tells the gradients of the patients of a chunk apart; a context that leaves no trace.

    For each chunk: ``start``, ``forward`` once for each task, ``backward``, ``sums``, ``forget``.

    Args:
        network: Called with images (or features) and the name of their task.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._trained = [value for value in network.parameters() if value.requires_grad]
        self._copied: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []
        self.forget()

    def __enter__(self) -> Self:
        self._watch(self._network, "")
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._ask_for_gradients(yes=True)
        self.forget()

    def start(self, patients: int, images_each: int) -> None:
        """Begin a chunk of patients with the same number of images each, over all tasks."""
        self.forget()
        self._patients, self._images_each = patients, images_each
        self._ask_for_gradients(yes=False)

    def forward(self, x: Tensor, task: str) -> Tensor:
        """Return the logits of a task's images, those of one patient next to each other."""
        copies = {name: self._copy(value, len(x)) for name, value in self._copied.items()}
        self._images = len(x) // self._patients
        self._anchor = torch.zeros((), device=x.device, requires_grad=True)
        self._recording = True
        try:
            return cast("Tensor", functional_call(self._network, copies, (x, task)))
        finally:
            self._recording = False

    def backward(self, loss: Tensor) -> Tensor:
        """Return the L2 norm of each patient's gradient, over all trained parameters, shape (n,).

        Args:
            loss: Sum of the patients' losses.
        """
        loss.backward()
        self._ask_for_gradients(yes=True)
        squares_n = torch.zeros(self._patients, device=loss.device)
        for rows in self._rows.values():
            squares_n += rows.flatten(1).square().sum(1)
        for products in self._products.values():
            squares_n += squared_norms(products, self._patients)
        return squares_n.sqrt()

    def sums(self, weights_n: Tensor) -> dict[nn.Parameter, Tensor]:
        """Return the weighted sum of the patients' gradients.

        A parameter of which no patient has a gradient is left out.
        """
        found = {p: torch.tensordot(weights_n, rows, dims=1) for p, rows in self._rows.items()}
        for parameter, products in self._products.items():
            found[parameter] = sum(
                (weight_sum(weighted(product, weights_n)) for product in products),
                start=torch.zeros_like(parameter, requires_grad=False),
            )
        return found

    def forget(self) -> None:
        """Let go of the chunk."""
        self._patients = self._images_each = self._images = 0
        self._recording = False
        self._anchor = torch.zeros(())
        self._rows: dict[nn.Parameter, Tensor] = {}
        self._products: dict[nn.Parameter, list[Product]] = defaultdict(list)

    def _ask_for_gradients(self, *, yes: bool) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(yes)

    def _watch(self, module: nn.Module, prefix: str) -> None:
        """Hook the layers that have trained parameters, from the outside to the inside."""
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        inner = [(n, c) for n, c in module.named_children() if _trained_in(c)]
        if own and is_product(module):
            self._watch_product(cast("nn.Linear | nn.Conv2d", module), own)
            return
        if own and isinstance(module, ConvNeXtBlock):
            self._watch_scale(module, own["gamma"])
        elif own and inner and all(len(value) == 1 for value in own.values()):
            # Class tokens and position embeddings, (1, ...): each image gets a copy of its own.
            self._copied |= {prefix + name: value for name, value in own.items()}
        elif own:
            self._watch_other(module)
            return
        for name, child in inner:
            self._watch(child, f"{prefix}{name}.")

    def _watch_product(self, layer: nn.Linear | nn.Conv2d, own: Parameters) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._recording:
                return None
            x = _unchanged(args[0])

            def note(g: Tensor) -> None:
                product = Product(layer, x(), g)
                if "bias" in own:
                    self._add(own["bias"], bias_rows(product, self._patients))
                if "weight" in own:
                    self._add_product(own["weight"], product)

            return self._at(output, note)

        self._handles.append(layer.register_forward_hook(hook))

    def _watch_scale(self, block: ConvNeXtBlock, gamma: nn.Parameter) -> None:
        """Watch ``gamma``, by which a ConvNeXt block multiplies the channels of its inner part."""
        inner: list[Callable[[], Tensor]] = []

        def before(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            if self._recording:
                y = output if block.use_conv_mlp else output.permute(0, 3, 1, 2)
                inner.append(_unchanged(y))

        def after(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            if not self._recording:
                return None
            y = inner.pop()
            return (self._at(args[0], lambda g: self._add_sum(gamma, (y() * g).sum((2, 3)))),)

        self._handles.append(block.mlp.register_forward_hook(before))
        self._handles.append(block.drop_path.register_forward_pre_hook(after))

    def _watch_other(self, module: nn.Module) -> None:
        wanted = {n: p for n, p in module.named_parameters() if p.requires_grad}

        def hook(
            _: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            if not self._recording:
                return None
            x = _unchanged(args[0])

            def note(g: Tensor) -> None:
                rows = other_rows(
                    module, wanted, x(), g, self._patients, more=args[1:], named=named
                )
                for name, parameter in wanted.items():
                    self._add(parameter, rows[name])

            return self._at(output, note)

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _at(self, output: Tensor, note: Note) -> Tensor:
        """Have the gradient at ``output`` noted; the output is to be used instead."""
        # Behind the first trained layer nothing asks for gradients any more, but for the anchor.
        output = output if output.requires_grad else output + self._anchor
        output.register_hook(note)
        return output

    def _copy(self, parameter: nn.Parameter, images: int) -> Tensor:
        copy = parameter.detach().expand(images, *parameter.shape[1:]).requires_grad_()
        copy.register_hook(lambda g: self._add_sum(parameter, g))
        return copy

    def _add(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Add to each patient's gradient of a parameter, (n, *parameter.shape)."""
        known = self._rows.get(parameter)
        self._rows[parameter] = rows if known is None else known + rows

    def _add_sum(self, parameter: nn.Parameter, g_B: Tensor) -> None:
        """Add the sum over the images of each patient."""
        rows = g_B.unflatten(0, (self._patients, -1)).sum(1)
        self._add(parameter, rows.view(self._patients, *parameter.shape))

    def _add_product(self, weight: nn.Parameter, product: Product) -> None:
        """Keep the product as it is, or multiply it out, whichever is less work."""
        positions = product.g.numel() // product.layer.weight.shape[0] // self._patients
        positions = positions * self._images_each // self._images
        # The first use decides for all: norms of parts that were kept in two ways do not add up.
        known = weight in self._rows
        if weight in self._products or (not known and is_shorter(product.layer, positions)):
            self._products[weight].append(product)
        else:
            self._add(weight, weight_rows(product, self._patients))


def _trained_in(module: nn.Module) -> bool:
    return any(value.requires_grad for value in module.parameters())


def _unchanged(x: Tensor) -> Callable[[], Tensor]:
    """Keep a tensor for the backward pass, as autograd does.

    Raises:
        RuntimeError: When asked for after an in-place operation has changed it.
    """
    kept, version = x.detach(), x._version  # noqa: SLF001 - torch has no public name for it

    def get() -> Tensor:
        if kept._version != version:  # noqa: SLF001 - as above
            raise RuntimeError("an in-place operation has changed the input of a trained layer")
        return kept

    return get
