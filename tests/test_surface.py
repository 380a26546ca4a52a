"""The public surface, frozen: a change of it is a decision that is made here."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import client.cli
import server.cli
import simulations.cli

ROOT = Path(__file__).resolve().parent.parent

SURFACE = {
    "rarefed-client": {
        "join": ["KIT", "--site", "--fingerprint", "--json"],
        "renew": ["SITE", "BUNDLE", "--json"],
        "check": ["SITE", "--study", "--html", "--workers", "--json"],
        "doctor": ["SITE", "--study", "--json"],
        "leave": ["SITE", "--yes", "--json"],
        "approve": ["SITE", "STUDY", "--list", "--revoke", "--yes", "--json"],
        "start": ["SITE", "--vault-user", "--courier-user"],
        "status": ["SITE", "--rounds", "--json"],
        "pause": ["SITE", "--off", "--json"],
        "vault": ["SITE"],
        "courier": ["SITE"],
        "predict": [
            "SITE", "MODEL", "FILES", "--task", "--dicom", "--csv", "--personal", "--json",
        ],
        "ledger": ["SITE", "--json"],
        "manifest build": ["FOLDER", "--out", "--json"],
        "audit verify": ["SITE", "--head", "--json"],
        "audit head": ["SITE", "--json"],
        "audit show": ["SITE", "--last", "--study", "--json"],
        "cache show": ["SITE", "--json"],
        "cache clear": ["SITE", "--json"],
        "evaluate": [
            "SITE", "--study", "--model", "--alone", "--classical", "--personal", "--json",
        ],
        "personalise": ["SITE", "--study", "--rounds", "--json"],
        "explain": [
            "SITE", "--study", "--out", "--model", "--task", "--method", "--cells", "--count",
            "--json",
        ],
        "report": [
            "SITE", "--study", "--model", "--out", "--cases", "--method", "--alone", "--classical",
            "--feedback", "--names", "--json",
        ],
    },
    "rarefed-server": {
        "init": [
            "--address", "--name", "--listen", "--also", "--superlink-port", "--folder", "--json",
        ],
        "invite": ["SITE", "--days", "--folder", "--json"],
        "accept": ["REQUEST", "--folder", "--json"],
        "sites": ["--folder", "--json"],
        "revoke": ["SITE", "--folder", "--json"],
        "rotate": ["--authority", "--folder", "--json"],
        "start": ["--folder", "--json"],
        "run": ["STUDY", "--no-follow", "--folder", "--json"],
        "resume": ["STUDY", "--no-follow", "--folder", "--json"],
        "stop": ["STUDY", "--folder", "--json"],
        "status": ["--folder", "--json"],
        "heads": ["STUDY", "--folder", "--json"],
        "export": ["STUDY", "OUT", "--onnx", "--images", "--folder", "--json"],
        "check": ["STUDY", "--json"],
    },
    "rarefed-sim": {
        "make": ["OUT", "--sites", "--patients", "--images", "--seed", "--json"],
        "deal": [
            "DATASET", "OUT", "--task", "--sites", "--skew", "--label", "--first", "--seed",
            "--json",
        ],
        "run": [
            "STUDY", "--hospitals", "--out", "--engine", "--threads", "--yardsticks", "--json",
        ],
        "demo": ["--out", "--weights", "--again", "--json"],
        "rehearse": [
            "--out", "--images", "--kill", "--separate", "--again", "--json",
        ],
        "compare": [
            "LAB", "--out", "--quick", "--data", "--weights", "--threads", "--json",
        ],
    },
}  # fmt: skip

APPS = {
    "rarefed-client": client.cli.app,
    "rarefed-server": server.cli.app,
    "rarefed-sim": simulations.cli.app,
}

SCRIPTS = {
    "rarefed-client": "client.cli:main",
    "rarefed-server": "server.cli:main",
    "rarefed-sim": "simulations.cli:main",
}


def surface(app: typer.Typer) -> dict[str, list[str]]:
    """Return arguments and options by command, in their order."""
    return {
        name: [
            word
            for parameter in command.params
            for word in (
                [*parameter.opts, *parameter.secondary_opts]
                if parameter.param_type_name == "option"
                else [parameter.name.upper()]
            )
        ]
        for name, command in commands_of(typer.main.get_command(app))
    }


def commands_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command below a group with its name, those of groups within it too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


@pytest.mark.parametrize("program", SURFACE)
def test_commands_and_options_are_those_agreed(program: str) -> None:
    """No command, argument or option comes, goes or changes its name by accident."""
    assert surface(APPS[program]) == SURFACE[program]


def test_console_scripts_are_those_agreed() -> None:
    """The package installs three programs and no others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == SCRIPTS


@pytest.mark.parametrize("program", SURFACE)
def test_every_command_gives_an_example(program: str) -> None:
    """The help of a command ends with a line that calls this very command."""
    for name, command in commands_of(typer.main.get_command(APPS[program])):
        assert (command.epilog or "").startswith(f"Example: {program} {name} ")


def test_command_lines_load_without_torch() -> None:
    """No program waits for torch or Ray before it knows what it is asked for."""
    code = (
        "import sys, client.cli, server.cli, simulations.cli;"
        "print([name for name in ('torch', 'timm', 'ray', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert found.stdout.strip() == "[]"


def test_wrong_usage_ends_with_exit_code_two() -> None:
    """An unknown command is wrong usage, as is an option that does not exist."""
    environment = {**os.environ, "NO_COLOR": "1"}
    for program, words in (("server", ["nothing"]), ("client", ["check", "--nothing"])):
        code = f"import {program}.cli; {program}.cli.main()"
        found = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert found.returncode == 2
