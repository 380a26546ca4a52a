"""What a batch of Grad-CAM maps costs, over one forward and backward pass of the same batch.

The pass is what a training step does ahead of its optimizer: the network in evaluation mode, all
of it differentiated. ``explain`` looks for no gradient before its layer, so it may cost less.
Beside it stands the package as it is usually called, which differentiates everything and keeps the
graph. CPU time of one thread, the three taking turns, the least of each.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pytorch_grad_cam import GradCAM

from client.cam_layers import cam_layer
from client.explain import METHODS, LogOdds, Method, TaskNetwork, explain
from common.models import FederatedModel, build_model
from common.study import Study
from simulations.benches.result import Result

LIMIT = 1.3
CASES = (
    ("test_resnet", 96),
    ("mobilenetv2_100", 224),
    ("resnet18", 224),
    ("densenet121", 224),
    ("vit_tiny_patch16_224", 224),
)
CPU = torch.device("cpu")


def main(
    images: Annotated[int, typer.Option(min=1, help="Images of the batch.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 4,
) -> None:
    """Measure, print, and end with 1 where a backbone's maps cost more than the limit."""
    torch.set_num_threads(1)
    found = {name: measure(name, size, images, repeats) for name, size in CASES}
    worst = max(found, key=lambda name: found[name]["ratio"])
    result = Result(
        name="cam_cost",
        figure=found[worst]["gradcam_ms"],
        against={"what": f"a pass of {worst}", "figure": found[worst]["pass_ms"], "unit": "ms"},
        ratio=found[worst]["ratio"],
        limit=LIMIT,
        holds=found[worst]["ratio"] <= LIMIT,
        details={"images": images, "backbones": found},
    )
    raise typer.Exit(result.tell())


def measure(name: str, size: int, images: int, repeats: int) -> dict[str, float]:
    """Return the milliseconds of a batch by what is done with it."""
    model = build_model(study_of(name, size)).to(memory_format=torch.channels_last)
    model.eval()
    x_BCSS = torch.randn((images, 3, size, size), generator=torch.Generator().manual_seed(0))
    x_BCSS = x_BCSS.contiguous(memory_format=torch.channels_last)
    labels, layer = np.ones(images, np.int64), cam_layer(model.backbone, size, CPU)

    def ours(method: Method) -> Callable[[], object]:
        return lambda: explain(model, x_BCSS, "ct", labels, layer, method)

    def package() -> None:
        network = TaskNetwork(model, "ct")
        targets = [LogOdds(1)] * images
        with GradCAM(network, [layer.module], reshape_transform=layer.to_maps) as cam:
            cam(x_BCSS, targets)

    tasks = {
        "pass_ms": lambda: one_pass(model, x_BCSS),
        **{f"{method}_ms": ours(method) for method in METHODS},
        "package_ms": package,
    }
    best: dict[str, float] = {}
    for _ in range(repeats + 1):  # the first one warms up, and may stand: the least counts
        for what, work in tasks.items():
            start = time.process_time()
            work()
            spent = 1000 * (time.process_time() - start)
            best[what] = min(best.get(what, spent), spent)
    return {
        **best,
        "ratio": best["gradcam_ms"] / best["pass_ms"],
        "package_ratio": best["package_ms"] / best["pass_ms"],
    }


def one_pass(model: FederatedModel, x_BCSS: torch.Tensor) -> None:
    """Push a batch through the network and differentiate its loss."""
    model.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(
        model(x_BCSS, "ct"), torch.ones(len(x_BCSS), dtype=torch.int64)
    )
    loss.backward()


def study_of(name: str, size: int) -> Study:
    """Return a study of one backbone at random weights."""
    values: dict[str, Any] = {
        "name": "cost",
        "rounds": 1,
        "backbone": {"name": name, "weights": "none", "image_size": size},
        "tasks": {"ct": {"modality": "CT", "classes": ["healthy", "ill"], "positive": "ill"}},
    }
    return Study.parse(values)


if __name__ == "__main__":
    typer.run(main)
