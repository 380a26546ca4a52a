"""Follow a study from its folder: what the commands show while it runs elsewhere."""

import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.errors import FederationError, NotRunningError, QuorumError
from server import daemon_lock
from server.config import ServerConfig
from server.studies import ENDED, StudyFolder
from server.studies import Progress as StudyProgress

LOOK_SECONDS = 0.5
DAEMON_SECONDS = 60.0
"""How long the daemon may be away, as when it is restarted."""


def follow(config: ServerConfig, folder: StudyFolder, console: Console) -> StudyProgress:
    """Show a study's rounds until it ends; to stop following does not stop it.

    Args:
        config: The coordinator.
        folder: The study.
        console: Where to show it: a bar with the rounds on a terminal, lines otherwise.

    Raises:
        QuorumError: The study is paused for want of sites.
        FederationError: It has failed, or a person stopped it.
        NotRunningError: The coordinator's daemon has been away for a minute.
    """
    lines = _History(folder)
    columns = (
        *(TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("rounds"), TimeElapsedColumn()),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(folder.study_id, total=None)
        for progress in _looks(config, folder):
            for line in lines.new():
                console.print(line, highlight=False, soft_wrap=True)
            shown = f"{escape(folder.study_id)}: {progress.state}"
            bar.update(task, completed=progress.round, total=progress.rounds, description=shown)
    return _ended(folder)


def _looks(config: ServerConfig, folder: StudyFolder) -> Iterator[StudyProgress]:
    """Yield the study's progress again and again, the last time when it has ended."""
    seen_running = time.monotonic()
    while True:
        progress = folder.progress()
        yield progress
        if progress.state in ENDED:
            return
        if daemon_lock.is_held(config):
            seen_running = time.monotonic()
        elif time.monotonic() - seen_running > DAEMON_SECONDS:
            raise NotRunningError(
                f"The coordinator in {config.folder} has ended; the study waits for it.",
                remedy="Start it again: rarefed-server start. The study goes on by itself.",
            )
        time.sleep(LOOK_SECONDS)


def _ended(folder: StudyFolder) -> StudyProgress:
    progress = folder.progress()
    again = f"rarefed-server resume {folder.study_id}"
    if progress.state == "paused":
        raise QuorumError(
            f"The study {folder.study_id} is paused after round {progress.round}: {progress.why}",
            remedy=f"When the sites are back: {again}",
        )
    if progress.state != "finished":
        why = f": {progress.why}" if progress.why else "."
        raise FederationError(
            f"The study {folder.study_id} has {progress.state} after round {progress.round}{why}"
            if progress.state == "failed"
            else f"The study {folder.study_id} was stopped after round {progress.round}{why}",
            remedy=f"To go on from there: {again}",
        )
    return progress


class _History:
    """The lines that a study's history has grown by since the last look."""

    def __init__(self, folder: StudyFolder) -> None:
        self._file = folder.path / "history.jsonl"
        self._shown = len(self._records())

    def new(self) -> list[str]:
        """Return a line for each new round."""
        records = self._records()
        # A round that is redone after a crash takes its earlier line away.
        first = min(self._shown, len(records))
        self._shown = len(records)
        return [described(record) for record in records[first:]]

    def _records(self) -> list[dict[str, Any]]:
        try:
            text = self._file.read_text("utf-8")
        except FileNotFoundError:
            return []
        complete = text[: text.rfind("\n") + 1]  # the last line may be half written
        return [json.loads(line) for line in complete.splitlines()]


def with_interval(value: float, ends: list[float] | None) -> str:
    """Return a figure with its 95 % interval, where it has one."""
    return f"{value:.3f}" + ("" if ends is None else " [{:.3f}, {:.3f}]".format(*ends))


def described(record: dict[str, Any]) -> str:
    """Return one round in a line: who answered, and how well the arriving model did."""
    name = f"round {record['round']}" if record["trained"] else "final measurement"
    if record["model_round"] != record["round"] - 1:
        name += f" (the model of round {record['model_round']}, the best)"
    parts = [f"{name}: {len(record['answered'])} of {len(record['asked'])} sites"]
    missing = {what: ", ".join(sorted(record[what])) for what in ("refused", "silent")}
    parts += [f"{what}: {sites}" for what, sites in missing.items() if sites]
    for task, splits in record["tasks"].items():
        found = splits.get("validation", {})
        auroc = found.get("pooled", {}).get("auroc")
        if auroc is not None:
            ends = found.get("intervals", {}).get("pooled", {}).get("auroc")
            parts.append(f"{task} AUROC {with_interval(auroc, ends)} (validation)")
    return "; ".join([*parts, f"{record['seconds'].get('total', 0.0):.0f} s"])
