"""Laws of the commands that show and clear the prepared images of a site."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.config import SiteConfig
from client.site import Site
from common.study import Study

RUN = CliRunner()


@pytest.fixture
def folder(make_hospital: Callable[..., SiteConfig]) -> Path:
    return make_hospital().state.parent


def shown(folder: Path, command: str) -> dict[str, object]:
    result = RUN.invoke(app, ["cache", command, str(folder), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_a_site_that_has_read_nothing_has_kept_nothing(folder: Path) -> None:
    """Both commands say so, and make no folder."""
    assert shown(folder, "show")["entries"] == shown(folder, "clear")["entries"] == 0
    assert not (folder / "state" / "cache").exists()


def test_what_was_read_is_shown_and_cleared(folder: Path, make_study: Callable[..., Study]) -> None:
    """Every image of a study is kept, in the state folder; clear removes all, under a vault too."""
    site = Site(SiteConfig.load(folder))
    prepared = site.prepare(make_study())
    before = prepared.tasks["ct"].splits["train"].pixels[:]
    found = shown(folder, "show")
    assert found["entries"] == 16
    assert found["folder"] == str(folder / "state" / "cache")
    assert found["max_bytes"] == 20_480_000_000
    text = RUN.invoke(app, ["cache", "show", str(folder)])
    assert "16 sources" in text.stdout
    assert shown(folder, "clear")["entries"] == 16
    assert shown(folder, "show")["entries"] == 0
    assert (prepared.tasks["ct"].splits["train"].pixels[:] == before).all()
    assert "0 sources removed" in RUN.invoke(app, ["cache", "clear", str(folder)]).stdout
