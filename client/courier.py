"""The courier: Flower's SuperNode and SuperExec, started so that they can do their work alone.

The coordinator's code runs in here. So these processes get the courier's own folder, an
environment without anything of the hospital's, and the name of the vault's socket.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.config import SiteConfig
from client.stall import StallWatch
from common.errors import EnrolmentError, ServiceError
from common.files import write_atomic
from common.processes import GIVE_MEMORY_BACK, Service, stop_on_signals, supervise

LOOPBACK = "127.0.0.1"
TASK_POLL_SECONDS = 0.2
"""How often the SuperExec asks for work; Flower's own default is 1 s. The SuperNode's 3 s are
fixed in Flower."""
STATUS_FILE = "processes.json"
SUPERNODE_LOG = "logs/supernode.log"
PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
PASSED_ON = ("LANG", "LC_ALL", "TZ", "FLWR_LOG_LEVEL")


class Connection(BaseModel):
    """Where the courier connects to; ``connection.json`` in its folder, written by ``join``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    address: Annotated[str, Field(pattern=r"^\S+:[0-9]{1,5}$")]
    """The coordinator's public address, ``host:port``."""
    site: str
    runtime_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the SuperNode's Runtime API on the loopback; 0 takes a free one at each start."""

    @classmethod
    def load(cls, config: SiteConfig) -> "Connection":
        """Read the connection that enrolment left.

        Raises:
            EnrolmentError: This hospital has not joined a coordinator, the file is damaged, or
                this user may not read it.
        """
        file = config.courier / "connection.json"
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError as error:
            raise EnrolmentError(
                f"{config.name} has not joined a coordinator: there is no {file}.",
                remedy="Run: rarefed-client join KIT --site FOLDER",
            ) from error
        except OSError as error:
            raise EnrolmentError(
                f"Cannot read {file}: {error.strerror}.",
                remedy="Run this as the courier's user, or as root.",
            ) from error
        except ValidationError as error:
            raise EnrolmentError(
                f"{file} is damaged ({error.error_count()} faults).",
                remedy="Ask the coordinator for a new kit and join again.",
            ) from error


def run(config: SiteConfig) -> None:
    """Run the courier until SIGTERM or SIGINT; as the courier's own user.

    Raises:
        EnrolmentError: This hospital has not joined a coordinator.
        ServiceError: A program is missing, or the folder is not this user's.
    """
    services = courier_services(config)
    stop = stop_on_signals()
    # Flower exits with 305 while the coordinator still believes in a SuperNode that was killed,
    # for about a minute: trying again every few seconds is all it needs.
    supervise(
        services,
        status_file=config.courier / STATUS_FILE,
        stop=stop,
        on_tick=stall_watch(config),
        backoff=(1.0, 10.0),
    )


def stall_watch(config: SiteConfig) -> StallWatch:
    """Return what looks after the courier's SuperNode, where both run under one supervisor."""
    return StallWatch(config.courier / STATUS_FILE, config.courier / SUPERNODE_LOG)


def courier_services(config: SiteConfig) -> list[Service]:
    """Make ready the courier's folder and return its two processes.

    Old app bundles and old temporary files go: Flower would use a bundle that lies there
    without looking at it again.

    Raises:
        EnrolmentError: This hospital has not joined a coordinator.
        ServiceError: The folder is not this user's.
    """
    connection, folder = Connection.load(config), config.courier
    port = connection.runtime_port or _free_port()
    try:
        for name in ("flower/apps", "tmp"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("flower", "tmp", "logs"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        write_loopback_certificate(folder)
        node = {"vault": str(config.socket), "site": connection.site}
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in node.items()]
        write_atomic(folder / "node.toml", ("\n".join(lines) + "\n").encode(), mode=0o600)
    except OSError as error:
        raise ServiceError(
            f"Cannot write in the courier's folder {folder}: {error.strerror}.",
            remedy="Run the courier as the user who owns that folder.",
        ) from error
    env = environment(folder, os.environ)
    return [
        Service(
            name="supernode",
            argv=supernode_arguments(folder, connection.address, port),
            env=env,
            log=folder / SUPERNODE_LOG,
            cwd=folder,
        ),
        Service(
            name="superexec",
            argv=superexec_arguments(folder, port),
            env=env,
            log=folder / "logs/superexec.log",
            cwd=folder,
        ),
    ]


def supernode_arguments(folder: Path, address: str, port: int) -> list[str]:
    """Return program and arguments of the SuperNode; files are named, no secret is in it."""
    return [
        _program("flower-supernode"),
        *("--superlink", address),
        *("--root-certificates", str(folder / "authority.pem")),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder / "superexec.secret")),
        *("--host", LOOPBACK),
        *("--port", str(port)),
        *("--ssl-certfile", str(folder / "runtime.crt")),
        *("--ssl-keyfile", str(folder / "runtime.key")),
        *("--ssl-ca-certfile", str(folder / "runtime.crt")),
        *("--node-config", str(folder / "node.toml")),
    ]


def superexec_arguments(folder: Path, port: int) -> list[str]:
    """Return program and arguments of the SuperExec, which starts a ClientApp for each message."""
    return [
        _program("flower-superexec"),
        *("--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--root-certificates", str(folder / "runtime.crt")),
        *("--superexec-auth-secret-file", str(folder / "superexec.secret")),
    ]


def environment(folder: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of the courier's processes.

    Flower's client takes its proxy from the environment, as httpx does. Traffic between the
    courier's own processes must not go there.

    Args:
        folder: The courier's folder; home, Flower's folder and temporary files are in it.
        outer: The environment to take language, time zone and proxies from.
    """
    env = {name: outer[name] for name in PASSED_ON if name in outer}
    for name in PROXY_VARIABLES:
        env |= {key: outer[key] for key in (name, name.lower()) if key in outer}
    direct = outer.get("no_proxy") or outer.get("NO_PROXY") or ""
    past = ",".join(filter(None, [direct, "localhost", LOOPBACK, "::1"]))
    return env | {
        # Both spellings: the lower one wins where both are set.
        "NO_PROXY": past,
        "no_proxy": past,
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_SECONDS),
        **GIVE_MEMORY_BACK,
    }


def write_loopback_certificate(folder: Path) -> None:
    """Make a new certificate for the Runtime API on the loopback: ``runtime.crt``, ``runtime.key``.

    With it the SuperExec knows the SuperNode. Without it, another local user who is quicker to
    take the port could hand the SuperExec tasks of its own.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rarefed courier")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomic(folder / "runtime.key", secret, mode=0o600)
    write_atomic(
        folder / "runtime.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=0o600
    )


def _program(name: str) -> str:
    """Return a program of Flower's that belongs to this very Python."""
    return str(Path(sys.executable).parent / name)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])
