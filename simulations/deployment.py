"""A whole deployed federation on this machine: one coordinator, several hospitals, all real.

Nothing is played here: it runs the commands that a coordinator and a hospital engineer type, each
daemon a process of its own, on loopback with TLS, keys, enrolment and the front.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from common.errors import ServiceError

BIN = Path(sys.executable).parent
ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
STOP_SECONDS = 60.0
READY_SECONDS = 180.0
SERVER_PROCESSES = ("superlink", "superexec", "front")
SITE_PROCESSES = ("vault", "supernode", "superexec")


@dataclass
class Daemon:
    """One daemon that runs in the foreground, as systemd would run it."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    folder: Path
    said: int
    """Bytes that stood in the log before."""


@dataclass
class Deployment:
    """A coordinator and its hospitals.

    Args:
        coordinator: The coordinator's folder, absolute; made by ``start_coordinator``.
        address: ``host:port`` that the sites call.
    """

    coordinator: Path
    address: str = ""
    prefix: dict[str, list[str]] = field(default_factory=dict)
    """What stands before a hospital's commands, by its folder's name: ``ip netns exec NAME``."""
    _daemons: dict[str, Daemon] = field(default_factory=dict)

    def start_coordinator(self, *init: str) -> None:
        """Make the coordinator's folder, if there is none yet, and start its daemon."""
        if not self.coordinator.exists():
            self.address = self.address or f"localhost:{free_port()}"
            host, port = self.address.rsplit(":", 1)
            listen = f"127.0.0.1:{port}" if host == "localhost" else self.address
            self.server(
                "init",
                "--name", "federation",
                "--address", self.address,
                "--listen", listen,
                "--superlink-port", str(free_port()),
                *init,
            )  # fmt: skip
        self._start("coordinator", [str(BIN / "rarefed-server"), "start", *self._here()])
        self._await_ready("coordinator", SERVER_PROCESSES)

    def enrol(self, hospital: Path) -> None:
        """Invite a site, let it join with the kit, and accept it."""
        invited = self.server("invite", _name_of(hospital))
        joined = self.client(
            hospital,
            "join",
            invited["kit"],
            "--site",
            str(hospital),
            "--fingerprint",
            invited["fingerprint"],
        )
        self.server("accept", joined["request"])

    def approve(self, hospital: Path, study: Path) -> None:
        """Approve a study at a hospital."""
        self.client(hospital, "approve", str(hospital), str(study), "--yes")

    def start_hospital(self, hospital: Path) -> None:
        """Start a hospital's vault and courier."""
        command = [*self.prefix.get(hospital.name, []), str(BIN / "rarefed-client"), "start"]
        self._start(hospital.name, [*command, str(hospital)], folder=hospital / "courier")
        self._await_ready(hospital.name, SITE_PROCESSES)

    def server(self, command: str, *words: str) -> Any:
        """Run a command of the coordinator and return its JSON."""
        return run_json([str(BIN / "rarefed-server"), command, *words, *self._here()])

    def client(self, hospital: Path, command: str, *words: str) -> Any:
        """Run a command of a hospital and return its JSON."""
        prefix = self.prefix.get(hospital.name, [])
        return run_json([*prefix, str(BIN / "rarefed-client"), command, *words])

    def study_folder(self, study_id: str) -> Path:
        """Return the folder of a study at the coordinator."""
        return self.coordinator / "studies" / study_id

    def pid(self, who: str, process: str) -> int:
        """Return the process id of a supervised process.

        Args:
            who: ``coordinator``, or the name of a hospital's folder.
            process: Its name among the daemon's processes; ``serverapp`` and ``clientapp`` are
                those that Flower's SuperExec has started for the order at hand; ``daemon`` is
                the supervisor itself.
        """
        if process == "daemon":
            return self._daemons[who].process.pid
        if process in ("serverapp", "clientapp"):
            apps = flower_apps(self._daemons[who].folder, [f"flwr-{process}"])
            return next((int(entry.name) for _, entry in apps), 0)
        return int(processes_of(self._daemons[who].folder)[process]["pid"])

    def kill(self, who: str, process: str) -> int:
        """Kill a process as hard as can be, and return its id."""
        pid = self.pid(who, process)
        os.kill(pid, signal.SIGKILL)
        return pid

    def restart(self, who: str) -> None:
        """Start a daemon again that was killed."""
        daemon = self._daemons[who]
        daemon.process.wait(STOP_SECONDS)
        words = daemon.process.args
        self._start(who, list(words), folder=daemon.folder)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Stop all daemons: the hospitals' first."""
        for name in [name for name in self._daemons if name != "coordinator"] + ["coordinator"]:
            if name in self._daemons:
                daemon = self._daemons.pop(name)
                daemon.process.terminate()
                try:
                    daemon.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    daemon.process.kill()
                daemon.log.close()

    def _here(self) -> list[str]:
        return ["--folder", str(self.coordinator)]

    def _start(self, name: str, words: Sequence[str], folder: Path | None = None) -> None:
        log = (self.coordinator.parent / f"{name}.log").open("ab")
        said = log.tell()
        process = subprocess.Popen(  # noqa: S603 - our own commands
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
            cwd=self.coordinator.parent,
        )
        self._daemons[name] = Daemon(process, log, folder or self.coordinator, said)

    def _await_ready(self, name: str, processes: Sequence[str]) -> None:
        daemon = self._daemons[name]

        def ready() -> bool:
            if daemon.process.poll() is not None:
                raise ServiceError(
                    f"{name} ended with exit code {daemon.process.returncode}:\n"
                    + Path(daemon.log.name).read_text(encoding="utf-8")[-2000:]
                )
            found = processes_of(daemon.folder)
            if not all(found.get(process, {}).get("pid") for process in processes):
                return False
            said = Path(daemon.log.name).read_bytes()[daemon.said :]
            return name != "coordinator" or b"Ready:" in said

        wait_until(ready, READY_SECONDS, f"the processes of {name}")


