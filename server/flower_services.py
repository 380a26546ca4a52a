"""Flower's processes at the coordinator: how they are called.

SuperLink holds nodes, messages and runs; SuperExec starts the ServerApp of a run. Open-source
Flower asks nobody who calls its Control API, so SuperLink listens on 127.0.0.1 alone.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from common.processes import GIVE_MEMORY_BACK, Service
from server.config import ServerConfig

COORDINATOR = "RAREFED_COORDINATOR"
"""Environment variable of a ServerApp: the coordinator's folder."""
POLL_SECONDS = 1.0
"""How often SuperExec asks for a run to start: Flower's own default, since a run lasts long."""


def flower_services(config: ServerConfig, *, front: bool = True) -> list[Service]:
    """Return SuperLink and SuperExec, in the order of their start.

    Their secrets are in files; the arguments name the files alone.

    Args:
        config: The coordinator.
        front: Whether sites come through the front. Otherwise SuperLink answers them itself, so
            it bears the certificate that the sites expect.
    """
    own = (config.loopback_certificate, config.loopback_key, config.loopback_authority)
    public = (config.server_certificate, config.server_key, config.authorities)
    certificate, key, authority = own if front else public
    working = config.flower_home / "empty"
    # Flower may import from where it stands, so it stands where nothing is.
    working.mkdir(mode=0o700, parents=True, exist_ok=True)
    env = environment(config)
    secret = ["--superexec-auth-secret-file", str(config.superexec_secret)]
    superlink = [
        *[sys.executable, "-P", "-m", "server.superlink", "--host", "127.0.0.1"],
        *["--port", str(config.superlink_port)],
        *["--ssl-ca-certfile", str(authority)],
        *["--ssl-certfile", str(certificate)],
        *["--ssl-keyfile", str(key)],
        *["--database", str(config.state_database)],
        *["--enable-supernode-auth", "--disable-runtime-dependency-installation"],
        *["--isolation", "process", *secret],
    ]
    superexec = [
        *[program("flower-superexec"), "--runtime-api-address", superlink_address(config)],
        *["--root-certificates", str(authority), *secret],
    ]
    return [
        Service("superlink", superlink, env, config.logs / "superlink.log", cwd=working),
        Service("superexec", superexec, env, config.logs / "superexec.log", cwd=working),
    ]


def environment(config: ServerConfig) -> dict[str, str]:
    """Return the environment of Flower's processes; a ServerApp inherits it from SuperExec."""
    # What the caller's shell says of Flower or of where to import from does not count here.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") and name not in ("PYTHONPATH", "PYTHONHOME")
    }
    return {
        **kept,
        "PATH": os.pathsep.join([str(_programs()), kept.get("PATH", os.defpath)]),
        **spare_loopback(kept),
        "FLWR_HOME": str(config.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(POLL_SECONDS),
        **GIVE_MEMORY_BACK,
        COORDINATOR: str(config.folder),
    }


def program(name: str) -> str:
    """Return the path of a program that Flower installs beside this Python."""
    return str(_programs() / name)


def superlink_address(config: ServerConfig) -> str:
    """Return where SuperLink listens."""
    return f"127.0.0.1:{config.superlink_port}"


def spare_loopback(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep what is on this machine away from a proxy."""
    listed = env.get("no_proxy") or env.get("NO_PROXY") or ""
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    text = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))
    return {"no_proxy": text, "NO_PROXY": text}


def _programs() -> Path:
    return Path(sys.executable).parent
