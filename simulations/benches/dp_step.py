"""What a private gradient step costs: its time and memory over those of a plain step.

Both are a round's training as the site does it, ``client.privacy.train_privately`` against
``client.train.train``, on the same 16 images of 96 x 96 pixels, each of another patient, with all
patients drawn in each step; random weights, frozen batch norm, AdamW, one thread. Where a part of
the network is frozen, the private round computes what that gives of its images once, as a site
does in its first round; the plain one runs the whole network at each step, as a trainer without
that does. The first of the two cases of a head has one epoch, in which it saves nothing.

Processes of both kinds take turns, and the least of each counts. Times are CPU time, which other
processes disturb less; memory is the peak resident set over that ahead of the training.
"""

import json
import os
import resource
import subprocess
import sys
import time
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from client.dataset import Batch, Images
from client.features import FrozenFeatures, frozen_features
from client.plan import Plan
from client.privacy import train_privately
from client.train import train
from common.models import FederatedModel, build_model
from common.study import Study
from simulations.benches.result import Result

IMAGES, SIZE = 16, 96
CPU = torch.device("cpu")


class Case(NamedTuple):
    """What trains, and how much more a step of it may cost when it is private."""

    backbone: str
    train: str
    steps: int
    """Steps of the round, each of all images: as many epochs."""
    time: float
    memory: float | None = None


CASES = (
    Case("resnet18", "all", 3, time=2.3, memory=2.0),
    Case("convnext_atto", "all", 3, time=2.3, memory=2.0),
    Case("resnet18", "last:1", 3, time=1.8),
    Case("resnet18", "head", 1, time=1.2),
    Case("resnet18", "head", 20, time=1.2),
)


def main(
    repeats: Annotated[int, typer.Option(help="Processes of each kind.")] = 3,
    case: Annotated[int | None, typer.Option(hidden=True)] = None,
    *,
    private: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure, print, and end with 1 where a limit is not kept."""
    if case is not None:
        print(json.dumps(measure(CASES[case], private=private)))
        return
    compared = [compare(number, repeats) for number in range(len(CASES))]
    first = compared[0]
    result = Result(
        name="dp_step",
        figure=first["private_ms"],
        against={"what": "plain step of ResNet-18", "figure": first["plain_ms"], "unit": "ms"},
        ratio=first["time_ratio"],
        limit=first["time_limit"],
        holds=all(found["holds"] for found in compared),
        details={"images": IMAGES, "pixels": SIZE, "cases": compared},
    )
    raise typer.Exit(result.tell())


def compare(number: int, repeats: int) -> dict[str, Any]:
    """Measure one case in processes of its own."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(repeats):
        for private, kept in found.items():
            kept.append(_in_a_process(number, private=private))
    least = {
        private: {key: min(one[key] for one in kept) for key in ("ms", "mb")}
        for private, kept in found.items()
    }
    plain, ours, case = least[False], least[True], CASES[number]
    slower, larger = ours["ms"] / plain["ms"], ours["mb"] / plain["mb"]
    return {
        "backbone": case.backbone,
        "train": case.train,
        "steps": case.steps,
        "plain_ms": plain["ms"],
        "private_ms": ours["ms"],
        "time_ratio": slower,
        "time_limit": case.time,
        "plain_mb": plain["mb"],
        "private_mb": ours["mb"],
        "memory_ratio": larger,
        "memory_limit": case.memory,
        "holds": slower <= case.time and (case.memory is None or larger <= case.memory),
    }


def measure(case: Case, *, private: bool) -> dict[str, float]:
    """Return milliseconds of a step, and megabytes that the training takes."""
    torch.set_num_threads(1)
    study, images = _study(case), _images()
    model = build_model(study).to(memory_format=torch.channels_last)
    features = frozen_features(model, CPU, SIZE)
    idle = _resident()
    seconds = []
    for _ in range(4):
        if features is not None:
            features.forget()
        began = time.process_time()
        _round(model, images, study, case.steps, features if private else None, private=private)
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ms": 1e3 * min(seconds) / case.steps, "mb": (peak - idle) / 1e6}


def _round(
    model: FederatedModel,
    images: dict[str, Images],
    study: Study,
    steps: int,
    features: FrozenFeatures | None,
    *,
    private: bool,
) -> None:
    if private:
        plan = Plan(1.0, 1.0, steps, IMAGES, 1.0, 1, 8.0, 1e-3)
        train_privately(model, images, study, plan, device=CPU, features=features)
    else:
        train(model, images, [Batch("ct", np.arange(IMAGES))] * steps, study, device=CPU)


def _study(case: Case) -> Study:
    backbone = {"name": case.backbone, "weights": "random.safetensors", "image_size": SIZE}
    return Study.parse(
        {
            "name": "dp-step",
            "rounds": 1,
            "backbone": backbone | {"normalisation": "frozen"},
            "tasks": {"ct": {"modality": "CT", "classes": ["normal", "ill"]}},
            "training": {"train": case.train, "batch_size": IMAGES},
        }
    )


def _images() -> dict[str, Images]:
    pixels = torch.rand(IMAGES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    patients = tuple(f"{number:04}" for number in range(IMAGES))
    return {"ct": Images(pixels.half(), torch.arange(IMAGES) % 2, patients)}


def _in_a_process(number: int, *, private: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "simulations.benches.dp_step", "--case", str(number)]
    command += ["--private"] if private else []
    done = subprocess.run(  # noqa: S603 - our own
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file on a disk
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    typer.run(main)
