"""A rehearsal of the real thing: a deployed federation, its processes killed one after another.

One coordinator and three hospitals run as separate processes on loopback, with TLS, keys, real
enrolment and the front. While the study runs, each kind of process is killed once, as hard as can
be. At the end the model must be the one that the simulation of the same study ends with, to the
last bit.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from common.arrays import digest
from common.errors import OutputError, ServiceError
from common.files import append_line, write_json
from common.study import Study
from server.history import HISTORY, load
from simulations import dealing, hospitals, namespaces
from simulations.deployment import Deployment, deployment, free_port, wait_until
from simulations.run import run_simulation

MARK = "rarefed-rehearsal.txt"
"""A file that tells a folder made by a rehearsal from any other, before it is replaced."""
WEIGHTS = Path(__file__).parent / "weights" / "phantom_resnet.safetensors"
STUDY_SECONDS = 3600.0
REAL: Mapping[str, str] = {"ct_iqoth": "CT", "fundus_idrid": "fundus", "mri_brain_tumour": "MR"}
"""Data sets that are used where they are found, and their modality."""


class Kill(NamedTuple):
    """One process to kill, in the round after so many."""

    who: str
    """``coordinator``, or ``site`` for one of the hospitals in turn."""
    process: str
    moment: str = "training"


MOMENTS = ("sending", "training", "replying")
"""When to kill: an order has just been written, has just begun to be trained at the site, or has
just been answered by its vault."""
PROCESSES = (
    ("coordinator", "superlink"),
    ("coordinator", "superexec"),
    ("coordinator", "serverapp"),
    ("coordinator", "front"),
    ("site", "vault"),
    ("site", "supernode"),
    ("site", "superexec"),
    ("site", "clientapp"),
    ("coordinator", "daemon"),
    ("site", "daemon"),
)
KILLS = tuple(Kill(who, process) for who, process in PROCESSES)
"""Every kind of process once, each in a round of its own."""
ALL_KILLS = tuple(Kill(*pair, moment) for pair in PROCESSES for moment in MOMENTS)
"""Every kind of process at every moment."""


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
    _claim(out)
    tell = console.print if console.is_terminal else _silent
    made, tasks = _hospitals(out / "hospitals", images)
    study_file = write_study(out / "study.toml", tasks, rounds=len(kills) + 2, epochs=epochs)
    shutil.copytree(out / "hospitals", out / "twins", symlinks=True)
    began = time.monotonic()
    with ExitStack() as stack:
        deployed = stack.enter_context(deployment(out / "coordinator"))
        if separate:
            names = [hospital.name for hospital in made]
            net = stack.enter_context(namespaces.network(names, slow=names[-1]))
            deployed.prefix = net.prefix
            deployed.address = f"{namespaces.COORDINATOR}:{free_port()}"
            stack.callback(deployed.stop)  # before the namespaces go
        tell("starting the coordinator")
        deployed.start_coordinator()
        for hospital in made:
            tell(f"enrolling {hospital.name}")
            deployed.enrol(hospital)
            deployed.approve(hospital, study_file)
            deployed.start_hospital(hospital)
        study_id = deployed.server("run", str(study_file), "--no-follow")["study"]
        done = _play_through(deployed, study_id, made, kills, out, tell)
        deployed.server("export", study_id, str(out / "export"))
    seconds = time.monotonic() - began
    study = Study.load(study_file)
    twins = [out / "twins" / hospital.name for hospital in made]
    tell("playing the same study here")
    summary = run_simulation(study, twins, out / "simulation", threads=1, console=console)
    deployed_run = deployed.study_folder(study_id)
    summary["rehearsal"] = {
        "seconds": seconds,
        "kills": done,
        "namespaces": separate,
        "same_model": _model(deployed_run) == _model(out / "simulation"),
        "same_figures": _figures(deployed_run) == _figures(out / "simulation"),
    }
    write_json(out / "summary.json", summary)
    return summary


def table(found: Mapping[str, Any]) -> Table:
    """Return what was killed, as a table for people."""
    shown = Table(title="what was killed", title_justify="left")
    for column in ("round", "whose", "process", "while", "s to the end of the round"):
        shown.add_column(column, justify="right" if "round" in column else "left")
    for entry in found["kills"]:
        keys = ("round", "who", "process", "moment", "seconds")
        cells = [entry[key] for key in keys]
        shown.add_row(*(str(cell) for cell in cells))
    return shown


def _play_through(
    deployed: Deployment,
    study_id: str,
    made: Sequence[Path],
    kills: Sequence[Kill],
    out: Path,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Wait for the end of the study, and kill a process in each round from the second on."""
    folder = deployed.study_folder(study_id)
    done = []
    for number, kill in enumerate(kills, start=1):
        _await_round(folder, number)
        hospital = made[number % len(made)]
        who = hospital.name if kill.who == "site" else kill.who
        _await_moment(kill.moment, hospital, number + 1)
        pid = _kill_when_there(deployed, who, kill.process)
        at = time.monotonic()
        tell(f"round {number + 1}: killed {kill.process} of {who} ({pid})")
        if kill.process == "daemon":
            deployed.restart(who)
        _await_round(folder, number + 1)
        entry = {
            "round": number + 1,
            "who": who,
            "process": kill.process,
            "moment": kill.moment,
            "seconds": round(time.monotonic() - at, 1),
        }
        append_line(out / "kills.jsonl", entry)
        done.append(entry)
    _await_round(folder, 1)  # where nothing was killed, nobody has waited yet
    wait_until(lambda: _ended(folder) == "finished", STUDY_SECONDS, "the end of the study")
    return done


