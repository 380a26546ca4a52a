"""The two guides do what they say: their commands, typed one after the other, end with a model.

A ``bash`` block is played here, on loopback, with real processes. An ``sh`` block needs root,
systemd or another machine and is not. What the guides say of a machine of one's own (folders,
users, the public address) is put in place of this machine's.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.models import build_model
from common.study import Study
from simulations.deployment import free_port

ROOT = Path(__file__).resolve().parent.parent
SITES = ("st-mary", "st-luke")
READY_SECONDS, STOP_SECONDS, COMMAND_SECONDS = 120.0, 60.0, 300.0


@dataclass
class Guide:
    """One page as one person follows it, in a folder of its own."""

    page: str
    folder: Path
    put: Mapping[str, str]
    """What stands in the page, and what stands for it here; in this order."""
    played: list[str] = field(default_factory=list)
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def blocks(self, heading: str = "") -> list[str]:
        """Return the bash blocks below a heading, or all of them."""
        text = (ROOT / "docs" / self.page).read_text(encoding="utf-8")
        if heading:
            parts = re.split(r"^## ", text, flags=re.MULTILINE)
            found = [part for part in parts if re.match(rf"(\d+\. )?{heading}\n", part)]
            assert len(found) == 1, heading
            text = found[0]
        return re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    def follow(self, heading: str) -> None:
        """Play the bash blocks below a heading; a daemon is left running."""
        found = self.blocks(heading)
        assert found, heading
        for block in found:
            self.played.append(block)
            text = block
            for said, here in self.put.items():
                text = re.sub(said, here, text)
            if re.match(r"rarefed-(client|server) start ", text):
                self._start(text.strip())
            else:
                self._play(text)

    def _play(self, text: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{self.page}: {text}\n{done.stdout}\n{self.logs()}"

    def _start(self, text: str) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            command = ["bash", "-c", f"exec {text}"]  # exec: the daemon itself has this id
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.daemons.append(process)

    def stop(self) -> None:
        """Stop the daemons of this page, as Ctrl-C would."""
        while self.daemons:
            process = self.daemons.pop()
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def logs(self) -> str:
        """Return the ends of the logs of this page's processes."""
        files = [path for path in self.folder.rglob("*.log") if path.is_file()]
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-1500:]}" for path in files)


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    quiet = {"NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PATH": path}


def _coordinators(folder: Path) -> Guide:
    folder.mkdir()
    put = {
        r"sudo (-u \S+ )?": "",
        "--address fed.example.org:8443": f"--address localhost:{free_port()} "
        f"--superlink-port {free_port()}",
        "/var/lib/rarefed-coordinator": str(folder / "coordinator"),
        "/etc/rarefed": str(folder),
    }
    return Guide("coordinator.md", folder, put)


def _hospitals(folder: Path, site: str, fingerprint: str) -> Guide:
    """Return a hospital's guide; vault and courier are one user here."""
    folder.mkdir()
    put = {
        r"sudo (-u \S+ )?": "",
        r" --vault-user \S+ --courier-user \S+": "",
        'socket_group = "rarefed"': 'socket_group = ""',
        "/run/rarefed": str(folder / "run"),
        "/var/lib/rarefed": str(folder / "site"),
        "/etc/rarefed": str(folder),
        "/srv/rarefed": str(folder),
        r"0000 1111( \w{4}){14}": fingerprint,
        "st-mary": site,
    }
    return Guide("hospital.md", folder, put)


def _wait_until(holds: Callable[[], bool], what: str, guide: Guide) -> None:
    until = time.monotonic() + READY_SECONDS
    while not holds():
        assert time.monotonic() < until, f"in vain: {what}\n{guide.logs()}"
        assert all(process.poll() is None for process in guide.daemons), guide.logs()
        time.sleep(0.2)


@pytest.fixture
def started() -> Iterator[list[Guide]]:
    """Collect the guides, whose daemons end with the test: the coordinator's last."""
    guides: list[Guide] = []
    yield guides
    for guide in reversed(guides):
        guide.stop()


