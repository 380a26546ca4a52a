"""Deployed federations that several benches share: ours, and a plain Flower app as the peer."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common.study import Study
from server.history import HISTORY, RoundRecord, load
from server.studies import toml_text
from simulations.deployment import (
    BIN,
    ENVIRONMENT,
    Deployment,
    deployment,
    flower_apps,
    free_port,
    set_up,
    wait_until,
)

RUN_SECONDS = 3000.0


@contextmanager
def running(folder: Path, study: Study, made: list[Path]) -> Iterator[tuple[Deployment, str]]:
    """Deploy a coordinator and hospitals, submit a study, and give both with the study's id."""
    file = folder / "study.toml"
    file.write_text(toml_text(study), encoding="utf-8")
    with deployment(folder / "coordinator") as deployed:
        set_up(deployed, made, file)
        yield deployed, deployed.server("run", str(file), "--no-follow")["study"]


def finished(deployed: Deployment, study_id: str) -> list[RoundRecord]:
    """Wait for the end of a study and return its history."""
    folder = deployed.study_folder(study_id)
    progress = folder / "progress.json"

    def ended() -> str:
        state = str(json.loads(progress.read_text(encoding="utf-8"))["state"])
        if state in ("failed", "paused", "stopped"):
            raise RuntimeError(f"the study ended as {state}: {progress.read_text()}")
        return state if state == "finished" and (folder / HISTORY).exists() else ""

    wait_until(ended, RUN_SECONDS, "the end of the study")
    return load(folder)


@dataclass
class PeakMemory:
    """Watches the largest resident memory of Flower's app processes below a folder.

    Args:
        folder: Processes whose environment names it are looked at.
        programs: Names such as ``flwr-serverapp``.
    """

    folder: Path
    programs: tuple[str, ...]
    peaks: dict[str, int] = field(default_factory=dict)
    """Bytes by program: the most that one process of that name had."""

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the watch."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for program, entry in flower_apps(self.folder, self.programs):
                with suppress(OSError):  # it has ended meanwhile
                    peak = _high_water(entry)
                    self.peaks[program] = max(self.peaks.get(program, 0), peak)


def _high_water(entry: Path) -> int:
    """Return the largest resident memory that a process has had, in bytes (proc(5), VmHWM)."""
    for line in (entry / "status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def plain_flower(
    folder: Path, *, nodes: int, settings: dict[str, Any], fedavg: bool
) -> dict[str, Any]:
    """Run a plain Flower app on loopback, as its documentation tells, and return what it printed.

    Args:
        folder: For everything; new.
        nodes: SuperNodes.
        settings: The run's configuration.
        fedavg: Use Flower's FedAvg; otherwise bare exchanges of one small array.
    """
    app = folder / "app"
    for name, text in (_FEDAVG if fedavg else _EXCHANGES).items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text, encoding="utf-8")
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (app / "pyproject.toml").write_text(_PROJECT + "\n".join(lines) + "\n", encoding="utf-8")
    port, home = free_port(), folder / "flwr"
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "FLWR_HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "peer"\n\n[superlink.peer]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n",
        encoding="utf-8",
    )
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    commands = [[*link, "--disable-runtime-dependency-installation"]]
    commands += [
        [
            "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
            "--host", "127.0.0.1", "--port", str(free_port()),
        ]
        for _ in range(nodes)
    ]  # fmt: skip
    empty = folder / "empty"
    empty.mkdir()
    started = []
    try:
        for number, command in enumerate(commands):
            log = (folder / f"{number}.log").open("wb")
            started.append(
                subprocess.Popen(  # noqa: S603 - Flower's own commands
                    [str(BIN / command[0]), *command[1:]],
                    env=environment, cwd=empty, stdout=log, stderr=log,
                )
            )  # fmt: skip
        return _submitted(app, environment, empty)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(60)


def _submitted(app: Path, environment: dict[str, str], cwd: Path) -> dict[str, Any]:
    """Submit the app, follow its log and return the JSON that its server printed."""
    command = [str(BIN / "flwr"), "run", str(app), "peer", "--stream"]

    def said() -> str:
        done = subprocess.run(  # noqa: S603 - Flower's own command
            command, env=environment, cwd=cwd, capture_output=True, text=True, check=False
        )
        return done.stdout if "PEER " in done.stdout else ""

    text: str = wait_until(said, 600.0, "the plain Flower app")
    line = next(line for line in text.splitlines() if "PEER " in line)
    found: dict[str, Any] = json.loads(line.split("PEER ", 1)[1])
    return found


_PROJECT = """[project]
name = "peer"
version = "0.1.0"
description = "a plain Flower app"
license = "Apache-2.0"
dependencies = ["flwr>=1.41.0,<1.42"]
[tool.flwr.app]
publisher = "peer"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
"""

_CLIENT = """import timm
import torch
import torchvision
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    record = message.content["arrays"]
    state = record.to_torch_state_dict()
    from flwr.app import ArrayRecord
    content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
"""

_EXCHANGES = {
    "client/__init__.py": "",
    "server/__init__.py": "",
    "client/app.py": _CLIENT,
    "server/app.py": """import json
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.5)
    arrays = ArrayRecord({"w": Array(np.zeros(1000, np.float32))})
    seconds = []
    for _ in range(context.run_config["exchanges"]):
        began = time.perf_counter()
        messages = [Message(RecordDict({"arrays": arrays}), node, "train") for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=300))
        assert all(reply.has_content() for reply in replies), replies
        seconds.append(time.perf_counter() - began)
    print("PEER " + json.dumps({"seconds": seconds}), flush=True)
""",
}

_FEDAVG = {
    "client/__init__.py": "",
    "server/__init__.py": "",
    "client/app.py": _CLIENT,
    "server/app.py": """import json
import time

import timm
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    nodes = context.run_config["nodes"]
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.5)
    model = timm.create_model(context.run_config["backbone"], num_classes=2)
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes
    )
    began = time.perf_counter()
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["rounds"],
    )
    print("PEER " + json.dumps({"seconds": time.perf_counter() - began}), flush=True)
""",
}