def _kill_when_there(deployed: Deployment, who: str, process: str) -> int:
    """Kill a process; Flower's app processes come and go, and are waited for."""

    def there() -> int:
        try:
            return deployed.pid(who, process)
        except (KeyError, TypeError):  # it is just being started
            return 0

    wait_until(there, 120.0, f"{process} of {who}")
    return deployed.kill(who, process)


def _await_moment(moment: str, hospital: Path, number: int) -> None:
    """Wait until a round has come so far at a hospital."""
    log, event = {
        "sending": ("", ""),
        "training": ("ledger.jsonl", "training"),
        "replying": ("audit.jsonl", "answered"),
    }[moment]
    if not log:
        time.sleep(1.0)
        return

    def written() -> bool:
        lines = (hospital / "state" / log).read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return any(e.get("round") == number and e.get("event") == event for e in entries)

    wait_until(written, STUDY_SECONDS, f"{event} in round {number} at {hospital.name}")


def _await_round(folder: Path, number: int) -> None:
    """Wait until so many rounds are done."""

    def done() -> bool:
        if (state := _ended(folder)) and state != "finished":
            raise ServiceError(f"The study ended as {state!r}; see {folder}/progress.json.")
        return _rounds(folder) >= number

    wait_until(done, STUDY_SECONDS, f"round {number}")


def _rounds(folder: Path) -> int:
    return sum(record.combined for record in load(folder)) if (folder / HISTORY).exists() else 0


def _ended(folder: Path) -> str:
    try:
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return ""
    state = str(progress["state"])
    return state if state in ("finished", "failed", "paused", "stopped") else ""


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
    for hospital in made:
        file = hospital / "site.toml"
        text = file.read_text(encoding="utf-8").replace("threads = 0", "threads = 1")
        file.write_text(text, encoding="utf-8")
    return made, tasks


def write_study(
    path: Path, tasks: Mapping[str, Mapping[str, Any]], *, rounds: int, epochs: int
) -> Path:
    """Write the study file of a rehearsal, and return its path."""
    lines = [
        'name = "rehearsal"',
        f"rounds = {rounds}",
        "seed = 1",
        "[backbone]",
        'name = "test_resnet"',
        f"weights = {json.dumps(str(WEIGHTS))}",
        "image_size = 64",
        "[training]",
        f"local_epochs = {epochs}",
        "[federation]",
        f"quorum = {min(3, max(2, len(tasks)))}",
        "deadline_s = 600.0",
    ]
    for name, task in tasks.items():
        lines += [
            f"[tasks.{name}]",
            *(f"{key} = {json.dumps(value)}" for key, value in task.items()),
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Study.load(path)
    return path


def _claim(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty.", remedy="Give another --out, or --again.")
    out.mkdir(parents=True, exist_ok=True)
    text = "Made by 'rarefed-sim rehearse', which may remove it.\n"
    (out / MARK).write_text(text, encoding="utf-8")


def _silent(_text: str) -> None:
    """Say nothing: the progress is for a terminal."""
