"""The coordinator's commands about its sites, called as a person calls them."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.enrol import join
from common.errors import NotRunningError, UnknownSiteError
from server import cli_sites
from server.config import ServerConfig
from server.register import load_sites

app = typer.Typer(pretty_exceptions_enable=False)
cli_sites.register(app)


def call(*words: str) -> Any:
    """Run a command with --json and return what it prints."""
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The folder of a coordinator whose SuperLink does not run: nothing listens on port 1."""
    place = str(tmp_path / "c")
    made = call(
        "init", "--address", "localhost:21001", "--folder", place, "--superlink-port", "1",
        "--name", "trial", "--also", "fl", "--also", "10.0.0.5",
    )  # fmt: skip
    assert made["names"] == ["localhost", "fl", "10.0.0.5", "127.0.0.1"]
    assert made["listen"] == "127.0.0.1:21001"
    return place


def test_the_six_commands_give_help_and_examples() -> None:
    """Each command has an example that calls it, and each option help that shows one."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert list(commands) == ["init", "invite", "accept", "sites", "revoke", "rotate"]
    for name, command in commands.items():
        assert command.epilog.startswith(f"Example: rarefed-server {name}")
        helps = {p.name: p.help for p in command.params if p.name not in {"as_json", "help"}}
        assert all("for example" in text for text in helps.values())


def test_a_kit_of_the_command_line_can_be_joined_with(folder: str, tmp_path: Path) -> None:
    """What ``invite`` prints is where the kit lies and what its fingerprint is."""
    found = call("invite", "site-a", "--days", "2", "--folder", folder)
    request = join(Path(found["kit"]), tmp_path / "h", found["fingerprint"])
    assert request.name == "site-a.request.json"


def test_the_fingerprint_of_init_is_that_of_the_kits(tmp_path: Path) -> None:
    """A coordinator can publish its fingerprint once, when it is made."""
    place = str(tmp_path / "c")
    made = call("init", "--address", "localhost:21001", "--folder", place)
    assert call("invite", "a", "--folder", place)["fingerprint"] == made["fingerprint"]


def test_sites_are_listed_without_a_running_coordinator(folder: str) -> None:
    """The register is shown, and that nothing is known of who is online."""
    call("invite", "site-b", "--folder", folder)
    call("invite", "site-a", "--folder", folder)
    found = call("sites", "--folder", folder)
    assert not found["running"]
    assert [(site["site"], site["state"]) for site in found["sites"]] == [
        ("site-a", "invited"),
        ("site-b", "invited"),
    ]
    shown = CliRunner().invoke(app, ["sites", "--folder", folder]).stdout
    assert "site-a" in shown
    assert "does not run" in shown


def test_nothing_is_begun_while_the_coordinator_does_not_run(folder: str, tmp_path: Path) -> None:
    """``accept`` says that the coordinator must run, and leaves the invitation as it was."""
    kit = call("invite", "site-a", "--folder", folder)["kit"]
    request = join(Path(kit), tmp_path / "h")
    config = ServerConfig.load(Path(folder))
    before = load_sites(config)
    with pytest.raises(NotRunningError, match="start"):
        call("accept", str(request), "--folder", folder)
    assert load_sites(config) == before


def test_an_invitation_can_be_taken_back(folder: str) -> None:
    """``revoke`` ends an invitation, and says of an unknown site which ones there are."""
    call("invite", "site-a", "--folder", folder)
    assert call("revoke", "site-a", "--folder", folder)["state"] == "revoked"
    with pytest.raises(UnknownSiteError, match="site-a"):
        call("revoke", "site-b", "--folder", folder)


def test_rotation_names_what_goes_to_the_sites(folder: str) -> None:
    """A new authority is for every site to take over; a new certificate concerns none."""
    assert call("rotate", "--folder", folder)["renewal"] is None
    found = call("rotate", "--authority", "--folder", folder)
    assert found["renewal"] == str(Path(folder) / "renewal.pem")
    assert b"PRIVATE" not in Path(found["renewal"]).read_bytes()
