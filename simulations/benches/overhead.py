"""What the federation costs beside the work itself, on the inline engine.

The floor is a plain PyTorch loop, written out below without any of rarefed's rounds, messages,
checks, sums or files: for each round and site it loads the global weights, evaluates validation
and test images, makes the same AdamW steps on the same batches, and at the end of the round
averages the state dicts. Both work on the same prepared images with the same network and the
same number of threads. The load is the demo's: how much the federation adds hangs on how much
work an exchange holds. With one epoch of 40 patients, a round of three gradient steps, it was
measured to add 20 %; with mobilenetv2_100 on real images, ``seconds.overhead`` of the summary was
below 2 % of the whole.

Other processes disturb a single run, so the two take turns and the least time of each counts.
"""

import copy
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from client.dataset import Images, batches
from client.optim import make_optimizer
from client.site import Site
from common.models import FederatedModel, build_model
from common.seeds import stream
from common.study import Study
from server.initial_weights import initial_model
from simulations.benches.result import Result
from simulations.benches.studies import phantom_hospitals, phantom_study
from simulations.federation import play

LIMIT = 1.10
State = dict[str, Tensor]


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of one run.")] = 8,
    epochs: Annotated[int, typer.Option(help="Local epochs, as many as the demo has.")] = 2,
    patients: Annotated[
        int, typer.Option(help="Patients of each site, as many as the demo has.")
    ] = 60,
    repeats: Annotated[int, typer.Option(help="Runs of each kind.")] = 3,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 2,
) -> None:
    """Measure, print, and end with 1 above the limit."""
    study = phantom_study(rounds=rounds, training={"local_epochs": epochs})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = phantom_hospitals(folder / "hospitals", patients=patients)
        ours, plain = [], []
        for _ in range(repeats):
            played = play(study, made, folder / "run", threads=threads)
            shutil.rmtree(folder / "run")
            ours.append(played.seconds)
            plain.append(plain_loop(study, played.sites))
    figure, floor = min(ours), min(plain)
    result = Result(
        name="overhead",
        figure=figure,
        against={"what": "plain PyTorch loop", "figure": floor, "unit": "s"},
        ratio=figure / floor,
        limit=LIMIT,
        holds=figure / floor <= LIMIT,
        details={
            "rarefed_s": ours,
            "plain_s": plain,
            "rounds": rounds,
            "local_epochs": epochs,
            "threads": threads,
        },
    )
    raise typer.Exit(result.tell())


def plain_loop(study: Study, sites: Sequence[Site]) -> float:
    """Return the seconds that the same work takes in plain PyTorch."""
    data = [
        {task: found.splits for task, found in site.prepare(study).tasks.items()} for site in sites
    ]
    model = build_model(study).to(memory_format=torch.channels_last)
    weights: State = copy.deepcopy(initial_model(study).model.state_dict())
    mean = torch.tensor(model.mean).view(3, 1, 1)
    std = torch.tensor(model.std).view(3, 1, 1)
    began = time.perf_counter()
    for number in range(study.rounds + 1):
        states = []
        for index, tasks in enumerate(data):
            model.load_state_dict(weights)
            _evaluate(model, tasks, mean, std)
            if number < study.rounds:
                name = sites[index].config.name
                seed = stream(stream(study.seed, name, number + 1), "batches")
                _train(model, tasks, study, mean, std, seed=seed)
                states.append(copy.deepcopy(model.state_dict()))
        if states:
            weights = {
                key: torch.stack([state[key].float() for state in states]).mean(0).to(value.dtype)
                for key, value in weights.items()
            }
    return time.perf_counter() - began


def _evaluate(
    model: FederatedModel, tasks: Mapping[str, Mapping[str, Images]], mean: Tensor, std: Tensor
) -> None:
    model.eval()
    with torch.inference_mode():
        for task, splits in tasks.items():
            for split in ("validation", "test"):
                images = splits[split]
                logits = [
                    model(_normalised(part, mean, std), task) for part in images.pixels.split(64)
                ]
                if images.labels.numel():
                    scores = torch.cat(logits).softmax(1)
                    (scores.argmax(1) == images.labels).float().mean().item()


def _train(
    model: FederatedModel,
    tasks: Mapping[str, Mapping[str, Images]],
    study: Study,
    mean: Tensor,
    std: Tensor,
    *,
    seed: int,
) -> None:
    training = study.training
    optimizer = make_optimizer(model, training)
    sizes = {task: len(splits["train"]) for task, splits in tasks.items()}
    model.train()
    for batch in batches(
        sizes, batch_size=training.batch_size, epochs=training.local_epochs, seed=seed
    ):
        images, chosen = tasks[batch.task]["train"], torch.from_numpy(batch.indices)
        logits = model(_normalised(images.pixels[chosen], mean, std), batch.task)
        loss = F.cross_entropy(logits, images.labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    typer.run(main)
