"""One coordinator, started by its own command, for all attacks; and how secrets are looked for."""

import base64
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from common.seals import load_order_key
from server import flower, front
from server.config import ServerConfig
from simulations.deployment import Deployment, deployment, wait_until

Exposed = Callable[[Mapping[Path, list[bytes]], list[Path], int], list[str]]


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A coordinator that runs: SuperLink, SuperExec, nginx and their supervisor."""
    if front.program() is None:
        pytest.skip("nginx is not installed")
    with deployment(tmp_path_factory.mktemp("deployment") / "coordinator") as made:
        made.start_coordinator()
        config = ServerConfig.load(made.coordinator)
        wait_until(lambda: flower.is_up(config), 60, "SuperLink")
        yield made


@pytest.fixture(scope="session")
def config(deployed: Deployment) -> ServerConfig:
    """Its configuration."""
    return ServerConfig.load(deployed.coordinator)


@pytest.fixture(scope="session")
def secrets_of() -> Callable[[Path], dict[Path, list[bytes]]]:
    """Return what names the secrets in a folder: the file that may hold one, and its spellings."""

    def find(folder: Path) -> dict[Path, list[bytes]]:
        found: dict[Path, list[bytes]] = {}
        for file in folder.rglob("superexec.secret"):
            found[file] = _spellings(file.read_bytes())
        for file in folder.rglob("order.key"):
            key = load_order_key(file.read_bytes())
            found[file] = [*_spellings(key.private_bytes_raw()), file.read_bytes().splitlines()[1]]
        for file in folder.rglob("node.key"):
            node = load_ssh_private_key(file.read_bytes(), None)
            assert isinstance(node, EllipticCurvePrivateKey)
            value = node.private_numbers().private_value
            found[file] = [*_spellings(value.to_bytes(48)), str(value).encode()]
        for file in folder.rglob("site.key"):
            found[file] = _spellings(bytes.fromhex(file.read_text()))
        return found

    return find


@pytest.fixture(scope="session")
def exposed() -> Exposed:
    """Return what lists each place where a secret is, or where others may read."""

    def find(secrets: Mapping[Path, list[bytes]], folders: list[Path], daemon: int) -> list[str]:
        faults = [fault for folder in folders for fault in _in_files(secrets, folder)]
        for pid in _family(daemon):
            for what in ("cmdline", "environ"):
                try:
                    text = Path(f"/proc/{pid}/{what}").read_bytes()
                except OSError:  # it has ended meanwhile
                    continue
                names = [file.name for file, forms in secrets.items() if _holds(text, forms)]
                faults += [f"{name} in {what} of {pid}" for name in names]
        return faults

    return find


def _in_files(secrets: Mapping[Path, list[bytes]], folder: Path) -> Iterator[str]:
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            continue
        shared = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if path in secrets and shared:
            yield f"{path} is open to others"
        if stat.S_ISREG(status.st_mode):
            text = path.read_bytes()
            for file, forms in secrets.items():
                if path != file and _holds(text, forms):
                    yield f"{file.name} in {path}"


def _family(daemon: int) -> list[int]:
    """Return a process, its children, theirs, and so on."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(entry.parent.name)] = int(fields[1])  # proc(5)
    family = [daemon]
    for pid in family:  # grows while it is gone through
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _spellings(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")]


def _holds(text: bytes, forms: list[bytes]) -> bool:
    return any(form in text for form in forms)
