"""Laws of ``start`` without systemd: which processes, which users, what is unprotected."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client import service
from client.config import SiteConfig
from client.enrol import join
from client.service import Users, missing_protection, plan
from client.socket_file import MAX_PATH_BYTES
from common.errors import EnrolmentError, ServiceError
from server.config import ServerConfig, init_folder
from server.enrolment import invite

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run things as others")
VAULT, COURIER = "daemon", "nobody"
"""Two users that every Debian has; their group in common is invented here."""


@pytest.fixture(scope="session")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    config = init_folder(tmp_path_factory.mktemp("c") / "c", "trial", "localhost:22998")
    invite(config, "site-a")
    return config


@pytest.fixture
def hospital(make_hospital: Callable[..., SiteConfig], coordinator: ServerConfig) -> SiteConfig:
    config = make_hospital("site-a")
    join(coordinator.kit_file("site-a"), config.state.parent)
    return config


@pytest.fixture
def divided(hospital: SiteConfig) -> SiteConfig:
    """A hospital whose folders belong to two users."""
    for folder, user in ((hospital.state, VAULT), (hospital.courier, COURIER)):
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    return hospital.model_copy(update={"socket_group": "nogroup"})


def test_one_user_runs_three_processes(hospital: SiteConfig) -> None:
    """Vault, SuperNode and SuperExec are supervised side by side, and stopped last to first."""
    found = plan(hospital, hospital.state.parent, None)
    assert [one.name for one in found.services] == ["vault", "supernode", "superexec"]
    assert found.status_file == hospital.courier / "processes.json"
    assert all(one.user is None for one in found.services)


def test_what_one_user_lacks_is_said(hospital: SiteConfig) -> None:
    """That the images are readable and the network is open is said in words."""
    text = "\n".join(missing_protection(plan(hospital, hospital.state.parent, None), "anna"))
    assert "could read this hospital's images" in text
    assert "network is not cut off" in text
    assert "deploy/systemd" in text
    assert "run as root" not in text


def test_who_has_not_joined_cannot_start(make_hospital: Callable[..., SiteConfig]) -> None:
    """Without an enrolment nothing is started."""
    config = make_hospital("site-b")
    with pytest.raises(EnrolmentError):
        plan(config, config.state.parent, None)


def too_long(config: SiteConfig) -> Path:
    """Return a path in the hospital's folder that has one byte too many."""
    folder = config.state.parent
    return folder / ("x" * (MAX_PATH_BYTES - len(os.fsencode(folder))))


def test_a_socket_that_cannot_be_ends_the_start_at_once(hospital: SiteConfig) -> None:
    """The command ends with the error's own code; no process was started."""
    folder, path = hospital.state.parent, too_long(hospital)
    assert len(os.fsencode(path)) == 108
    site = folder / "site.toml"
    site.write_text(f"socket = '{path}'\n{site.read_text()}")
    done = subprocess.run(
        [service._client(), "start", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ServiceError.exit_code
    assert "too long" in done.stderr
    assert "at most 107 bytes" in done.stderr
    assert not (hospital.courier / "processes.json").exists()
    assert not (hospital.state / "vault.log").exists()


@pytest.mark.parametrize("users", [None, Users(VAULT, COURIER)])
def test_the_socket_is_looked_at_first(users: Users | None, hospital: SiteConfig) -> None:
    """With one user or two, nothing is made for a vault that could not listen."""
    config = hospital.model_copy(update={"socket": too_long(hospital)})
    with pytest.raises(ServiceError, match="too long"):
        plan(config, config.state.parent, users)
    longest = config.model_copy(update={"socket": Path(str(config.socket)[:-1])})
    assert plan(longest, config.state.parent, None).services
    assert not (config.state.parent / service.SUPERVISOR).exists()


@as_root
def test_two_users_run_two_halves(divided: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half is a command of its own that has given up root, and root's files are apart."""
    monkeypatch.setattr(service, "_client", lambda: "/bin/true")
    folder = divided.state.parent
    found = plan(divided, folder, Users(VAULT, COURIER))
    assert [one.name for one in found.services] == ["vault", "courier"]
    assert found.status_file.parent == folder / "supervisor"
    assert {one.log.parent for one in found.services} == {folder / "supervisor"}
    assert (folder / "supervisor").stat().st_mode & 0o777 == 0o700
    assert divided.socket.parent.stat().st_uid == pwd.getpwnam(VAULT).pw_uid
    assert divided.socket.parent.stat().st_mode & 0o777 == 0o750
    text = "\n".join(missing_protection(found, "root"))
    assert "could read" not in text
    assert ("network" in text) == (not found.own_network)


@as_root
@pytest.mark.parametrize("user", [VAULT, COURIER])
def test_a_half_gives_up_everything(user: str) -> None:
    """Its program has the user's identity, no capability, and no way to gain one."""
    words = [*service._as_user(user), "/bin/cat", "/proc/self/status"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    status = dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == {str(pwd.getpwnam(user).pw_uid)}
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    assert "0" not in status["Groups"].split()


@as_root
def test_an_isolated_vault_has_no_network() -> None:
    """In its own network namespace there is not even a loopback that is up."""
    if not service._can_unshare():
        pytest.skip("this machine lets nobody make a network namespace")
    code = "import socket; socket.create_connection(('127.0.0.1', 9), 2)"
    done = subprocess.run(
        ["unshare", "--net", "--", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "unreachable" in done.stderr


@as_root
@pytest.mark.parametrize(
    ("users", "message"),
    [
        (Users("no-such-user", COURIER), "no user no-such-user"),
        (Users(COURIER, VAULT), "does not belong to"),
    ],
)
def test_wrong_users_are_told(users: Users, message: str, divided: SiteConfig) -> None:
    """A user that does not exist, or that does not own its folder, ends the start."""
    with pytest.raises(ServiceError, match=message) as told:
        plan(divided, divided.state.parent, users)
    assert told.value.remedy


@as_root
def test_two_users_need_a_group(divided: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a group in common the courier could not open the vault's socket."""
    monkeypatch.setattr(service, "_client", lambda: "/bin/true")
    for group, message in (("", "a group in common"), ("no-such-group", "no group")):
        config = divided.model_copy(update={"socket_group": group})
        with pytest.raises(ServiceError, match=message):
            plan(config, config.state.parent, Users(VAULT, COURIER))


@as_root
def test_a_program_that_a_user_cannot_run_is_told(
    divided: SiteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installation in root's home is found out before anything is started."""
    program = tmp_path / "rarefed-client"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setattr(service, "_client", lambda: str(program))
    with pytest.raises(ServiceError, match="cannot run"):
        plan(divided, divided.state.parent, Users(VAULT, COURIER))
