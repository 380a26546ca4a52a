"""The benches' common form; what they measure is asserted nowhere, since machines differ."""

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from simulations import benches
from simulations.benches import combine_memory, demo, engines, overhead, real, wire
from simulations.benches.__main__ import BENCHES
from simulations.benches.result import Result
from simulations.run import read_summary

KEYS = ["name", "figure", "against", "ratio", "limit", "holds", "details"]


def run(capsys: pytest.CaptureFixture[str], main: Callable[[], None]) -> tuple[int, dict[str, Any]]:
    """Run a bench in this process; return its exit code and the object in its last line."""
    with pytest.raises(typer.Exit) as ended:
        main()
    return ended.value.exit_code, json.loads(capsys.readouterr().out.splitlines()[-1])


def check(name: str, code: int, found: dict[str, Any]) -> None:
    """Assert the frozen form, whatever the figures are."""
    assert list(found) == KEYS
    assert found["name"] == name
    assert set(found["against"]) == {"what", "figure", "unit"}
    assert all(isinstance(found[key], int | float) for key in ("figure", "ratio", "limit"))
    assert isinstance(found["against"]["figure"], int | float)
    assert isinstance(found["holds"], bool)
    assert code == (0 if found["holds"] else 1)


def test_all_benches_are_known() -> None:
    """Each module with a command and a limit is run by ``make bench``, and no other."""
    names = [module.name for module in pkgutil.iter_modules(benches.__path__)]
    modules = [importlib.import_module(f"{benches.__name__}.{n}") for n in names if n[0] != "_"]
    found = {m.__name__.rpartition(".")[2] for m in modules if hasattr(m, "main")}
    assert found == set(BENCHES)
    assert len(BENCHES) == len(set(BENCHES))


def test_an_unknown_bench_is_refused() -> None:
    """``--only`` with a name that is no bench ends with 2 and lists those that are."""
    command = [sys.executable, "-m", "simulations.benches", "--only", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert all(name in done.stderr for name in BENCHES)


@pytest.mark.parametrize("holds", [True, False])
def test_a_result_is_one_json_line(holds: bool, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001 - pytest's way
    """A result prints one line of the frozen keys and answers 0 if it holds, else 1."""
    result = Result("x", 2.0, {"what": "a floor", "figure": 1.0, "unit": "s"}, 2.0, 1.1, holds)
    code = result.tell()
    (line,) = capsys.readouterr().out.splitlines()
    check("x", code, json.loads(line))


def test_wire_has_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    """The bench of bytes says its result in the frozen form, and heads are the smaller part."""
    code, found = run(capsys, lambda: wire.main("test_resnet", image_size=32, patients=10))
    check("wire", code, found)
    assert 0 < found["figure"] < found["against"]["figure"]


def test_overhead_has_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    """The bench of time says its result in the frozen form."""
    code, found = run(capsys, lambda: overhead.main(rounds=1, patients=6, repeats=1, threads=1))
    check("overhead", code, found)


def test_real_has_the_form(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bench on real images judges any summary with yardsticks, in the frozen form."""
    result = real.judged(read_summary(finished))
    code = result.tell()
    check("real", code, json.loads(capsys.readouterr().out))
    assert set(result.details["federated_minus_pooled"]) == {"spots", "bars", "rings"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "main"),
    [
        ("combine_memory", lambda: combine_memory.main(sites=[2])),
        ("engines", lambda: engines.main(patients=6, rounds=1)),
        ("demo", demo.main),
    ],
)
def test_a_slow_bench_has_the_form(
    name: str, main: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A bench that starts other processes says its result in the frozen form."""
    code, found = run(capsys, main)
    check(name, code, found)
