"""A rehearsal of the real thing: a deployed federation, its processes killed one after another.

One coordinator and three hospitals run as separate processes on loopback, with TLS, keys, real
enrolment and the front. While the study runs, each kind of process is killed once, as hard as can
be. At the end the model must be the one that the simulation of the same study ends with, to the
last bit.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.numpy import load_file

from common.arrays import digest
from common.files import write_json
from common.study import Study
from server.history import load
from server.studies import toml_text
from simulations import dealing, hospitals, namespaces
from simulations.demonstration import WEIGHTS, claim
from simulations.deployment import (
    Deployment,
    deployment,
    free_port,
    give_one_thread,
    set_up,
)
from simulations.kills import KILLS, Kill, play_through
from simulations.run import run_simulation

MARK = "rarefed-rehearsal.txt"
"""A file that tells a folder made by a rehearsal from any other, before it is replaced."""
REAL: Mapping[str, str] = {"ct_iqoth": "CT", "fundus_idrid": "fundus", "mri_brain_tumour": "MR"}
"""Data sets that are used where they are found, and their modality."""


def run(
    out: Path,
    *,
    images: Path | None,
    kills: Sequence[Kill] = KILLS,
    separate: bool = False,
    epochs: int = 1,
    console: Console,
) -> dict[str, Any]:
    """Make hospitals, deploy the federation, run its study, and play the same study here.

    Args:
        out: Folder for everything.
        images: Folder of real data sets; phantoms where it is None or has none of those known.
        kills: What to kill, one a round from the second round on.
        separate: Put each hospital into a network namespace, the last one behind a bad line.
        epochs: Of the local training; more of them make a round longer.
        console: Where progress is told.

    Returns:
        The simulation's summary, with ``rehearsal``: what was killed, and whether the models
        and figures are the same.

    Raises:
        OutputError: ``out`` exists and is not empty.
        ServiceError: A process did not do what it should.
    """
    out = out.absolute()
    claim(out, MARK, "rarefed-sim rehearse")
    tell = console.print if console.is_terminal else _silent
    made, tasks = _hospitals(out / "hospitals", images)
    study = study_of(tasks, rounds=len(kills) + 2, epochs=epochs)
    file = out / "study.toml"
    file.write_text(toml_text(study), encoding="utf-8")
    shutil.copytree(out / "hospitals", out / "twins", symlinks=True)
    began = time.monotonic()
    with _deployed(out, made, separate=separate) as deployed:
        tell("starting coordinator and hospitals")
        set_up(deployed, made, file)
        study_id = deployed.server("run", str(file), "--no-follow")["study"]
        done = play_through(deployed, study_id, made, kills, out, tell)
        deployed.server("export", study_id, str(out / "export"))
    seconds = time.monotonic() - began
    tell("playing the same study here")
    twins = [out / "twins" / hospital.name for hospital in made]
    summary = run_simulation(study, twins, out / "simulation", threads=1, console=console)
    run_there, run_here = deployed.study_folder(study_id), out / "simulation"
    summary["rehearsal"] = {
        "seconds": seconds,
        "kills": done,
        "namespaces": separate,
        "same_model": _model(run_there) == _model(run_here),
        "same_figures": _figures(run_there) == _figures(run_here),
    }
    write_json(out / "summary.json", summary)
    return summary


@contextmanager
def _deployed(out: Path, made: Sequence[Path], *, separate: bool) -> Iterator[Deployment]:
    """Give a deployment, on request with each hospital in a namespace of its own."""
    with ExitStack() as stack:
        deployed = stack.enter_context(deployment(out / "coordinator"))
        if separate:
            names = [hospital.name for hospital in made]
            net = stack.enter_context(namespaces.network(names, slow=names[-1]))
            deployed.prefix = net.prefix
            deployed.address = f"{namespaces.COORDINATOR}:{free_port()}"
            stack.callback(deployed.stop)  # before the namespaces go
        yield deployed


def _model(run: Path) -> str:
    return digest(dict(load_file(run / "model.safetensors")))


def _figures(run: Path) -> list[Any]:
    return [record.tasks for record in load(run) if record.combined or not record.trained]


def _hospitals(out: Path, images: Path | None) -> tuple[list[Path], dict[str, dict[str, Any]]]:
    """Make three hospitals; each has one task of the real data, or all of the phantoms."""
    found = [name for name in REAL if images and (images / name / "labels.csv").exists()]
    if images is None or not found:
        from simulations.phantoms import TASKS  # noqa: PLC0415 - seconds to load

        made = hospitals.make(out, sites=3, patients=24, images=2, seed=1)
        tasks = {
            name: {"modality": t.modality, "classes": list(t.classes), "positive": t.positive}
            for name, t in TASKS.items()
        }
    else:
        made, tasks = [], {}
        for number, name in enumerate(found, start=1):
            task = name.replace("_", "-")
            made += hospitals.deal(
                images / name, out, sites=1, task=task, skew="iid", seed=1, label="label",
                first=number,
            )  # fmt: skip
            tasks[task] = {"modality": REAL[name], "classes": dealing.labels_of(images / name)}
    give_one_thread(made)
    return made, tasks


def study_of(tasks: Mapping[str, Mapping[str, Any]], *, rounds: int, epochs: int) -> Study:
    """Return the study of a rehearsal."""
    return Study.parse(
        {
            "name": "rehearsal",
            "rounds": rounds,
            "seed": 1,
            "backbone": {"name": "test_resnet", "weights": str(WEIGHTS), "image_size": 64},
            "tasks": {name: dict(task) for name, task in tasks.items()},
            "training": {"local_epochs": epochs},
            "federation": {"quorum": min(3, max(2, len(tasks))), "deadline_s": 600.0},
        }
    )


def _silent(_text: str) -> None:
    """Say nothing: the progress is for a terminal."""
