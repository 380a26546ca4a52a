"""Trains the demo's small backbone on phantoms of other tasks than the demo's.

    python -m simulations.pretrain --out simulations/weights/phantom_resnet.safetensors

No disease of the demo is among the pretext classes: the network learns what CT, MR and fundus
phantoms look like, as ImageNet teaches a network what photographs look like.
Shapes: N images, C channels, S image size.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn

from client.intensity import intensities
from client.pictures import Reading
from client.preprocess import normalise, prepare
from common.files import canonical_json, write_atomic
from simulations.drawing import Pixels
from simulations.phantoms import PRETEXT, pretext

BACKBONE = "test_resnet"
SIZE = 96
HALF = torch.full((3, 1, 1), 0.5)
"""Mean and standard deviation of each channel that timm gives its test_resnet."""


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw phantoms: values in [0, 1] as float16, shape (N, 3, S, S), and labels, shape (N,)."""
    pixels = torch.empty((count, 3, SIZE, SIZE), dtype=torch.float16)
    labels = torch.empty(count, dtype=torch.int64)
    for i in track(range(count), "drawing", console=Console(stderr=True)):
        image, label = pretext(np.random.default_rng([seed, i]), i)
        pixels[i], labels[i] = prepare(_scaled(image), SIZE).expand(3, -1, -1), label
    return pixels, labels


def _scaled(pixels: Pixels) -> NDArray[np.float32]:
    """Bring CT, MR or fundus to [0, 1], as the client does with their files."""
    if pixels.dtype == np.int16:
        return intensities([pixels], "hounsfield", Reading("CT", None), inverted=False)[0]
    if pixels.dtype == np.uint16:
        return intensities([pixels], "signal", Reading("MR", None), inverted=False)[0]
    return (pixels / 255).astype(np.float32)


def fit(pixels: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Module:
    """Train the backbone with a head of its own, by one-cycle AdamW, mirrored at random."""
    torch.manual_seed(seed)
    model = timm.create_model(BACKBONE, pretrained=False, num_classes=len(PRETEXT))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for _ in track(range(epochs), "training", console=Console(stderr=True)):
        for chosen in torch.randperm(len(labels))[: 64 * (len(labels) // 64)].split(64):
            x_BCHW = normalise(pixels[chosen], HALF, HALF)
            if torch.rand(()) < 0.5:  # noqa: PLR2004 - a fair coin
                x_BCHW = x_BCHW.flip(-1)
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(x_BCHW), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class the network finds."""
    model.eval()
    with torch.inference_mode():
        found = [model(normalise(part, HALF, HALF)).argmax(1) for part in pixels.split(256)]
    return float((torch.cat(found) == labels).float().mean())


def main(
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    images: Annotated[int, typer.Option(min=64, help="Phantoms to draw.")] = 7200,
    epochs: Annotated[int, typer.Option(min=1, help="How often each is seen.")] = 15,
    seed: Annotated[int, typer.Option(min=0, help="Start of every random number.")] = 0,
) -> None:
    """Draw pretext phantoms, train on them, and write the network's weights."""
    pixels, labels = draw(images, seed)
    model = fit(pixels, labels, epochs=epochs, seed=seed)
    held_out = draw(max(900, images // 10), seed + 1)
    score = accuracy(model, *held_out)
    notes = {"backbone": BACKBONE, "images": str(images), "epochs": str(epochs), "seed": str(seed)}
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    notes["held_out_accuracy"] = f"{score:.3f}"
    # One entry: safetensors writes several in an order that changes from run to run.
    write_atomic(out, save(state, metadata={"rarefed": canonical_json(notes).decode()}))
    typer.echo(f"{out}: accuracy {score:.3f} on {len(held_out[1])} held-out phantoms")


if __name__ == "__main__":
    typer.run(main)
