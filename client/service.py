"""``start`` without systemd: which processes, under which users, and what is then unprotected."""

import grp
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from client.config import SiteConfig
from client.courier import STATUS_FILE, courier_services, environment, stall_watch
from client.socket_file import check_path
from common.errors import ServiceError
from common.processes import Service, stop_on_signals, supervise

SUPERVISOR = "supervisor"
"""Root's own folder beside ``state`` and ``courier``. Root writes nothing where the courier may:
what the coordinator ships runs as the courier, and could lay a link there."""


class Users(NamedTuple):
    """Who runs what, when root starts both."""

    vault: str
    courier: str


@dataclass(frozen=True)
class Plan:
    """What ``start`` runs."""

    services: Sequence[Service]
    status_file: Path
    users: Users | None
    own_network: bool
    """Whether the vault gets a network namespace of its own, with nothing in it."""
    watch: Callable[[], None] | None = None
    """Called again and again while they run."""


def plan(config: SiteConfig, folder: Path, users: Users | None) -> Plan:
    """Prepare the processes of one hospital.

    Without users, the vault and the courier's two processes run side by side. With users, each
    half is a command of its own, which gives up root before it begins.

    Args:
        config: The hospital.
        folder: Its folder, of ``site.toml``.
        users: Who runs what; only root can say so.

    Raises:
        EnrolmentError: The hospital has not joined a coordinator.
        ServiceError: The path of the vault's socket is too long, a user does not exist or may not
            use its folder, or this is not root.
    """
    check_path(config)  # a vault that ends with this fault would be started again for ever
    if users is None:
        vault = Service(
            name="vault",
            argv=[_client(), "vault", str(folder)],
            env=dict(os.environ),
            log=config.state / "vault.log",
            grace=30.0,
        )
        services = [vault, *courier_services(config)]
        status_file = config.courier / STATUS_FILE
        return Plan(services, status_file, None, own_network=False, watch=stall_watch(config))
    _check_users(config, users)
    _make_socket_folder(config, users.vault)
    own = folder / SUPERVISOR
    own.mkdir(mode=0o700, exist_ok=True)
    isolated = ["unshare", "--net", "--"] if _can_unshare() else []
    as_vault = [*isolated, *_as_user(users.vault)]
    inside = {**os.environ, "HOME": str(config.state)}
    # What the coordinator ships can read the environment of every process of its user.
    outside = environment(config.courier, os.environ)
    services = [
        _half("vault", as_vault, folder, env=inside, grace=30.0),
        _half("courier", _as_user(users.courier), folder, env=outside, grace=15.0),
    ]
    return Plan(services, own / STATUS_FILE, users, own_network=bool(isolated))


def missing_protection(chosen: Plan, user: str) -> list[str]:
    """Say what the systemd units would protect and this plan does not.

    Args:
        chosen: What is about to run.
        user: Who runs it.
    """
    missing = []
    if chosen.users is None:
        missing.append(
            f"vault and courier both run as {user}: code that the coordinator ships runs in the "
            "courier and could read this hospital's images."
        )
    if not chosen.own_network:
        missing.append("the vault's network is not cut off.")
    if chosen.users is None and user == "root":
        missing.append("both run as root: that code could do anything on this machine.")
    missing.append(
        "the system is not read-only for them; use the units in deploy/systemd on a hospital's "
        "machine (docs/hospital.md)."
    )
    return missing


def run(chosen: Plan) -> None:
    """Run the processes until SIGTERM or SIGINT.

    Raises:
        ServiceError: A program cannot be started.
    """
    supervise(
        chosen.services,
        status_file=chosen.status_file,
        stop=stop_on_signals(),
        on_tick=chosen.watch,
    )


def _half(
    name: str, prefix: Sequence[str], folder: Path, *, env: Mapping[str, str], grace: float
) -> Service:
    return Service(
        name=name,
        argv=[*prefix, _client(), name, str(folder)],
        env=env,
        log=folder / SUPERVISOR / f"{name}.log",
        grace=grace,
    )


def _as_user(user: str) -> list[str]:
    """Return what starts a program as ``user``, who can gain nothing and dies with its parent."""
    entry = pwd.getpwnam(user)
    ids = ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--init-groups"]
    # The kernel forgets the tie to the parent when the user changes; setpriv ties it anew.
    return ["setpriv", *ids, "--no-new-privs", "--pdeathsig", "KILL", "--"]


def _check_users(config: SiteConfig, users: Users) -> None:
    if os.geteuid() != 0:
        raise ServiceError(
            "Only root can run vault and courier as two users.",
            remedy="Use sudo, or the systemd units in deploy/systemd.",
        )
    if shutil.which("setpriv") is None:
        raise ServiceError("There is no setpriv.", remedy="Install the package util-linux.")
    for user, folder in ((users.vault, config.state), (users.courier, config.courier)):
        try:
            wanted, owner = pwd.getpwnam(user).pw_uid, folder.stat().st_uid
        except KeyError as error:
            remedy = f"Make it: useradd --system --no-create-home {user}"
            raise ServiceError(f"There is no user {user}.", remedy=remedy) from error
        except FileNotFoundError as error:
            remedy = f"Join a coordinator first; then: chown -R {user} {folder}"
            raise ServiceError(f"There is no folder {folder}.", remedy=remedy) from error
        if wanted != owner:
            remedy = f"Run: chown -R {user} {folder}"
            raise ServiceError(f"{folder} does not belong to {user}.", remedy=remedy)
        # Through env, as setpriv itself may open what its new user may not.
        if not _succeeds([*_as_user(user), "env", _client(), "--help"]):
            raise ServiceError(
                f"{user} cannot run {_client()}.",
                remedy="Install rarefed where every user may read it, and with the system's "
                "Python: /opt/rarefed, for example.",
            )


def _make_socket_folder(config: SiteConfig, vault: str) -> None:
    """Make the folder of the vault's socket, for the vault to write in and the group to enter."""
    if not config.socket_group:
        raise ServiceError(
            "Two users need a group in common for the vault's socket.",
            remedy="Make one, put both users in it, and name it as 'socket_group' in site.toml.",
        )
    folder = config.socket.parent
    if folder.exists():
        return
    try:
        group = grp.getgrnam(config.socket_group).gr_gid
    except KeyError as error:
        remedy = f"Make it: groupadd {config.socket_group}"
        raise ServiceError(f"There is no group {config.socket_group}.", remedy=remedy) from error
    folder.mkdir(mode=0o700)
    os.chown(folder, pwd.getpwnam(vault).pw_uid, group)
    folder.chmod(0o750)


def _can_unshare() -> bool:
    """Whether this machine lets root make a network namespace; containers often do not."""
    return shutil.which("unshare") is not None and _succeeds(["unshare", "--net", "--", "true"])


def _succeeds(argv: Sequence[str]) -> bool:
    done = subprocess.run(list(argv), check=False, capture_output=True)  # noqa: S603 - our own
    return done.returncode == 0


def _client() -> str:
    """Return the program ``rarefed-client`` of this very Python."""
    return str(Path(sys.executable).parent / "rarefed-client")
