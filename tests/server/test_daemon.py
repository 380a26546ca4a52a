"""Laws of the coordinator's daemon: one to a folder, nothing left behind, studies that go on.

The daemon is the real one with SuperLink, SuperExec and (where installed) nginx; the ServerApp is
a small one that counts rounds without sites, in the way of ours: lock, progress, end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.errors import NotRunningError, ServiceError
from common.process_table import Identity
from common.processes import read_status
from server import daemon, daemon_lock, front
from server.config import ServerConfig, init_folder
from simulations.deployment import free_port

ROOT = Path(__file__).resolve().parents[2]

DAEMON = '''
import logging, sys
from pathlib import Path
from flwr.cli.build import build_fab_from_files
from server import daemon
from server.config import ServerConfig

PROJECT = b"""
[project]
name = "tiny"
version = "0.0.1"
description = "a test's"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
clientapp = "tiny:client"
serverapp = "tiny:app"
[tool.flwr.app.config]
study-id = ""
"""
APP = b"""
import os, time
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from server.config import ServerConfig
from common.file_lock import locked
from server.studies import StudyFolder

client = ClientApp()
app = ServerApp()

@app.main()
def main(grid, context):
    folder = StudyFolder(
        ServerConfig.load(Path(os.environ["RAREFED_COORDINATOR"])), context.run_config["study-id"]
    )
    with locked(folder.run_lock):
        done = folder.progress()
        with (folder.path / "pids").open("a") as file:
            file.write(str(os.getpid()) + chr(10))
        for number in range(done.round + 1, done.rounds + 1):
            time.sleep(0.3)
            list(grid.get_node_ids())  # as ours does all the time: it tells of a stop
            with (folder.path / "counted").open("a") as file:
                file.write(str(number) + chr(10))
            folder.write_progress("running", number, done.rounds, sites=["north"])
        if (folder.path / "pause").exists():
            folder.change_state("paused", "too few sites")
        else:
            folder.change_state("finished")
