"""Hospitals with scanners far apart: what do arrays gain that each site keeps to itself?

Four phantom hospitals photograph the same disease with cameras whose tint, noise, blur and exposure
are known. The same study is played with FedAvg, with local normalisation (FedBN) and with personal
heads (FedPer). FedAvg's network is also measured with re-estimated statistics, and trained further
at each site. Judged is the worst site's AUROC on test patients, each counted once: it does not hang
on a threshold, which a site could move by itself. Worst is the lowest of each method's sites, not a
site that was chosen by what FedAvg does there.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from client.benefit import TUNED
from client.evaluate import logits_of
from client.final_model import final_model
from client.local_figures import patient_cases
from client.personal import personalise
from client.site import Site
from client.weighted_metrics import metrics_of
from common.study import Study
from simulations import hospitals
from simulations.benches.result import Result
from simulations.demonstration import WEIGHTS
from simulations.drawing import Scanner
from simulations.federation import play
from simulations.phantoms import TASKS

LIMIT = 0.01
TASK = "ocular-melanoma"
SCANNERS = (
    Scanner("Warm", noise=0.5, blur=0.4, gain=0.6, bias=0.0, tint=(1.3, 1.0, 0.7)),
    Scanner("Cold", noise=2.5, blur=1.6, gain=1.4, bias=1.0, tint=(0.75, 1.0, 1.3)),
    Scanner("Green", noise=1.0, blur=0.8, gain=1.0, bias=0.5, tint=(1.0, 1.25, 0.8)),
    Scanner("Magenta", noise=4.0, blur=2.2, gain=1.2, bias=1.0, tint=(1.0, 0.75, 1.2)),
)
FEDAVG, FEDBN, FEDPER = "FedAvg", "FedBN", "personal heads"
METHODS: dict[str, dict[str, Any]] = {
    FEDAVG: {},
    FEDBN: {"backbone": {"normalisation": "local"}},
    FEDPER: {"federation": {"personal": "head"}},
}
FURTHER = 4
"""Rounds of fine-tuning after the federation."""

AtSites = dict[str, list[float]]
"""AUROC at each site, by method."""


def main(
    patients: Annotated[int, typer.Option(help="Patients of each site.")] = 60,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 12,
    seeds: Annotated[int, typer.Option(help="How many seeds of patients and study.")] = 3,
    cameras: Annotated[
        int, typer.Option(min=1, max=4, help="Different cameras; 1: no shift, for comparison.")
    ] = 4,
) -> None:
    """Measure, print, and end with 1 if the worst site gains less than the limit."""
    found: list[AtSites] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            made = hospitals.make(
                Path(name) / "hospitals",
                sites=len(SCANNERS),
                patients=patients,
                images=2,
                seed=seed,
                tasks=(TASK,),
                scanner_of=lambda number, _: SCANNERS[number % cameras],
            )
            found.append(_measured(made, Path(name), rounds=rounds, seed=seed))
        Console(stderr=True).print_json(data={"seed": seed, "auroc": found[-1]}, indent=None)
    worst = {method: np.array([min(one[method]) for one in found]) for method in found[0]}
    gains = {method: of - worst[FEDAVG] for method, of in worst.items() if method != FEDAVG}
    best = max((FEDBN, FEDPER), key=lambda method: float(gains[method].mean()))
    gain, base = float(gains[best].mean()), float(worst[FEDAVG].mean())
    result = Result(
        name="personal",
        figure=gain,
        against={"what": f"{FEDAVG}, to which {best} adds it", "figure": base, "unit": "AUROC"},
        ratio=(base + gain) / base if base else 0.0,
        limit=LIMIT,
        holds=gain >= LIMIT,
        details={
            "gains": {method: of.tolist() for method, of in gains.items()},
            "auroc": found,
        },
    )
    raise typer.Exit(result.tell())


def _measured(made: Sequence[Path], folder: Path, *, rounds: int, seed: int) -> AtSites:
    """Play the study with every method, and return what its networks are worth at each site."""
    found: AtSites = {}
    for number, (method, sections) in enumerate(METHODS.items()):
        study = _study(sections, rounds=rounds, seed=seed)
        # One thread: more would wait for one another longer than so small a network computes.
        sites = play(study, made, folder / str(number), threads=1).sites
        found[method] = [_auroc(site, study) for site in sites]
        if method == FEDAVG:
            found["re-estimated statistics"] = [_auroc(s, study, adapted=True) for s in sites]
            found["fine-tuned"] = [_auroc_further(site, study) for site in sites]
    return found


def _study(sections: dict[str, Any], *, rounds: int, seed: int) -> Study:
    task = TASKS[TASK]
    values: dict[str, Any] = {
        "name": "personal",
        "rounds": rounds,
        "seed": seed,
        "backbone": {"name": "test_resnet", "weights": str(WEIGHTS), "image_size": 96},
        "tasks": {
            TASK: {
                "modality": task.modality,
                "classes": list(task.classes),
                "positive": task.positive,
            }
        },
        "training": {"local_epochs": 2, "head_lr": 3e-3, "backbone_lr": 1e-3},
        "split": {"validation": 0.1, "test": 0.4},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Study.parse(values)


def _auroc(site: Site, study: Study, *, adapted: bool = False) -> float:
    """Return the AUROC of the network that a site ends with, on its test patients."""
    model = final_model(site.config, study, device=site.device).model
    images = site.prepare(study).tasks[TASK].splits["test"]
    logits = logits_of(model, images, TASK, device=site.device, adapted=adapted)
    cases = patient_cases(logits, images, study.tasks[TASK])
    return float(metrics_of(cases, np.ones((1, len(cases.labels))))["auroc"][0])


def _auroc_further(site: Site, study: Study) -> float:
    """Return the same of the network that the site would use after training it further."""
    found = personalise(site.config, study, rounds=FURTHER, device=site.device, log=site.log)
    choice = found.tasks[TASK]
    value = choice.test.metrics[TUNED if choice.kept else "global"]["auroc"].value
    return float("nan") if value is None else value


if __name__ == "__main__":
    typer.run(main)
