"""Laws of what hospitals and coordinators install: systemd units, containers, users, folders."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

import client.cli
import server.cli

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "deploy/systemd"
DOCKER = ROOT / "deploy/docker"
NAMES = ("rarefed-vault", "rarefed-courier", "rarefed-coordinator")
IMAGES = ("vault", "courier")
INSTALLED = "/opt/rarefed/bin/"

EXPOSURE = {"rarefed-vault": 10, "rarefed-courier": 15, "rarefed-coordinator": 15}
"""The most that ``systemd-analyze security`` may find, in tenths; a plain service has 96."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as if rarefed were installed where this Python is."""
    here = f"{Path(sys.executable).parent}/"
    for name in NAMES:
        text = (UNITS / f"{name}.service").read_text(encoding="utf-8")
        (tmp_path / f"{name}.service").write_text(text.replace(INSTALLED, here), encoding="utf-8")
    return tmp_path


class _Repeated(dict[str, Any]):
    """Keeps every line of a setting that stands several times."""

    def __setitem__(self, key: str, value: Any) -> None:
        old = self.get(key)
        merged = old + value if isinstance(old, list) and isinstance(value, list) else value
        super().__setitem__(key, merged)


def service(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit's service, each with all its lines."""
    parser = configparser.RawConfigParser(
        strict=False, dict_type=_Repeated, comment_prefixes="#", interpolation=None
    )
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / f"{name}.service", encoding="utf-8")
    return {
        key: value.split("\n") if isinstance(value, str) else list(value)
        for key, value in parser["Service"].items()
    }


