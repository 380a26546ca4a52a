"""A process that enters trainings in a ledger, killed a thousand times at random instants.

The process enters one private training after another, each of a cohort of its own, so that
cohort, line and all that is synced between come with every one of them. Over a pipe it says which
training it is about to enter, and which has been entered. SIGKILL comes at a random instant within
some of them. Then the ledger is opened as by a vault that starts again: the chain must verify, each
training that was acknowledged must stand in it once and in order, and no other than the one at
hand may. The next process goes on in the same ledger; a new one is begun now and then, so that
reading it does not become the bench.
"""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from client.accounting import Mechanism, epsilon
from client.cohorts import load_cohort
from client.config import Limits
from client.ledger import LEDGER_FILE, Ledger
from client.plan import Plan
from common.chained_log import ChainedLog
from common.errors import RarefedError
from common.study import Study
from simulations.benches.result import Result

KILLS_OF_ONE_LEDGER = 25
TRAININGS = 2.0
"""How many trainings a process lives for, on average."""
PLAN = Plan(
    noise_multiplier=50.0,
    sample_rate=1.0,
    steps=1,
    patients=3,
    clip_norm=1.0,
    images_per_patient=1,
    epsilon=100.0,
    delta=1e-3,
)
LIMITS = Limits(delta=1e-3)  # that of the plan: each training is one composition
STUDY = Study.parse(
    {
        "name": "kills",
        "rounds": 100_000,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "tasks": {"ct": {"modality": "CT", "classes": ["no", "yes"], "positive": "yes"}},
    }
)


def main(
    kills: Annotated[int, typer.Option(min=1, help="How many kills.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the instants.")] = 0,
) -> None:
    """Measure, print, and end with 1 if a training was lost or invented."""
    began, found = time.perf_counter(), Counter[str]()
    draw = random.Random(seed)
    _warm()
    while found["kills"] < kills:
        with tempfile.TemporaryDirectory() as name:
            state, acknowledged = Path(name), list[str]()
            for _ in range(min(KILLS_OF_ONE_LEDGER, kills - found["kills"])):
                found.update(_kill_once(state, acknowledged, draw))
    wrong = found["lost"] + found["invented"] + found["unverified"]
    result = Result(
        name="ledger_kills",
        figure=wrong,
        against={"what": "kills", "figure": found["kills"], "unit": "kills"},
        ratio=wrong / found["kills"],
        limit=0,
        holds=wrong == 0,
        details=dict(found) | {"seconds": time.perf_counter() - began},
    )
    raise typer.Exit(result.tell())


def _warm() -> None:
    """Compose what the processes will need; they are forks of this one and find it done."""
    for number in range(1, int(4 * TRAININGS * KILLS_OF_ONE_LEDGER)):
        epsilon([Mechanism(PLAN.noise_multiplier, PLAN.sample_rate, number)], PLAN.delta)


def _enter(ledger: Ledger, number: int) -> None:
    patients = {"ct": {f"{person:032x}" for person in (1, 2, 1000 + number)}}
    ledger.enter(STUDY, number + 1, _order(number), patients, limits=LIMITS, plan=PLAN)


def _order(number: int) -> str:
    return f"{number:064x}"


def _kill_once(state: Path, entered: list[str], draw: random.Random) -> Counter[str]:
    """Run a process, kill it, look at the ledger, and take over what stands in it.

    Args:
        state: The state folder.
        entered: Orders in the ledger, as of the last look; the new ones are added.
        draw: Where the instant comes from.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _child(state, len(entered), write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        first = _line(pipe.readline())
        began = time.perf_counter()
        second = _line(pipe.readline())  # of the first training, done: the process runs now
        time.sleep(draw.uniform(0, 2 * TRAININGS * (time.perf_counter() - began)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = [first, second, *(_line(line) for line in pipe if line.endswith(b"\n"))]
    begun = [order for what, order in said if what == "begin"]
    done = [order for what, order in said if what == "done"]
    return _look(state, entered, begun, done)


def _child(state: Path, number: int, pipe: int) -> None:
    """Enter trainings until the end; what has been entered is told once it is synced."""
    ledger = Ledger(state)
    while True:
        os.write(pipe, f"begin {_order(number)}\n".encode())
        _enter(ledger, number)
        os.write(pipe, f"done {_order(number)}\n".encode())
        number += 1


def _line(line: bytes) -> tuple[str, str]:
    what, order = line.decode().split()
    return what, order


def _look(state: Path, entered: list[str], begun: list[str], done: list[str]) -> Counter[str]:
    """Compare the ledger with what the process said; ``entered`` is then what stands in it."""
    found = Counter(kills=1, acknowledged=len(done), amid=int(len(begun) > len(done)))
    try:
        Ledger(state)
        entries = ChainedLog(state / LEDGER_FILE).entries()
        trainings = [entry for entry in entries if entry["event"] == "training"]
        for entry in trainings:
            load_cohort(state, entry["cohort"])
    except RarefedError:
        found["unverified"] += 1
        return found
    stands, known = [entry["order"] for entry in trainings], entered + done
    extra = stands[len(known) :]
    found["lost"] += stands[: len(known)] != known
    found["invented"] += extra not in ([], begun[len(done) :])
    found["entered_unacknowledged"] += len(extra)
    found["torn"] += sum(entry["event"] == "torn" for entry in entries)
    entered[:] = stands
    return found


if __name__ == "__main__":
    typer.run(main)
