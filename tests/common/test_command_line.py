"""Laws of how the three command lines end."""

import os
import re
import sys

import pytest
import typer

from common import command_line, errors
from common.errors import RarefedError

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RarefedError)
]


def play(failure: BaseException | None, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a program whose one command ends as told, and return its exit code."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        if failure is not None:
            raise failure

    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as end:
        command_line.run(app, program="program")
    return int(end.value.code or 0)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_ends_with_its_own_code(
    error: type[RarefedError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the class's; name, message and remedy go to standard error alone."""
    assert play(error("It broke.", remedy="Mend it."), monkeypatch) == error.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{error.__name__}: It broke." in shown.err
    assert "Remedy: Mend it." in shown.err


def test_brackets_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message is printed as it is, whatever brackets it holds."""
    error = RarefedError("No [site] at [/x] or [1]", remedy="add a [data.TASK] table")
    assert play(error, monkeypatch) == 1
    shown = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "RarefedError: No [site] at [/x] or [1] Remedy: add a [data.TASK] table" in shown


def test_success_wrong_usage_and_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Success is 0, wrong usage 2, an interruption 130."""
    assert play(None, monkeypatch) == 0
    assert play(None, monkeypatch, "--no-such-option") == 2
    assert play(KeyboardInterrupt(), monkeypatch) == 130


def test_debugging_shows_the_whole_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With RAREFED_DEBUG=1 the error is raised, with its traceback; others always are."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work(kind: str) -> None:
        raise RarefedError("known") if kind == "known" else ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["program", "unknown"])
    with pytest.raises(ZeroDivisionError):
        command_line.run(app, program="program")
    monkeypatch.setenv("RAREFED_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["program", "known"])
    with pytest.raises(RarefedError, match="known"):
        command_line.run(app, program="program")


def test_flower_does_not_call_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry and update checks are off before any command runs, unless someone set them."""
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "0")
    assert play(None, monkeypatch) == 0
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "0"