@needs_systemd
def test_systemd_understands_the_units(installed: Path) -> None:
    """No unknown setting, no missing program and no wrong value is found by systemd itself."""
    files = [str(installed / f"{name}.service") for name in NAMES]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if "rarefed" in line]
    assert told == []
    assert done.returncode == 0, done.stderr


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_the_units_are_locked_down(name: str, installed: Path) -> None:
    """What systemd itself counts as exposure stays below a limit."""
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", "--no-pager"),
            *(f"--threshold={EXPOSURE[name]}", str(installed / f"{name}.service")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_gives_up_what_it_can(name: str) -> None:
    """A user of its own, a read-only system, a private /tmp, no privileges and no core dumps."""
    settings = service(name)
    assert settings["User"] != ["root"]
    assert settings["ProtectSystem"] == ["strict"]
    assert settings["CapabilityBoundingSet"] == [""]
    assert settings["LimitCORE"] == ["0"]
    assert settings["UMask"] == ["0077"]
    assert settings["Restart"] == ["always"]
    for key in ("PrivateTmp", "ProtectHome", "NoNewPrivileges", "RestrictSUIDSGID", "PrivateUsers"):
        assert settings[key] == ["yes"]


def test_the_vault_has_no_network() -> None:
    """Neither an interface nor a kind of socket but the local one."""
    settings = service("rarefed-vault")
    assert settings["PrivateNetwork"] == ["yes"]
    assert settings["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert settings["IPAddressDeny"] == ["any"]
    assert settings["DevicePolicy"] == ["closed"]


def test_vault_and_courier_are_two_users_with_two_folders() -> None:
    """Each may write in its own folder alone, and does not see the other's."""
    vault, courier = service("rarefed-vault"), service("rarefed-courier")
    assert vault["User"] != courier["User"]
    assert vault["ReadWritePaths"] == ["/var/lib/rarefed/state"]
    assert courier["ReadWritePaths"] == ["/var/lib/rarefed/courier"]
    assert "-/var/lib/rarefed/state" in courier["InaccessiblePaths"][0].split()
    assert "-/var/lib/rarefed/courier" in vault["InaccessiblePaths"][0].split()
    assert courier["SupplementaryGroups"] == vault["Group"]
    assert courier["MemoryDenyWriteExecute"] == ["yes"]


@pytest.mark.parametrize("name", NAMES)
def test_the_units_call_commands_that_exist(name: str) -> None:
    """The program, its command and the options that a unit gives are the real ones."""
    program, command, *words = service(name)["ExecStart"][0].removeprefix(INSTALLED).split()
    app = {"rarefed-client": client.cli.app, "rarefed-server": server.cli.app}[program]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if program == "rarefed-server" and command not in commands:
        pytest.skip("the coordinator's commands are not there yet")
    options = {option for parameter in commands[command].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@as_root
@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers")
def test_users_and_folders_are_those_of_the_units(tmp_path: Path) -> None:
    """What the units name is made, in a root of its own, by the tools of systemd."""
    for place, name in (("sysusers.d", "sysusers"), ("tmpfiles.d", "tmpfiles")):
        folder = tmp_path / "usr/lib" / place
        folder.mkdir(parents=True)
        shutil.copy(UNITS / f"rarefed.{name}.conf", folder / "rarefed.conf")
    (tmp_path / "etc").mkdir()
    for tool in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        subprocess.run([*tool, f"--root={tmp_path}"], check=True, capture_output=True)
    users = _table(tmp_path / "etc/passwd")
    groups = _table(tmp_path / "etc/group")
    vault, courier = service("rarefed-vault"), service("rarefed-courier")
    for settings, name in ((vault, "state"), (courier, "courier")):
        (user,), (writable,) = settings["User"], settings["ReadWritePaths"]
        made = (tmp_path / writable.removeprefix("/")).stat()
        assert made.st_uid == int(users[user][2])
        assert stat.S_IMODE(made.st_mode) == 0o700
        assert writable.endswith(name)
        assert user in groups["rarefed"][3].split(",")
        assert users[user][6].endswith("nologin")
    assert stat.S_IMODE((tmp_path / "var/lib/rarefed").stat().st_mode) == 0o711


def _table(file: Path) -> dict[str, list[str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: line.split(":") for line in lines}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file, merges resolved as YAML says."""
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


@pytest.mark.parametrize("name", ["vault", "courier", "setup", "doctor"])
def test_every_container_is_locked_down(name: str, compose: dict[str, Any]) -> None:
    """A read-only root, no capability that is not named, no way to more, no port, no host."""
    settings = compose["services"][name]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["ulimits"]["core"] == 0
    for key in ("privileged", "ports", "pid", "ipc", "userns_mode", "devices", "expose"):
        assert key not in settings
    assert "docker.sock" not in str(settings)


def test_the_vaults_container_has_no_network(compose: dict[str, Any]) -> None:
    """Vault and set-up have none at all, and who has one sees no images."""
    services = compose["services"]
    for name in ("vault", "setup"):
        assert services[name]["network_mode"] == "none"
        assert "networks" not in services[name]
    for name in ("courier", "doctor"):
        assert services[name]["networks"] == ["outside"]
        assert not any("IMAGES" in volume for volume in services[name]["volumes"])


def test_two_containers_run_as_two_users_without_root(compose: dict[str, Any]) -> None:
    """What runs for good is not root; the engineer's commands are started by hand."""
    services = compose["services"]
    running = {name for name, settings in services.items() if "profiles" not in settings}
    assert running == {"vault", "courier"}
    users = [services[name]["user"] for name in running]
    assert len(set(users)) == 2
    assert not any(user.startswith("0") for user in users)
    assert "cap_add" not in services["vault"]
    assert "cap_add" not in services["courier"]


def test_the_socket_alone_is_shared(compose: dict[str, Any]) -> None:
    """Vault and courier have the socket's volume in common, and a file that both read."""
    volumes = {
        name: {
            volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[0]: volume
            for volume in compose["services"][name]["volumes"]
        }
        for name in IMAGES
    }
    sources = {name: {_source(one) for one in volumes[name]} for name in IMAGES}
    assert sources["vault"] & sources["courier"] == {"socket", "SITE/site.toml"}
    for name in IMAGES:
        writable = {_source(one) for one, text in volumes[name].items() if not text.endswith(":ro")}
        own = "SITE/state" if name == "vault" else "SITE/courier"
        assert writable <= {own, "socket"}
    assert any(text.endswith("/images:ro") for text in volumes["vault"].values())


def _source(volume: str) -> str:
    return re.sub(r"\$\{RAREFED_(\w+)(:\?[^}]*)?\}", r"\1", volume)


def instructions(name: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile with its text, continued lines joined."""
    text = (DOCKER / f"Dockerfile.{name}").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_the_user_of_the_compose_file(name: str, compose: dict[str, Any]) -> None:
    """The last user of an image is given by number, is not root, and is that of the container."""
    users = [rest for word, rest in instructions(name) if word == "USER"]
    assert users == [compose["services"][name]["user"]]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_begins_with_a_pinned_base(name: str) -> None:
    """Every stage has the one base, which has a whole version and can be given by its digest."""
    found = list(instructions(name))
    (base,) = [rest for word, rest in found if word == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    stages = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert stages == ["${BASE}", "${BASE}"]


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_unchecked_comes_into_an_image(name: str) -> None:
    """No ADD, no download, no package of the system; what is installed has the lock's hashes."""
    found = list(instructions(name))
    assert not any(word == "ADD" for word, _ in found)
    runs = [rest for word, rest in found if word == "RUN"]
    assert not any(re.search(r"curl|wget|git |https?:|apt|sudo|chmod 777", rest) for rest in runs)
    installs = [part for rest in runs for part in rest.split("&&") if " install " in f" {part}"]
    for part in installs:
        if "pip install" in part:
            assert re.search(r"--require-hashes|--constraint requirements.lock|--no-deps", part)
            assert "--no-cache" in part
    assert "SHELL" in [word for word, _ in found], "a pipe that fails must fail the build"


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_exists_and_is_named(name: str) -> None:
    """An image takes named files of the repository, never all of it, and each of them is there."""
    for word, rest in instructions(name):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
            assert "." not in sources
    ignored = (DOCKER / f"Dockerfile.{name}.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"


@pytest.mark.parametrize("name", IMAGES)
def test_images_have_a_plain_entry(name: str) -> None:
    """Program and arguments are lists, so that signals reach the program itself."""
    found = dict(instructions(name))
    assert found["ENTRYPOINT"] == '["rarefed-client"]'
    assert found["CMD"] == f'["{name}", "/srv/rarefed"]'
    assert found["WORKDIR"].startswith("/")


def test_the_couriers_image_has_no_torch() -> None:
    """Where the coordinator's code runs there is nothing that trains or reads an image."""
    wanted = re.findall(r"(?m)^[a-z]+", (DOCKER / "courier.txt").read_text(encoding="utf-8"))
    assert wanted
    assert not {"torch", "torchvision", "timm", "pydicom", "pillow"} & set(wanted)
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert all(re.search(rf"(?m)^{name}==", locked) for name in wanted)