"""

def bundle():
    return build_fab_from_files({"pyproject.toml": PROJECT, "tiny.py": APP})[0]

logging.basicConfig(level=logging.INFO)
config = ServerConfig.load(Path(sys.argv[1]))
daemon.start(config, bundle=bundle, say=lambda line: print(line, flush=True))
'''
STUDY = """
name = "{name}"
rounds = {rounds}
[backbone]
name = "resnet18"
weights = "none"
[tasks.grade]
modality = "fundus"
classes = ["none", "some"]
"""


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


@dataclass
class Coordinator:
    """A coordinator's folder, and the daemon that may run in it."""

    config: ServerConfig
    process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        """Start the daemon, and wait until it is ready."""
        out = (self.config.folder.parent / "out").open("ab")
        self.process = process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(self.config.folder)],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
        ready = self.said().count("Ready") + 1
        assert wait_for(lambda: self.said().count("Ready") == ready or process.poll())
        assert process.poll() is None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def said(self) -> str:
        """Return the daemon's standard output."""
        return (self.config.folder.parent / "out").read_text()

    def pid(self, name: str) -> int | None:
        """Return the process of a service."""
        pid: int | None = read_status(self.config.processes_file).get(name, {}).get("pid")
        return pid

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``rarefed-server``."""
        argv = [sys.executable, "-c", "from server.cli import main; main()", *words]
        argv += ["--folder", str(self.config.folder)]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)

    def status(self) -> dict[str, Any]:
        """Return what ``rarefed-server status`` says."""
        found: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return found

    def study(self, name: str, rounds: int) -> Path:
        """Write a study file."""
        file = self.config.folder.parent / f"{name}.toml"
        file.write_text(STUDY.format(name=name, rounds=rounds))
        return file

    def run(self, name: str, rounds: int) -> Path:
        """Let a study run, and return its folder."""
        result = self.command("run", str(self.study(name, rounds)), "--no-follow", "--json")
        assert result.returncode == 0, result.stderr
        return self.config.studies / str(json.loads(result.stdout)["study"])


def state(study: Path) -> str:
    return str(json.loads((study / "progress.json").read_text())["state"])


def lines(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def none_runs(processes: list[Identity]) -> bool:
    return not any(process.is_running() for process in processes)


def new_coordinator(folder: Path) -> Coordinator:
    address = f"127.0.0.1:{free_port()}"
    port = free_port()
    if front.program() is None:
        address = f"127.0.0.1:{port}"
    return Coordinator(init_folder(folder / "c", "trial", address, superlink_port=port))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    found = new_coordinator(tmp_path_factory.mktemp("daemon"))
    found.start()
    yield found
    found.end()


def test_a_study_runs_to_its_end(running: Coordinator) -> None:
    """A study is followed to its end, each round counted once; run again, nothing happens."""
    file = running.study("whole", 3)
    result = running.command("run", str(file), "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["state"], found["round"], found["sites"]) == ("finished", 3, ["north"])
    study = running.config.studies / found["study"]
    assert lines(study / "counted") == [1, 2, 3]
    again = running.command("run", str(file), "--json")
    assert json.loads(again.stdout)["state"] == "finished"
    assert lines(study / "counted") == [1, 2, 3]


@pytest.mark.slow
def test_a_paused_study_says_so_and_can_be_resumed(running: Coordinator) -> None:
    """A paused study ends the following with the quorum's exit code; resumed, it goes on."""
    study = running.run("pausing", 2)
    (study / "pause").touch()
    assert wait_for(lambda: state(study) == "paused")
    result = running.command("run", str(running.study("pausing", 2)), "--json")
    assert result.returncode == 32
    assert "too few sites" in result.stderr
    assert "resume" in result.stderr
    (study / "pause").unlink()
    result = running.command("resume", "pausing", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "finished"


@pytest.mark.slow
def test_a_stopped_study_goes_on_where_it_stood(running: Coordinator) -> None:
    """A stop ends the run within seconds and keeps the rounds; resumed, none is done twice."""
    study = running.run("stopping", 500)
    assert wait_for(lambda: len(lines(study / "counted")) >= 2)
    server_app = Identity.of(lines(study / "pids")[-1])
    stopped = json.loads(running.command("stop", "stopping", "--json").stdout)
    assert stopped["state"] == "stopped"
    done = lines(study / "counted")
    assert wait_for(lambda: not server_app.is_running(), 10)
    assert lines(study / "counted") == done
    assert running.command("resume", "stopping", "--no-follow").returncode == 0
    assert wait_for(lambda: len(lines(study / "counted")) >= len(done) + 2)
    counted = lines(study / "counted")
    assert counted == list(range(1, len(counted) + 1))
    running.command("stop", "stopping")


def test_the_status_shows_what_there_is(running: Coordinator) -> None:
    """The status names processes, sites and studies, for a script and for a person."""
    found = running.status()
    assert found["running"]
    assert {"superlink", "superexec"} <= set(found["processes"])
    assert all(entry["pid"] for entry in found["processes"].values())
    assert found["sites"] == {"enrolled": [], "online": []}
    assert "The coordinator is running." in running.command("status").stdout


def test_only_one_daemon_works_in_a_folder(running: Coordinator) -> None:
    """A second daemon in the same folder is refused, and the first goes on."""
    assert daemon_lock.is_held(running.config)
    with pytest.raises(ServiceError, match="running already"):
        daemon.start(running.config)
    assert running.command("start").returncode == 60
    assert running.process is not None
    assert running.process.poll() is None


def test_a_taken_port_is_said(running: Coordinator, tmp_path: Path) -> None:
    """A port that another process has is named before anything is started."""
    port = running.config.superlink_port
    other = init_folder(tmp_path / "c", "trial", f"127.0.0.1:{port}", superlink_port=port)
    with pytest.raises(ServiceError, match=f"Cannot listen on 127.0.0.1:{port}"):
        daemon.start(other)
    assert not daemon_lock.is_held(other)


def test_nothing_private_is_said(running: Coordinator) -> None:
    """Standard output holds few lines, and logs no secret."""
    assert len(running.said().splitlines()) <= 4
    config = running.config
    secrets = [
        config.superexec_secret.read_bytes().hex(),
        "BEGIN PRIVATE KEY",
        "BEGIN EC PRIVATE KEY",
    ]
    for file in config.logs.iterdir():
        assert not any(secret in file.read_text(errors="replace") for secret in secrets)
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["superlink", "superexec", "front"])
def test_a_killed_process_comes_back(running: Coordinator, name: str) -> None:
    """Each process that is killed hard runs again within seconds, with another number."""
    before = running.pid(name)
    if before is None:
        pytest.skip("nginx is not installed")
    os.kill(before, signal.SIGKILL)
    assert wait_for(lambda: running.pid(name) not in (None, before), 20)
    assert wait_for(lambda: running.status()["sites"] is not None, 20)


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readiness goes to systemd's socket, where there is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon.notify("READY=1")
        assert receiver.recv(64) == b"READY=1"
    daemon.notify("READY=1")  # nobody listens any more: no error
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"rarefed-test-{os.getpid()}"
        receiver.bind(f"\0{name}")
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        daemon.notify("STOPPING=1")
        assert receiver.recv(64) == b"STOPPING=1"


def test_without_a_daemon_nothing_is_promised(tmp_path: Path) -> None:
    """Where no daemon works, the lock says so, and a study cannot be run."""
    found = new_coordinator(tmp_path)
    assert not daemon_lock.is_held(found.config)
    with pytest.raises(NotRunningError, match="rarefed-server start"):
        daemon_lock.require(found.config)
    result = found.command("run", str(found.study("none", 2)))
    assert result.returncode == 61
    assert "rarefed-server start" in result.stderr
    assert found.status() == {
        "running": False,
        "address": found.config.address,
        "processes": {},
        "sites": None,
        "studies": {},
    }


@pytest.mark.slow
def test_a_study_survives_every_kill(tmp_path: Path) -> None:
    """ServerApp, SuperExec and SuperLink killed, the daemon killed and ended: no round twice."""
    found = new_coordinator(tmp_path)
    found.start()
    study = found.run("surviving", 60)

    def moves_on() -> bool:
        before = len(lines(study / "counted"))
        return wait_for(lambda: len(lines(study / "counted")) >= before + 3, 60)

    assert moves_on()
    os.kill(lines(study / "pids")[-1], signal.SIGKILL)
    assert moves_on()
    for name in ("superexec", "superlink"):
        pid = found.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert moves_on()
    for number in (signal.SIGKILL, signal.SIGTERM):
        pids = [found.pid(name) for name in ("superlink", "superexec", "front")]
        running = [Identity.of(pid) for pid in pids if pid is not None]
        server_app = Identity.of(lines(study / "pids")[-1])
        found.end(number)
        assert wait_for(partial(none_runs, running), 5)
        found.start()
        # Without its SuperLink it may take longer to end, but not longer than to the next start.
        assert not server_app.is_running()
        assert moves_on()
    assert wait_for(lambda: state(study) == "finished", 120)
    assert lines(study / "counted") == list(range(1, 61))
    assert found.end() == 0