def _is_ready(guide: Guide) -> bool:
    return "Ready" in (guide.folder / "daemon.log").read_text(encoding="utf-8")


def _together(guides: Sequence[Guide], *headings: str) -> None:
    """Let each guide follow its headings, all of them side by side, as people would."""

    def follow(guide: Guide) -> None:
        for heading in headings:
            guide.follow(heading)

    with ThreadPoolExecutor(len(guides)) as people:
        list(people.map(follow, guides))


def _fingerprint(coordinator: Guide) -> str:
    """Return what the coordinator reads out on the telephone, from a kit that nobody uses."""
    folder = str(coordinator.folder / "coordinator")
    words = ["rarefed-server", "invite", "st-anne", "--folder", folder, "--json"]
    done = subprocess.run(words, env=_environment(), capture_output=True, check=True)
    return str(json.loads(done.stdout)["fingerprint"])


@pytest.mark.skipif(
    not shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"),
    reason="the coordinator's front needs nginx",
)
def test_both_guides_lead_to_a_finished_study(tmp_path: Path, started: list[Guide]) -> None:
    """Who types what stands in the guides has a study of two hospitals, and its model, at the end.

    All blocks are played, so none can be wrong without being found.
    """
    coordinator = _coordinators(tmp_path / "centre")
    started.append(coordinator)
    coordinator.follow("Make the coordinator")
    coordinator.follow("Start")
    coordinator.follow("Write the study")
    _wait_until(lambda: _is_ready(coordinator), "the coordinator", coordinator)
    coordinator.follow("Invite the hospitals")
    fingerprint = _fingerprint(coordinator)

    hospitals = [_hospitals(tmp_path / site, site, fingerprint) for site in SITES]
    started.extend(hospitals)
    for site, hospital in zip(SITES, hospitals, strict=True):
        shutil.copy(coordinator.folder / f"coordinator/kits/{site}.kit.json", hospital.folder)
        shutil.copy(coordinator.folder / "trial.toml", hospital.folder)
    _together(hospitals, "Make phantoms", "Join")
    for site, hospital in zip(SITES, hospitals, strict=True):
        shutil.copy(hospital.folder / f"{site}.request.json", coordinator.folder)
    coordinator.follow("Accept their requests")
    _together(hospitals, "Name the images", "Ask the doctor", "Approve the study", "Start")
    for hospital in hospitals:
        _wait_until((hospital.folder / "run/vault.sock").is_socket, "the vault", hospital)
    coordinator.follow("Run the study")
    coordinator.follow("Export the model")

    _together(hospitals, "Watch", "Pause")
    coordinator.follow("Revoke a site")
    coordinator.follow("New certificates")
    for hospital in hospitals:
        shutil.copy(coordinator.folder / "coordinator/renewal.pem", hospital.folder)
    _together(hospitals, "New certificates")
    for hospital in hospitals:
        hospital.stop()
    _together(hospitals, "Back up", "Leave")

    exported = coordinator.folder / "coordinator/export-trial"
    model = build_model(Study.load(exported / "study.toml"))
    model.load_state_dict(load_file(exported / "model.safetensors"))
    card = json.loads((exported / "card.json").read_text(encoding="utf-8"))
    assert (card["state"], card["round"], card["sites"]) == ("finished", 2, sorted(SITES))
    for guide in started:
        assert sorted(guide.played) == sorted(guide.blocks()), guide.page


@pytest.mark.parametrize("page", ["hospital.md", "coordinator.md"])
def test_blocks_of_a_guide_say_whether_they_are_played(page: str) -> None:
    """Every command of our programs stands in a block that is played, or in one that says not."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in fences} <= {"bash", "sh", "console", ""}
    for language, block in fences:
        if re.search(r"\brarefed-(client|server|sim) ", block):
            assert language in {"bash", "sh"}, block
        if re.search(r"\b(systemctl|apt|useradd|chown)\b", block):
            assert language in {"sh", "console"}, block