@contextmanager
def deployment(coordinator: Path, **settings: Any) -> Iterator[Deployment]:
    """Give a deployment whose daemons end with the block, also where SIGTERM ends it.

    Call it from the main thread.
    """
    made = Deployment(coordinator, **settings)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield made
    finally:
        made.stop()
        signal.signal(signal.SIGTERM, before)


def processes_of(folder: Path) -> dict[str, Any]:
    """Return what a daemon says of its processes; nothing while it has not said anything."""
    try:
        found: dict[str, Any] = json.loads((folder / "processes.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until something is true, and return it.

    Raises:
        ServiceError: It was not within the time.
    """
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise ServiceError(f"Waited {seconds:.0f} s for {what}, in vain.")
        time.sleep(0.1)
    return found


def run_json(words: Sequence[str]) -> Any:
    """Run a command with ``--json`` and return what it printed.

    Raises:
        ServiceError: It failed; the message has what it said.
    """
    done = subprocess.run(  # noqa: S603 - our own commands
        [*words, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, **ENVIRONMENT},
        check=False,
        text=True,
    )
    if done.returncode:
        raise ServiceError(
            f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout) if done.stdout.strip() else None


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _name_of(hospital: Path) -> str:
    from client.config import SiteConfig  # noqa: PLC0415 - pydantic alone, but not for every caller

    return SiteConfig.load(hospital).name


def flower_apps(folder: Path, programs: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Yield Flower's app processes below a folder: the program, and what /proc has of it.

    Args:
        folder: Processes whose environment names it are looked at.
        programs: Names such as ``flwr-serverapp``.
    """
    mark = str(folder).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end at any moment
            words = (entry / "cmdline").read_bytes().split(b"\0")[:2]
            names = {Path(word.decode()).name for word in words if word}
            for program in names & set(programs):
                if mark in (entry / "environ").read_bytes():
                    yield program, entry


def set_up(deployed: Deployment, made: Sequence[Path], study: Path) -> None:
    """Start the coordinator; enrol each hospital, let it approve the study, and start it."""
    deployed.start_coordinator()
    for hospital in made:
        deployed.enrol(hospital)
        deployed.approve(hospital, study)
        deployed.start_hospital(hospital)


def give_one_thread(made: Sequence[Path]) -> None:
    """Let each hospital compute with one torch thread, as they share this machine."""
    for hospital in made:
        file = hospital / "site.toml"
        text = file.read_text(encoding="utf-8").replace("threads = 0", "threads = 1")
        file.write_text(text, encoding="utf-8")
