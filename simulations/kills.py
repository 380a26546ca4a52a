"""Kills the processes of a deployed federation one after another, each at a moment of its own."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from common.errors import ServiceError
from common.files import append_line
from server.history import HISTORY, load
from simulations.deployment import Deployment, wait_until

STUDY_SECONDS = 3600.0


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


def play_through(
    deployed: Deployment,
    study_id: str,
    made: Sequence[Path],
    kills: Sequence[Kill],
    out: Path,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Wait for the end of a study, and kill a process in each round from the second on.

    Args:
        deployed: What runs it.
        study_id: The study.
        made: The hospitals' folders; of each kind of process at a site, they have it in turn.
        kills: What to kill, one a round.
        out: ``kills.jsonl`` is written here, a line for each.
        tell: Takes what is done, for a person.

    Returns:
        A line for each kill.

    Raises:
        ServiceError: The study ended otherwise than finished, or a process never came.
    """
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
