"""What a site's round costs once the features of its frozen part are kept.

A round trains once over all images. Each way is the phase of a study, so that what travels in a
round is looked at too, as at a site: the arrays of the frozen part come again and are compared with
those that the features are of. Beside the heads alone stand the last stage, and the heads on four
variations of each image. All are measured against one forward pass of the same images through the
whole network, in evaluation mode. CPU time of one thread, the ways taking turns, the least of each.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from client.dataset import Images, round_of_batches
from client.evaluate import logits_of
from client.phases import PhaseFeatures, in_phase
from client.train import train
from common.models import build_model
from common.study import Study
from simulations.benches.result import Result

LIMIT = 0.05
CPU = torch.device("cpu")
VIEWS = 4
WAYS: dict[str, dict[str, Any]] = {
    "head": {"train": "head"},
    "last:1": {"train": "last:1"},
    "head, views": {"train": "head", "views": VIEWS},
    "last:1, views": {"train": "last:1", "views": VIEWS},
}
LATER = 2
"""A round of the phase after its first."""


def main(
    backbone: Annotated[str, typer.Option(help="The network.")] = "mobilenetv2_100",
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 128,
    images: Annotated[int, typer.Option(min=2, help="Training images.")] = 160,
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 4,
) -> None:
    """Measure, print, and end with 1 if a round on kept features costs more than the limit."""
    torch.set_num_threads(1)
    shown = pictures(images, size)
    works: dict[str, Callable[[], object]] = {
        way: later_round(study_of(backbone, size, way), shown) for way in WAYS
    }
    firsts = {way: spent(work) for way, work in works.items()}  # features are computed here
    whole = build_model(study_of(backbone, size, "head")).to(memory_format=torch.channels_last)
    works["forward"] = lambda: logits_of(whole, shown, "t", device=CPU)
    turns = [{what: spent(work) for what, work in works.items()} for _ in range(repeats)]
    best = {what: min(turn[what] for turn in turns) for what in works}
    forward = best.pop("forward")
    shares = {way: seconds / forward for way, seconds in best.items()}
    result = Result(
        name="frozen",
        figure=best["head"],
        against={"what": f"a forward pass, {backbone}", "figure": forward, "unit": "s"},
        ratio=shares["head"],
        limit=LIMIT,
        holds=shares["head"] <= LIMIT,
        details={
            "images": images,
            "size": size,
            "views": VIEWS,
            "shares": shares,
            "shares_of_first_rounds": {way: first / forward for way, first in firsts.items()},
        },
    )
    raise typer.Exit(result.tell())


def spent(work: Callable[[], object]) -> float:
    """Return the CPU seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def later_round(study: Study, images: Images) -> Callable[[], None]:
    """Return what plays a round of a site after the first of its phase."""
    model = build_model(study).to(memory_format=torch.channels_last)
    features = PhaseFeatures(model, study, "bench", CPU)
    own = {"t": images}

    def play() -> None:
        features.refresh()
        order = round_of_batches(own, study.training, study.seed)
        kept = features.in_round(LATER)
        with in_phase(model, study, LATER):
            train(model, own, order, study, number=LATER, device=CPU, features=kept)

    return play


def pictures(count: int, size: int) -> Images:
    """Return random images of two classes."""
    generator = torch.Generator().manual_seed(0)
    return Images(
        torch.rand(count, 1, size, size, generator=generator).half(),
        torch.arange(count) % 2,
        tuple(map(str, range(count))),
    )


def study_of(backbone: str, size: int, way: str) -> Study:
    """Return a study whose first phase is one of ``WAYS``."""
    training = dict(WAYS[way])
    phases = [{"rounds": LATER, "train": training.pop("train")}]
    task: dict[str, Any] = {"modality": "CT", "classes": ["a", "b"]}
    if training:
        task["augmentation"] = {}
    return Study.parse(
        {
            "name": "frozen",
            "rounds": LATER + 1,
            "backbone": {"name": backbone, "weights": "none", "image_size": size},
            "tasks": {"t": task},
            "training": {"phases": phases, **training},
        }
    )


if __name__ == "__main__":
    typer.run(main)
